"""LangChain's OpenAI client, in the ways of its chains and agents."""

import json

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

from calls import call

QUESTION = "What is 2 + 3?"
RAIN = "Is it raining in Zagreb?"


def model(place, **more):
    options = {"model": "default", "temperature": 0, "max_tokens": 100, **more}
    return ChatOpenAI(base_url=f"{place.url}/v1", api_key="none", max_retries=0, **options)


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return json.dumps({"temperature": -5, "condition": "rainy", "city": city})


@call("A-20", "A-22")
def invoke(place):
    answer = model(place).invoke([SystemMessage("You are brief."), HumanMessage(QUESTION)])
    assert "5" in answer.content and answer.response_metadata["finish_reason"] == "stop"
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


@call("A-30", "A-32")
def stream(place):
    whole = model(place).invoke(QUESTION)
    chunks = list(model(place, stream_usage=True).stream(QUESTION))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.content == whole.content
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


@call("A-33")
def bound_tools(place):
    answer = model(place).bind_tools([get_weather]).invoke(RAIN)
    assert [call["name"] for call in answer.tool_calls] == ["get_weather"]
    assert answer.tool_calls[0]["args"] == {"city": "Zagreb"} and not answer.invalid_tool_calls


@call("A-33")
def streamed_tools(place):
    chunks = list(model(place).bind_tools([get_weather]).stream(RAIN))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.tool_calls[0]["args"] == {"city": "Zagreb"}
    assert all(part["index"] == 0 for chunk in chunks for part in chunk.tool_call_chunks)


@call("A-14")
def tool_loop(place):
    bound = model(place).bind_tools([get_weather])
    history = [HumanMessage(RAIN)]
    history.append(bound.invoke(history))
    for made in history[-1].tool_calls:
        history.append(ToolMessage(get_weather.invoke(made["args"]), tool_call_id=made["id"]))
    assert "-5" in bound.invoke(history).content


@call("A-10")
def demanded_tool(place):
    for choice in ("any", "get_weather"):
        answer = model(place).bind_tools([get_weather], tool_choice=choice).invoke(RAIN)
        assert answer.tool_calls[0]["name"] == "get_weather"


@call("A-10")
def structured_output_by_tool(place):
    schema = {
        "title": "get_weather",
        "description": "Get the weather of a city.",
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    }
    chain = model(place).with_structured_output(schema, method="function_calling")
    assert chain.invoke(RAIN) == {"city": "Zagreb"}


@call("A-23")
def logprobs(place):
    answer = model(place, logprobs=True, top_logprobs=2).invoke(QUESTION)
    content = answer.response_metadata["logprobs"]["content"]
    assert len(content) == answer.usage_metadata["output_tokens"]
    assert all(len(token["top_logprobs"]) == 2 for token in content)


@call("A-10", "A-25")
def several_answers(place):
    result = model(place, n=2, seed=7, temperature=1).generate([[HumanMessage(QUESTION)]])
    assert len(result.generations[0]) == 2


@call("A-10", "A-40")
def stop(place):
    assert model(place).invoke(QUESTION, stop=["5"]).content.find("5") == -1


@call("A-64")
def batch(place):
    answers = model(place).batch([QUESTION] * 4, config={"max_concurrency": 4})
    assert len({answer.content for answer in answers}) == 1


@call("A-01", "A-15")
def plain_completion(place):
    plain = OpenAI(
        base_url=f"{place.url}/v1", api_key="none", model="default", temperature=0, max_tokens=4
    )
    assert isinstance(plain.invoke("one two three"), str)
    assert "".join(plain.stream("one two three")) == plain.invoke("one two three")


@call("A-02")
def responses(place):
    answer = model(place, use_responses_api=True, output_version="responses/v1").invoke(QUESTION)
    assert "5" in answer.text and answer.id.startswith(("resp_", "msg_"))
    assert answer.usage_metadata["output_tokens"] > 0


@call("A-02", "A-33")
def responses_streamed_with_tools(place):
    bound = model(place, use_responses_api=True, output_version="responses/v1")
    chunks = list(bound.bind_tools([get_weather]).stream(RAIN))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.tool_calls[0]["args"] == {"city": "Zagreb"}


@call("A-02")
def responses_continued(place):
    bound = model(place, use_responses_api=True, output_version="responses/v1")
    bound = bound.bind_tools([get_weather])
    first = bound.invoke(RAIN)
    made = first.tool_calls[0]
    told = ToolMessage(get_weather.invoke(made["args"]), tool_call_id=made["id"])
    by_id = bound.invoke([told], previous_response_id=first.response_metadata["id"])
    by_history = bound.invoke([HumanMessage(RAIN), first, told])
    assert "-5" in by_id.text and by_id.text == by_history.text


@call("A-14")
def history(place):
    talk = [HumanMessage(QUESTION), AIMessage("5"), HumanMessage("What is 4 + 4?")]
    assert "8" in model(place).invoke(talk).content
