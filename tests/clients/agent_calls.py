"""The requests of coding agents, as the real ones sent them to this server (`agents/*.json`: their
form, other words), read by the clients that these agents are made with."""

import json
from pathlib import Path

import anthropic
import openai

from calls import call

FOLDER = Path(__file__).parent / "agents"


def requests(name):
    for body in json.loads((FOLDER / f"{name}.json").read_text())["requests"]:
        # The demo model says much when it understands little.
        yield {**body, "model": "default", "temperature": 0}


def chat(place, name):
    client = openai.OpenAI(base_url=f"{place.url}/v1", api_key="none", max_retries=0)
    for body in requests(name):
        body = {**body, "max_tokens": 20}
        stream = list(client.chat.completions.create(**body))
        assert stream[0].choices[0].delta.role == "assistant"
        assert stream[-2].choices[0].finish_reason in ("stop", "length", "tool_calls")
        usage = stream[-1].usage
        assert usage.prompt_tokens > 100 and usage.completion_tokens <= 20
    # The last request repeats the ones before it.
    return usage.prompt_tokens_details.cached_tokens


@call("A-03", "A-31")
def claude_code(place):
    client = anthropic.Anthropic(base_url=place.url, api_key="none", max_retries=0)
    for body in requests("claude_code"):
        body = {**body, "max_tokens": 20}
        counted = ("model", "messages", "system", "tools", "thinking")
        counted = {key: body[key] for key in counted}
        # It sends what this client has no parameters for.
        own = {key: body.pop(key) for key in ("temperature", "context_management")}
        body.pop("stream")
        with client.messages.stream(**body, extra_body=own) as stream:
            message = stream.get_final_message()
        assert message.stop_reason in ("end_turn", "max_tokens", "tool_use")
        usage = message.usage
        counted = client.messages.count_tokens(**counted).input_tokens
        assert counted == usage.input_tokens + usage.cache_read_input_tokens
    assert usage.cache_read_input_tokens > usage.input_tokens


@call("A-02", "A-31")
def codex(place):
    client = openai.OpenAI(base_url=f"{place.url}/v1", api_key="none", max_retries=0)
    for body in requests("codex"):
        own = {"client_metadata": body.pop("client_metadata")}
        body["max_output_tokens"] = 20
        events = list(client.responses.create(**body, extra_body=own))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[-1].type in ("response.completed", "response.incomplete")
    usage = events[-1].response.usage
    assert usage.input_tokens_details.cached_tokens > usage.input_tokens / 2


@call("A-02", "A-33")
def codex_calls_a_function_of_a_namespace(place):
    client = openai.OpenAI(base_url=f"{place.url}/v1", api_key="none", max_retries=0)
    body = next(requests("codex"))
    own = {"client_metadata": body.pop("client_metadata")}
    weather = {"type": "function", "namespace": "mcp__demo", "name": "weather"}
    body.update(tool_choice=weather, max_output_tokens=200)
    events = list(client.responses.create(**body, extra_body=own))
    item = events[-1].response.output[0]
    assert (item.type, item.namespace, item.name) == ("function_call", "mcp__demo", "weather")
    assert isinstance(json.loads(item.arguments)["city"], str)


@call("A-31", "A-33")
def opencode(place):
    assert chat(place, "opencode") > 100


@call("A-31", "A-33")
def cline(place):
    assert chat(place, "cline") > 100


@call("A-31", "A-33")
def qwen_code(place):
    assert chat(place, "qwen_code") > 100
