"""Drives `krasis serve` with OpenAI's own Python client: what it cannot read, its users cannot.

    pip install -r requirements.txt
    python openai_client.py [--krasis target/release/krasis] [--model-path DIR]

Knows nothing about the model but that it can chat: each check compares answers with each other.
Tools and reasoning are checked with the demo model, which knows how to use them.
"""

import argparse
import json
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import openai

ROOT = Path(__file__).resolve().parents[2]
USER = [{"role": "user", "content": "What is 2 + 3?"}]
GREEDY = {"model": "default", "temperature": 0, "max_tokens": 24}


def start(krasis, model_path, *options):
    """The process and its URL, once the model is ready."""
    ready = Path(tempfile.mkdtemp()) / "ready"
    command = [krasis, "serve", "--port", "0", "--ready-file", ready, *options]
    if model_path:
        command += ["--model-path", model_path]
    server = subprocess.Popen(command)
    for _ in range(1200):
        if ready.exists() and ready.read_text().endswith("\n"):
            return server, ready.read_text().strip()
        assert server.poll() is None, f"krasis serve ended with {server.returncode}"
        time.sleep(0.1)
    server.kill()
    raise AssertionError("krasis serve was not ready after two minutes")


def chat_blocking(client):
    answer = client.chat.completions.create(messages=USER, **GREEDY)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0
    again = client.chat.completions.create(messages=USER, **GREEDY)
    assert again.choices[0].message.content == choice.message.content


