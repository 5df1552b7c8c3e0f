"""OpenAI's own client with the Responses API, and the requests of Codex."""

import json

import openai

from calls import call, refused
from openai_calls import make

GREEDY = {"model": "default", "temperature": 0, "max_output_tokens": 200}
QUESTION = "What is 2 + 3?"
RAIN = "Is it raining in Zagreb?"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
    "strict": False,
}
RAINY = json.dumps({"temperature": -5, "condition": "rainy"})


def responses(place):
    return place.client(make).responses


@call("A-02", "A-22")
def create(place):
    answer = responses(place).create(input=QUESTION, **GREEDY)
    assert answer.status == "completed" and "5" in answer.output_text
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens_details.cached_tokens >= 0 and answer.error is None


@call("A-02", "A-30")
def stream(place):
    whole = responses(place).create(input=QUESTION, **GREEDY)
    events = list(responses(place).create(input=QUESTION, stream=True, **GREEDY))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    kinds = [event.type for event in events if not event.type.endswith("delta")]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed",
    ]


@call("A-02", "A-30")
def accumulated(place):
    with responses(place).stream(input=QUESTION, **GREEDY) as stream:
        for _ in stream:
            pass
        assert "5" in stream.get_final_response().output_text


@call("A-02", "A-14")
def instructions_and_items(place):
    talk = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": [{"type": "input_text", "text": "What is 4 + 4?"}]},
    ]
    answer = responses(place).create(input=talk, instructions="You are brief.", **GREEDY)
    assert "8" in answer.output_text and answer.instructions == "You are brief."


@call("A-02", "A-33")
def function_call(place):
    answer = responses(place).create(input=RAIN, tools=[WEATHER], **GREEDY)
    made = answer.output[-1]
    assert made.type == "function_call" and json.loads(made.arguments) == {"city": "Zagreb"}
    assert made.id.startswith("fc_") and made.call_id.startswith("call_")


@call("A-02", "A-33")
def function_call_streamed(place):
    events = list(responses(place).create(input=RAIN, tools=[WEATHER], stream=True, **GREEDY))
    kind = "response.function_call_arguments"
    arguments = "".join(event.delta for event in events if event.type == f"{kind}.delta")
    done = [event for event in events if event.type == f"{kind}.done"]
    assert arguments == done[0].arguments and json.loads(arguments) == {"city": "Zagreb"}


@call("A-02", "A-14")
def function_result_by_items(place):
    talk = [{"role": "user", "content": RAIN}]
    answer = responses(place).create(input=talk, tools=[WEATHER], store=False, **GREEDY)
    talk += answer.output
    call_id = answer.output[-1].call_id
    talk.append({"type": "function_call_output", "call_id": call_id, "output": RAINY})
    answer = responses(place).create(input=talk, tools=[WEATHER], store=False, **GREEDY)
    assert "-5" in answer.output_text


@call("A-02")
def function_result_by_previous_response(place):
    first = responses(place).create(input=RAIN, tools=[WEATHER], **GREEDY)
    result = [
        {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": RAINY}
    ]
    request = {"input": result, "previous_response_id": first.id, "tools": [WEATHER], **GREEDY}
    assert "-5" in responses(place).create(**request).output_text


@call("A-02")
def retrieve_and_delete(place):
    made = responses(place).create(input=QUESTION, **GREEDY)
    assert responses(place).retrieve(made.id).output_text == made.output_text
    responses(place).delete(made.id)
    refused(openai.NotFoundError, responses(place).retrieve, made.id)
    unkept = responses(place).create(input=QUESTION, store=False, **GREEDY)
    refused(openai.NotFoundError, responses(place).retrieve, unkept.id)


@call("A-39")
def reasoning(place):
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    request = {"input": "Sort alphabetically: know, door, eagle", "extra_body": thinking, **GREEDY}
    answer = responses(place).create(include=["reasoning.encrypted_content"], **request)
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].content[0].text and answer.output[0].encrypted_content
    assert answer.output_text == "door, eagle, know"
    assert answer.usage.output_tokens_details.reasoning_tokens > 0
    kinds = [event.type for event in responses(place).create(stream=True, **request)]
    assert "response.reasoning_text.delta" in kinds and "response.reasoning_text.done" in kinds


@call("A-21")
def incomplete(place):
    answer = responses(place).create(input=QUESTION, **{**GREEDY, "max_output_tokens": 1})
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"


@call("A-23")
def logprobs(place):
    include = ["message.output_text.logprobs"]
    answer = responses(place).create(input=QUESTION, include=include, top_logprobs=2, **GREEDY)
    entries = answer.output[0].content[0].logprobs
    assert entries and all(len(entry.top_logprobs) == 2 for entry in entries)


@call("A-02", "A-11")
def codex(place):
    """The request of Codex: its tools, its reminders, its probe."""
    developer = {"type": "message", "role": "developer",
                 "content": [{"type": "input_text", "text": "<permissions>none</permissions>"}]}
    user = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": RAIN}]}
    tools = [
        WEATHER,
        {"type": "web_search"},
        {"type": "namespace", "name": "mcp", "tools": [WEATHER]},
        {"type": "custom", "name": "apply_patch", "format": {"type": "text"}},
    ]
    body = {
        "prompt_cache_key": "k",
        "text": {"verbosity": "low"},
        "client_metadata": {"x": "y"},
        "reasoning": {"effort": "medium", "summary": "auto"},
    }
    events = list(
        responses(place).create(
            model="default", instructions="You are a coding agent.", input=[developer, user],
            tools=tools, tool_choice="auto", parallel_tool_calls=True, store=False, stream=True,
            include=["reasoning.encrypted_content"], extra_body=body,
            extra_headers={"originator": "codex_cli_rs", "session_id": "s"},
        )
    )
    assert events[-1].type in ("response.completed", "response.incomplete")
    probe = responses(place).create(model="default", input=[], max_output_tokens=1)
    assert probe.usage.output_tokens == 1
    assert place.client(make).models.list().models == []


@call("A-70")
def cursor(place):
    """A response's request at the chat's door."""
    body = {"model": "default", "input": [{"role": "user", "content": QUESTION}], "temperature": 0}
    tools = [WEATHER, {"type": "custom", "name": "edit"}]
    body |= {"tools": tools, "stream_options": {"include_usage": True}, "max_output_tokens": 40}
    client = place.client(make)
    stream = client.post(
        "/chat/completions", body={**body, "stream": True}, stream=True,
        cast_to=openai.types.chat.ChatCompletionChunk,
        stream_cls=openai.Stream[openai.types.chat.ChatCompletionChunk],
    )
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens > 0
    assert chunks[0].object == "chat.completion.chunk"


@call("A-12", "A-51")
def errors(place):
    def error(**request):
        create = responses(place).create
        return refused(openai.BadRequestError, create, **{"input": QUESTION, **GREEDY, **request})

    assert error(previous_response_id="resp_x").param == "previous_response_id"
    assert error(input="word " * 20_000).code == "context_length_exceeded"
    assert error(background=True).code == "unsupported_parameter"
    image = {"type": "input_image", "image_url": "data:,", "detail": "auto"}
    assert error(input=[{"role": "user", "content": [image]}]).param == "input[0].content[0]"
