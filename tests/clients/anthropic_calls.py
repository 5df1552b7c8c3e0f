"""Anthropic's own client, as Claude Code and the agent SDKs use it."""

import json

import anthropic

from calls import call, refused

USER = [{"role": "user", "content": "What is 2 + 3?"}]
RAIN = [{"role": "user", "content": "Is it raining in Zagreb?"}]
SORT = [{"role": "user", "content": "Sort alphabetically: know, door, eagle"}]
WEATHER = {
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
# This client has no parameter for the temperature any more, but the API has.
GREEDY = {"model": "default", "max_tokens": 200, "extra_body": {"temperature": 0}}


def make(url):
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120)


def messages(place):
    return place.client(make).messages


def streamed(place, **request):
    with messages(place).stream(**{**GREEDY, **request}) as stream:
        names = [event.type for event in stream]
        return names, stream.get_final_message()


@call("A-03", "A-20")
def message(place):
    answer = messages(place).create(messages=USER, **GREEDY)
    assert answer.type == "message" and answer.role == "assistant"
    assert answer.content[0].type == "text" and "5" in answer.content[0].text
    assert answer.stop_reason == "end_turn" and answer.stop_sequence is None
    assert answer.id.startswith("msg_") and answer._request_id


@call("A-03", "A-30")
def stream(place):
    whole = messages(place).create(messages=USER, **GREEDY)
    names, message = streamed(place, messages=USER)
    assert message.content[0].text == whole.content[0].text
    assert message.stop_reason == whole.stop_reason
    assert names[0] == "message_start" and names[-1] == "message_stop"


@call("A-03", "A-31")
def raw_stream(place):
    events = list(messages(place).create(messages=USER, stream=True, **GREEDY))
    assert events[0].message.usage.input_tokens > 0
    kinds = [event.type for event in events]
    assert kinds.index("content_block_start") < kinds.index("content_block_delta")
    assert kinds.index("content_block_stop") < kinds.index("message_delta")


@call("A-22")
def usage(place):
    request = {"messages": USER, **GREEDY}
    messages(place).create(**request)
    again = messages(place).create(**request).usage
    total = again.input_tokens + again.cache_read_input_tokens
    assert total == messages(place).count_tokens(model="default", messages=USER).input_tokens
    assert again.output_tokens > 0 and again.cache_creation_input_tokens == 0
    _, message = streamed(place, **request)
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == total


@call("A-03")
def count_tokens(place):
    def count(**more):
        return messages(place).count_tokens(model="default", messages=USER, **more).input_tokens

    assert count() < count(system="You are brief.") < count(system="You are brief.", tools=[WEATHER])


@call("A-14")
def system_as_blocks(place):
    blocks = [
        {"type": "text", "text": "You are", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "a sage."},
    ]
    count = messages(place).count_tokens
    as_blocks = count(model="default", messages=USER, system=blocks).input_tokens
    as_text = count(model="default", messages=USER, system="You are\na sage.").input_tokens
    assert as_blocks == as_text


@call("A-03")
def agents_noise_keeps_the_prefix(place):
    long = "You help with code. " * 20

    def ask(hash):
        header = f"x-anthropic-billing-header: cc_version=2.1.177; cc_entrypoint=cli; cch={hash};"
        system = [{"type": "text", "text": header}, {"type": "text", "text": long}]
        return messages(place).create(messages=USER, system=system, **GREEDY).usage

    first, second = ask("36ee5"), ask("0aaa9")
    whole = second.input_tokens + second.cache_read_input_tokens
    assert first.input_tokens + first.cache_read_input_tokens == whole
    assert second.cache_read_input_tokens > whole - 32, second


@call("A-33")
def tool_use(place):
    answer = messages(place).create(messages=RAIN, tools=[WEATHER], **GREEDY)
    block = answer.content[-1]
    assert answer.stop_reason == "tool_use" and block.type == "tool_use"
    assert (block.name, block.input) == ("get_weather", {"city": "Zagreb"})


@call("A-33", "A-34")
def tool_use_streamed(place):
    names, message = streamed(place, messages=RAIN, tools=[WEATHER])
    block = message.content[-1]
    assert message.stop_reason == "tool_use" and block.input == {"city": "Zagreb"}
    assert "input_json" in names
    assert not any(block.type == "text" and "tool_call" in block.text for block in message.content)


