"""OpenAI's own Python client: chats, plain completions, evaluation, tools, reasoning."""

import json
import re
from functools import wraps
from typing import Literal

import httpx
import openai

from calls import call

USER = [{"role": "user", "content": "What is 2 + 3?"}]
GREEDY = {"model": "default", "temperature": 0, "max_tokens": 24}



def make(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def talking(*points):
    """A scripted call that needs the client alone."""

    def listed(function):
        @wraps(function)
        def called(place):
            return function(place.client(make))

        call(*points)(called)
        return function

    return listed


@talking("A-20", "A-22", "A-24")
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


@talking("A-30", "A-31", "A-32")
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


@talking("A-23")
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


@talking("A-10", "A-11", "A-14", "A-25")
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


@talking("A-15", "A-40")
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


@talking("A-60", "A-61", "A-62")
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


@talking("A-01", "A-08")
def models(client):
    listed = client.models.list().data
    assert listed[0].object == "model" and listed[0].max_model_len > 0
    assert client.models.retrieve(listed[0].id).id == listed[0].id


COLOR = {
    "type": "object",
    "properties": {
        "color": {"type": "string", "enum": ["red", "green"]},
        "parts": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 2},
    },
    "required": ["color", "parts"],
    "additionalProperties": False,
}


@talking("A-10", "A-12")
def structured(client):
    """Forms of answers, whatever the model would rather say."""
    free = {**GREEDY, "max_tokens": 200}

    def said(**request):
        choice = client.chat.completions.create(messages=USER, **{**free, **request}).choices[0]
        assert choice.finish_reason in ("stop", "length")
        return choice.message.content, choice.finish_reason

    def is_color(text):
        value = json.loads(text)
        assert list(value) == ["color", "parts"] and value["color"] in ("red", "green")
        assert len(value["parts"]) <= 2 and all(type(part) is int for part in value["parts"])

    schema = {"name": "color", "strict": True, "schema": COLOR}
    strict = {"type": "json_schema", "json_schema": schema}
    text, reason = said(response_format=strict)
    if reason == "stop":  # a model may write digits for ever
        is_color(text)
    chunks = client.chat.completions.create(
        messages=USER, response_format=strict, stream=True, logprobs=True, **free
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    text, reason = said(response_format={"type": "json_object"})
    assert text.startswith("{")
    if reason == "stop":
        assert isinstance(json.loads(text), dict)
    text, _ = said(extra_body={"structured_outputs": {"regex": "[0-9]{3}-[a-z]{2}"}})
    assert re.fullmatch("[0-9]{3}-[a-z]{2}", text), text
    assert said(extra_body={"guided_choice": ["left", "right"]})[0] in ("left", "right")
    lark = 'start: "(" /[a-z]/{3} ")"'
    assert re.fullmatch(r"\([a-z]{3}\)", said(extra_body={"guided_grammar": lark})[0])
    plain = client.completions.create(
        prompt="1 + 1 =", extra_body={"guided_regex": " [0-9]{2}"}, **free
    )
    assert re.fullmatch(" [0-9]{2}", plain.choices[0].text)
    # One token is cut off in time, and says so.
    assert said(response_format=strict, max_tokens=1)[1] == "length"
    several = client.chat.completions.create(
        messages=USER, n=3, seed=1, model="default", temperature=1,
        extra_body={"guided_choice": ["a", "b", "c"]},
    )
    assert all(choice.message.content in "abc" for choice in several.choices)
    for field, value in (
        ("guided_regex", "("),
        ("guided_json", {"type": "strung"}),
        ("structured_outputs", {"grammar": "start: nothing"}),
    ):
        try:
            said(extra_body={field: value})
            raise AssertionError(f"{field} {value} was accepted")
        except openai.BadRequestError as error:
            assert error.param.startswith(field), error.param


@talking("A-10", "A-33")
def structured_tools(client):
    """The client's own helper for types: strict tools, and an answer that is parsed."""
    import pydantic

    class Answer(pydantic.BaseModel):
        result: Literal[4, 5, 6]
        certain: bool

    parsed = client.chat.completions.parse(
        messages=USER, response_format=Answer, model="default", temperature=0, max_tokens=400
    )
    assert isinstance(parsed.choices[0].message.parsed, Answer)

    class GetWeather(pydantic.BaseModel):
        """Get the weather of a city."""

        city: str
        unit: Literal["celsius", "fahrenheit"]

    tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
    for choice in ("auto", "required"):
        message = client.chat.completions.parse(
            messages=RAIN, tools=[tool], tool_choice=choice, **CALLS
        ).choices[0].message
        assert isinstance(message.tool_calls[0].function.parsed_arguments, GetWeather)


@talking("A-07", "A-50", "A-51")
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


@talking("A-41")
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


@talking("A-10", "A-21", "A-34")
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


@talking("A-33", "A-34")
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


@talking("A-14")
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


@talking("A-10", "A-12")
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


@talking("A-39")
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


@talking("A-25")
def one_prefill(client):
    """All answers to a prompt share the pages that the first one filled."""

    def hits():
        text = httpx.get(str(client.base_url).removesuffix("v1/") + "metrics").text
        hits = [line for line in text.splitlines() if line.startswith("krasis:prefix_cache_hits")]
        return float(hits[0].split()[-1])

    long = [{"role": "user", "content": "Repeat after me: " + "eagle door know " * 60}]
    before = hits()
    answers = client.chat.completions.create(
        messages=long, model="default", n=4, temperature=1, seed=5, max_tokens=8
    )
    prompt = answers.usage.prompt_tokens
    assert prompt > 200 and len(answers.choices) == 4
    # Of each of the three others, all but the end of the last page.
    assert hits() - before >= 3 * (prompt - 17), (hits() - before, prompt)


@talking("A-25", "A-32")
def interleaved(client):
    """Streams of several answers at once, and each alone is what it is with its own seed."""
    request = {"messages": USER, "model": "default", "temperature": 1, "max_tokens": 16}
    options = {"include_usage": True}
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
        n=3, seed=11, stream=True, stream_options=options, **request
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    for sample, text in enumerate(texts):
        alone = client.chat.completions.create(seed=11 + sample, **request)
        assert alone.choices[0].message.content == text, sample


@talking("A-04", "A-63")
def tokens(client):
    """The routes that lm-evaluation-harness looks for."""
    root = client.with_options(base_url=str(client.base_url).removesuffix("v1/"))

    def post(path, **body):
        return root.post(path, body=body, cast_to=object)

    ids = post("/tokenize", prompt="one two", add_special_tokens=False)["tokens"]
    assert post("/detokenize", tokens=ids)["prompt"] == "one two"
    info = root.get("/tokenizer_info", cast_to=object)
    assert {"eos_token", "bos_token", "pad_token", "chat_template"} <= info.keys()


@talking("A-64")
def generate_until(client):
    """As lm-evaluation-harness asks, a key too many in each message."""
    message = {"role": "user", "content": "What is 2 + 3?", "type": "text"}
    answer = client.chat.completions.create(
        messages=[message], model="default", max_tokens=20, temperature=0, seed=1234,
        stop=["\n\n", "Q:", "</s>"],
    )
    assert "5" in answer.choices[0].message.content
    ids = client.completions.create(
        prompt=["one two", "three four"] * 8, model="default", max_tokens=4, temperature=0,
        stop=["\n"], seed=1234,
    )
    assert [choice.index for choice in ids.choices] == list(range(16))
    assert ids.choices[0].text == ids.choices[2].text


@talking("A-13")
def nulls_are_absent(client):
    silent = dict.fromkeys(["stop", "seed", "tools", "logit_bias", "response_format", "n"])
    answer = client.chat.completions.create(messages=USER, extra_body=silent, **GREEDY)
    assert "5" in answer.choices[0].message.content


@talking("A-36")
def line_separators_survive(client):
    text = "a\u2028b\u0085c"
    chunks = client.completions.create(
        model="default", prompt=text, echo=True, max_tokens=1, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks).startswith(text)


@talking("A-53")
def request_ids(client):
    raw = client.with_raw_response.models.list(extra_headers={"x-request-id": "mine-1"})
    assert raw.headers["x-request-id"] == "mine-1"
    assert client.with_raw_response.models.list().headers["x-request-id"]


@talking("A-05", "A-06")
def looks(client):
    root = client.with_options(base_url=str(client.base_url).removesuffix("v1/"))
    assert root.get("/health", cast_to=object)["status"] == "ok"
    assert root.get("/v1/status", cast_to=object)["model"]["names"]
    assert "/v1/messages" in root.get("/openapi.json", cast_to=object)["paths"]
    try:
        root.post("/chat/completions", body={}, cast_to=object)
        raise AssertionError("a path without /v1 was served")
    except openai.NotFoundError as error:
        assert "/v1/chat/completions" in error.message


OVERRIDES = ("--tool-parser", "none", "--reasoning-parser", "think", "--reasoning-field", "both")


def overridden(url):
    """Whoever serves has the last word about formats and fields."""
    client = make(url)
    text = client.chat.completions.create(messages=RAIN, tools=[WEATHER], **CALLS).choices[0]
    assert text.finish_reason == "stop" and text.message.content.startswith("<tool_call>")
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    message = client.chat.completions.create(messages=USER, extra_body=thinking, **CALLS)
    message = message.choices[0].message
    assert message.reasoning and message.reasoning == message.reasoning_content
    print("ok A-39 overridden")
