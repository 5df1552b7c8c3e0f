"""LiteLLM, whose proxies stand between many agents and a server."""

import os

# It would fetch its price list.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402

from calls import call, refused  # noqa: E402

USER = [{"role": "user", "content": "What is 2 + 3?"}]
RAIN = [{"role": "user", "content": "Is it raining in Zagreb?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def options(place, provider="openai", **more):
    base = place.url if provider == "anthropic" else f"{place.url}/v1"
    common = {"temperature": 0, "max_tokens": 100, "max_retries": 0, "timeout": 120}
    model = f"{provider}/default"
    return {"model": model, "api_base": base, "api_key": "none", **common, **more}


@call("A-20", "A-22")
def completion(place):
    for provider in ("openai", "hosted_vllm"):
        answer = litellm.completion(messages=USER, **options(place, provider))
        assert "5" in answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 0


@call("A-30", "A-32")
def stream(place):
    whole = litellm.completion(messages=USER, **options(place))
    request = options(place, stream=True, stream_options={"include_usage": True})
    chunks = list(litellm.completion(messages=USER, **request))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    built = litellm.stream_chunk_builder(chunks, messages=USER)
    assert built.usage.completion_tokens == whole.usage.completion_tokens


@call("A-33")
def tools(place):
    request = options(place, tools=[WEATHER])
    whole = litellm.completion(messages=RAIN, **request).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.tool_calls[0].function.arguments == '{"city": "Zagreb"}'
    chunks = list(litellm.completion(messages=RAIN, stream=True, **request))
    built = litellm.stream_chunk_builder(chunks, messages=RAIN).choices[0]
    assert built.message.tool_calls[0].function.arguments == '{"city": "Zagreb"}'


@call("A-10", "A-11")
def unknown_fields_pass(place):
    request = options(place, "hosted_vllm", extra_body={"top_k": 5, "unheard_of": 1}, user="u")
    assert litellm.completion(messages=USER, **request).choices[0].message.content


@call("A-39")
def reasoning(place):
    body = {"chat_template_kwargs": {"enable_thinking": True}}
    sort = [{"role": "user", "content": "Sort alphabetically: know, door, eagle"}]
    message = litellm.completion(messages=sort, **options(place, extra_body=body)).choices[0].message
    assert message.content == "door, eagle, know" and message.reasoning_content


@call("A-23")
def logprobs(place):
    request = options(place, logprobs=True, top_logprobs=2)
    answer = litellm.completion(messages=USER, **request)
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens


@call("A-25")
def several_answers(place):
    answer = litellm.completion(messages=USER, **options(place, n=3, seed=1, temperature=1))
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


@call("A-01")
def text_completion(place):
    request = options(place, max_tokens=4)
    request["model"] = "text-completion-openai/default"
    answer = litellm.text_completion(prompt="one two three", **request)
    assert isinstance(answer.choices[0].text, str)


@call("A-02")
def responses(place):
    request = options(place)
    request["max_output_tokens"] = request.pop("max_tokens")
    answer = litellm.responses(input="What is 2 + 3?", **request)
    assert answer.status == "completed" and "5" in answer.output[-1].content[0].text


@call("A-02")
def responses_streamed(place):
    request = options(place, stream=True)
    request["max_output_tokens"] = request.pop("max_tokens")
    events = list(litellm.responses(input="What is 2 + 3?", **request))
    assert events[-1].type.value == "response.completed"
    assert "5" in events[-1].response.output[-1].content[0].text


@call("A-03")
def anthropic_messages(place):
    answer = litellm.completion(messages=USER, **options(place, "anthropic"))
    assert "5" in answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"


@call("A-03", "A-33")
def anthropic_tools(place):
    answer = litellm.completion(messages=RAIN, **options(place, "anthropic", tools=[WEATHER]))
    assert answer.choices[0].finish_reason == "tool_calls"
    chunks = litellm.completion(
        messages=RAIN, **options(place, "anthropic", tools=[WEATHER], stream=True)
    )
    built = litellm.stream_chunk_builder(list(chunks), messages=RAIN)
    assert built.choices[0].message.tool_calls[0].function.name == "get_weather"


@call("A-51")
def errors(place):
    wrong = options(place, temperature=3)
    error = refused(litellm.BadRequestError, litellm.completion, messages=USER, **wrong)
    assert "temperature" in str(error)
    nobody = {**options(place), "model": "openai/nobody"}
    refused(litellm.NotFoundError, litellm.completion, messages=USER, **nobody)
    long = [{"role": "user", "content": "word " * 20_000}]
    refused(litellm.BadRequestError, litellm.completion, messages=long, **options(place))