def chat_streaming(client):
    whole = client.chat.completions.create(messages=USER, **GREEDY)
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(messages=USER, stream=True, stream_options=options, **GREEDY)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    text = "".join(chunk.choices[0].delta.content for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1
    # The client's own accumulator.
    with client.chat.completions.stream(messages=USER, **GREEDY) as stream:
        try:
            final = stream.get_final_completion()
        except openai.LengthFinishReasonError as error:  # the helper's way of saying "length"
            final = error.completion
    assert final.choices[0].message.content == text


def chat_logprobs(client):
    answer = client.chat.completions.create(
        messages=USER, logprobs=True, top_logprobs=3, **GREEDY
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 3
        best = max(top.logprob for top in token.top_logprobs)
        assert token.logprob == best <= 0, "greedy takes the best"
        assert bytes(token.bytes).decode(errors="replace") == token.token


def chat_extras(client):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    history = USER + [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "5"},
    ]
    answer = client.chat.completions.create(
        messages=history,
        tools=[tool],
        tool_choice="auto",
        parallel_tool_calls=True,
        user="somebody",
        extra_body={"chat_template_kwargs": {"enable_thinking": False}, "top_k": 5, "stop": None},
        **GREEDY,
    )
    assert answer.usage.prompt_tokens > 0
    answers = client.chat.completions.create(
        messages=USER, n=2, seed=1, model="default", max_tokens=4, temperature=1
    )
    assert [choice.index for choice in answers.choices] == [0, 1]
    ids = client.chat.completions.create(
        messages=USER, extra_body={"return_token_ids": True}, **GREEDY
    )
    assert len(ids.prompt_token_ids) == ids.usage.prompt_tokens
    assert len(ids.choices[0].token_ids) == ids.usage.completion_tokens


def completions(client):
    ids = client.chat.completions.create(
        messages=USER, extra_body={"return_token_ids": True}, **GREEDY
    ).prompt_token_ids
    free = {**GREEDY, "extra_body": {"ignore_eos": True, "return_token_ids": True}}
    one = client.completions.create(prompt=ids, **free)
    assert one.choices[0].prompt_token_ids == ids
    assert one.usage.completion_tokens == 24 and one.choices[0].finish_reason == "length"

    chunks = list(client.completions.create(prompt=ids, stream=True, **free))
    assert "".join(chunk.choices[0].text for chunk in chunks) == one.choices[0].text
    streamed = [token for chunk in chunks for token in chunk.choices[0].token_ids]
    assert streamed == one.choices[0].token_ids

    # Text around the middle of the answer as a stop string: everything before its first place.
    text = one.choices[0].text
    stop = text[len(text) // 2 :][:3]
    cut = client.completions.create(prompt=ids, stop=[stop, "\0never\0"], **free)
    assert cut.choices[0].text == text[: text.find(stop)]
    assert cut.choices[0].finish_reason == "stop"
    chunks = client.completions.create(prompt=ids, stop=stop, stream=True, **free)
    assert "".join(chunk.choices[0].text for chunk in chunks) == cut.choices[0].text

    several = client.completions.create(
        model="default", prompt=[ids, ids[:3]], n=2, max_tokens=2, temperature=0
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    texts = client.completions.create(
        model="default", prompt=["Hello", "Goodbye"], echo=True, max_tokens=1
    )
    assert [choice.text.split("Hello")[0] for choice in texts.choices][0] == ""


def evaluation(client):
    """The request of lm-evaluation-harness."""
    prompt = client.completions.create(
        model="default", prompt="one two three", max_tokens=1,
        extra_body={"return_token_ids": True},
    ).choices[0].prompt_token_ids
    answer = client.completions.create(
        model="default", prompt=[prompt], echo=True, max_tokens=1, logprobs=1, temperature=0,
        seed=1234,
    )
    lists = answer.choices[0].logprobs
    assert len(lists.token_logprobs) == len(lists.top_logprobs) == len(prompt) + 1
    assert lists.token_logprobs[0] is None and lists.top_logprobs[0] is None
    for logprob, top in zip(lists.token_logprobs[1:], lists.top_logprobs[1:]):
        assert logprob in top.values() and logprob <= max(top.values()) <= 0
    assert lists.token_logprobs[-1] == max(lists.top_logprobs[-1].values()), "greedy"


def models(client):
    listed = client.models.list().data
    assert listed[0].object == "model" and listed[0].max_model_len > 0
    assert client.models.retrieve(listed[0].id).id == listed[0].id


def errors(client):
    def refused(kind, code, **request):
        try:
            client.chat.completions.create(**{"messages": USER, **GREEDY, **request})
        except kind as error:
            assert error.code == code, error.code
            return error
        raise AssertionError(f"{request} was accepted")

    refused(openai.NotFoundError, "model_not_found", model="gpt-4")
    error = refused(openai.BadRequestError, "invalid_value", temperature=3)
    assert error.param == "temperature"
    refused(openai.BadRequestError, "invalid_value", n=1000)
    long = [{"role": "user", "content": "word " * 100_000}]
    refused(openai.BadRequestError, "context_length_exceeded", messages=long)
    refused(openai.BadRequestError, "context_length_exceeded", max_tokens=10_000_000)
    try:
        client.embeddings.create(model="default", input="x")
    except openai.NotFoundError as error:
        assert error.code == "unsupported_endpoint"


def disconnect(client):
    """A client that leaves ends its request; the next one is served."""
    stream = client.chat.completions.create(
        messages=USER, model="default", stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    chat_blocking(client)


def function(name, description, **types):
    properties = {key: {"type": kind} for key, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(types)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


WEATHER = function("get_weather", "Get the weather of a city.", city="string")
TRANSLATE = function("translate", "Translate a text.", text="string", language="string")
RAIN = [{"role": "user", "content": "Is it raining in Zagreb?"}]
BOTH = [{"role": "user", "content": "Is it raining in Zagreb?\nWhat is 'bag' in French?"}]
CALLS = {"model": "default", "temperature": 0, "max_tokens": 200}


def told(calls):
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def streamed(client, **request):
    """The message that the client's own accumulator makes of a stream."""
    with client.chat.completions.stream(**request) as stream:
        for event in stream:
            if event.type == "chunk":
                for call in event.chunk.choices[0].delta.tool_calls or []:
                    assert isinstance(call.index, int)
        return stream.get_final_completion().choices[0]


def tools_blocking(client):
    answer = client.chat.completions.create(messages=RAIN, tools=[WEATHER], **CALLS)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert told(choice.message.tool_calls) == [("get_weather", {"city": "Zagreb"})]
    assert choice.message.tool_calls[0].type == "function"
    assert choice.message.tool_calls[0].id.startswith("call_")
    none = client.chat.completions.create(
        messages=RAIN, tools=[WEATHER], tool_choice="none", **CALLS
    )
    assert none.choices[0].message.tool_calls is None
    text = client.chat.completions.create(messages=USER, tools=[WEATHER], **CALLS).choices[0]
    assert text.finish_reason == "stop" and "5" in text.message.content
    cut = client.chat.completions.create(
        messages=RAIN, tools=[WEATHER], **{**CALLS, "max_tokens": 14}
    ).choices[0]
    assert cut.finish_reason == "length" and "<tool_call>" not in (cut.message.content or "")


def tools_streaming(client):
    for messages in (RAIN, BOTH):
        request = {"messages": messages, "tools": [WEATHER, TRANSLATE], **CALLS}
        whole = client.chat.completions.create(**request).choices[0]
        choice = streamed(client, **request)
        assert choice.finish_reason == whole.finish_reason == "tool_calls"
        assert told(choice.message.tool_calls) == told(whole.message.tool_calls)
        assert not choice.message.content
    assert len(choice.message.tool_calls) == 2
    assert len({call.id for call in choice.message.tool_calls}) == 2
    one = client.chat.completions.create(parallel_tool_calls=False, **request).choices[0]
    assert told(one.message.tool_calls) == told(whole.message.tool_calls)[:1]
    assert one.finish_reason == "tool_calls"


def tools_over_turns(client):
    """Results go back as the client's own objects, and answers refer to them."""
    messages = list(RAIN)
    choice = client.chat.completions.create(messages=messages, tools=[WEATHER], **CALLS).choices[0]
    messages.append(choice.message)
    call = choice.message.tool_calls[0]
    result = json.dumps({"temperature": -5, "condition": "rainy"})
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    request = {"messages": messages, "tools": [WEATHER], **CALLS}
    answer = client.chat.completions.create(**request)
    text = answer.choices[0].message.content
    assert "-5" in text and "rainy" in text and answer.choices[0].finish_reason == "stop"
    assert streamed(client, **request).message.content == text
    # The same conversation after a slip: arguments that are no JSON, ids that are gone.
    function = {"name": call.function.name, "arguments": call.function.arguments[:-2]}
    messages[1] = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}
    del messages[2]["tool_call_id"]
    again = client.chat.completions.create(**request)
    assert "-5" in again.choices[0].message.content
    messages[2]["tool_call_id"] = "never made"
    messages[1]["tool_calls"][0]["id"] = call.id
    try:
        client.chat.completions.create(**request)
        raise AssertionError("a result without a call was accepted")
    except openai.BadRequestError as error:
        assert error.param == "messages[2].tool_call_id"


def tools_demanded(client):
    request = {"messages": RAIN, "tools": [WEATHER, TRANSLATE], **CALLS}
    named = {"type": "function", "function": {"name": "translate"}}
    for choice, name in (("required", "get_weather"), (named, "translate")):
        whole = client.chat.completions.create(tool_choice=choice, **request).choices[0]
        assert whole.finish_reason == "tool_calls"
        assert whole.message.tool_calls[0].function.name == name
        json.loads(whole.message.tool_calls[0].function.arguments)
        stream = streamed(client, tool_choice=choice, **request)
        assert told(stream.message.tool_calls) == told(whole.message.tool_calls)
    absent = {"type": "function", "function": {"name": "absent"}}
    for bad in ({"tool_choice": absent}, {"tool_choice": "required", "tools": []}):
        try:
            client.chat.completions.create(**{**request, **bad})
            raise AssertionError(f"{bad} was accepted")
        except openai.BadRequestError as error:
            assert error.param == "tool_choice"


def reasoning(client):
    messages = [{"role": "user", "content": "Sort alphabetically: know, door, eagle"}]
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    request = {"messages": messages, "extra_body": thinking, **CALLS}
    whole = client.chat.completions.create(**request)
    message = whole.choices[0].message
    assert message.content == "door, eagle, know", message.content
    assert message.reasoning_content and "think>" not in message.reasoning_content
    details = whole.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(stream=True, **request))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    assert "".join(thoughts) == message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == message.content
    # Thoughts go back as they came, and without the switch there are none.
    plain = client.chat.completions.create(messages=messages + [message] + messages, **CALLS)
    assert getattr(plain.choices[0].message, "reasoning_content", None) is None
    assert plain.choices[0].message.content == message.content
    assert plain.usage.completion_tokens_details.reasoning_tokens == 0


DEMO_CHECKS = [tools_blocking, tools_streaming, tools_over_turns, tools_demanded, reasoning]

CHECKS = [
    chat_blocking, chat_streaming, chat_logprobs, chat_extras, completions, evaluation, models,
    errors, disconnect,
]


def overridden(krasis):
    """Whoever serves has the last word about formats and fields."""
    options = ("--tool-parser", "none", "--reasoning-parser", "think", "--reasoning-field", "both")
    with served(krasis, None, *options) as client:
        text = client.chat.completions.create(messages=RAIN, tools=[WEATHER], **CALLS).choices[0]
        assert text.finish_reason == "stop" and text.message.content.startswith("<tool_call>")
        thinking = {"chat_template_kwargs": {"enable_thinking": True}}
        message = client.chat.completions.create(messages=USER, extra_body=thinking, **CALLS)
        message = message.choices[0].message
        assert message.reasoning and message.reasoning == message.reasoning_content


@contextmanager
def served(krasis, model_path, *options):
    """A client of a server, which must end cleanly."""
    server, url = start(krasis, model_path, *options)
    try:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    assert code == 0, f"krasis serve ended with {code}"


def check(name, run, *arguments):
    began = time.monotonic()
    run(*arguments)
    print(f"ok {name} ({time.monotonic() - began:.1f} s)", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--krasis", default=ROOT / "target/release/krasis", type=Path)
    arguments.add_argument("--model-path", type=Path)
    arguments = arguments.parse_args()
    demo = arguments.model_path is None
    with served(arguments.krasis, arguments.model_path) as client:
        for run in CHECKS + (DEMO_CHECKS if demo else []):
            check(run.__name__, run, client)
    print("ok ended cleanly")
    if demo:
        check("overridden", overridden, arguments.krasis)


if __name__ == "__main__":
    main()