@call("A-14")
def tool_result(place):
    history = list(RAIN)
    answer = messages(place).create(messages=history, tools=[WEATHER], **GREEDY)
    history.append({"role": "assistant", "content": answer.content})
    result = json.dumps({"temperature": -5, "condition": "rainy"})
    block = {"type": "tool_result", "tool_use_id": answer.content[-1].id}
    for content in (result, [{"type": "text", "text": result}]):
        told = {"role": "user", "content": [{**block, "content": content}]}
        final = messages(place).create(messages=history + [told], tools=[WEATHER], **GREEDY)
        assert "-5" in final.content[0].text and final.stop_reason == "end_turn"


@call("A-10")
def tool_choice(place):
    request = {"messages": USER, "tools": [WEATHER], **GREEDY}
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        answer = messages(place).create(tool_choice=choice, **request)
        assert answer.stop_reason in ("tool_use", "max_tokens")
        assert answer.content[-1].name == "get_weather"
    none = messages(place).create(tool_choice={"type": "none"}, **request)
    assert [block.type for block in none.content] == ["text"]


@call("A-39")
def thinking(place):
    on = {"type": "enabled", "budget_tokens": 1024}
    answer = messages(place).create(messages=SORT, thinking=on, **GREEDY)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking and answer.content[0].signature
    assert answer.content[1].text == "door, eagle, know"
    history = SORT + [{"role": "assistant", "content": answer.content}] + SORT
    again = messages(place).create(messages=history, thinking={"type": "disabled"}, **GREEDY)
    assert [block.type for block in again.content] == ["text"]


@call("A-39")
def thinking_streamed(place):
    names, message = streamed(place, messages=SORT, thinking={"type": "adaptive"})
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert "thinking" in names and "think>" not in message.content[0].thinking


@call("A-40", "A-21")
def stop_sequences(place):
    request = {"messages": USER, "stop_sequences": ["5"], **GREEDY}
    answer = messages(place).create(**request)
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "5")
    _, message = streamed(place, **request)
    assert message.stop_sequence == "5"
    assert [b.text for b in message.content] == [b.text for b in answer.content]


@call("A-21")
def max_tokens(place):
    answer = messages(place).create(messages=USER, **{**GREEDY, "max_tokens": 1})
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 1
    # What agents ask for is more than small contexts hold.
    answer = messages(place).create(messages=USER, **{**GREEDY, "max_tokens": 32_000})
    assert answer.stop_reason == "end_turn"


@call("A-15")
def prefill(place):
    history = USER + [{"role": "assistant", "content": "2 + 3 ="}]
    answer = messages(place).create(messages=history, **GREEDY)
    assert "5" in answer.content[0].text and "2 + 3" not in answer.content[0].text


@call("A-11", "A-13")
def what_claude_code_sends_besides(place):
    body = {
        "context_management": {"edits": []},
        "output_config": {"effort": "high"},
        "stop_sequences": None,
    }
    answer = place.client(make).beta.messages.create(
        messages=USER,
        betas=["claude-code-20250219", "interleaved-thinking-2025-05-14"],
        metadata={"user_id": "u"},
        extra_headers={"x-app": "cli", "anthropic-dangerous-direct-browser-access": "true"},
        **{**GREEDY, "extra_body": {**GREEDY["extra_body"], **body}},
    )
    assert "5" in answer.content[0].text


@call("A-51")
def bearer_token(place):
    client = anthropic.Anthropic(base_url=place.url, auth_token="none", max_retries=0)
    assert client.messages.create(messages=USER, **GREEDY).content


@call("A-08")
def models(place):
    listed = place.client(make).models.list().data
    assert listed[0].type == "model" and listed[0].display_name
    assert place.client(make).models.retrieve(listed[0].id).id == listed[0].id


@call("A-50", "A-51")
def errors(place):
    create = messages(place).create
    error = refused(anthropic.NotFoundError, create, messages=USER, **{**GREEDY, "model": "no"})
    assert error.body["error"]["type"] == "not_found_error"
    wrong = {**GREEDY, "extra_body": {"top_k": -9}}
    error = refused(anthropic.BadRequestError, create, messages=USER, **wrong)
    assert "top_k" in error.body["error"]["message"]
    long = [{"role": "user", "content": "word " * 20_000}]
    error = refused(anthropic.BadRequestError, create, messages=long, **GREEDY)
    assert "prompt is too long" in error.body["error"]["message"]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}
    image = [{"role": "user", "content": [image]}]
    refused(anthropic.BadRequestError, create, messages=image, **GREEDY)


@call("A-41")
def disconnect(place):
    stream = messages(place).create(messages=USER, stream=True, **GREEDY)
    next(iter(stream))
    stream.close()
    message(place)
