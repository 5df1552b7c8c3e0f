"""Renders the templates beside this file with Jinja2, in the environment that transformers uses.

    python golden.py    # rewrites golden.json; needs jinja2 only

The conversations are in the shape that each template needs; the Rust test gives the OpenAI shape.
"""

import json
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent


class Generation(Extension):
    """`{% generation %}`: prints its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


USER = {"role": "user", "content": "  What's the weather in <Zürich> & \"Oslo\"? 🌦️ "}
SYSTEM = {"role": "system", "content": "Be brief."}
ARGUMENTS = {"city": "Zürich \"<Altstadt>\"", "days": 3, "exact": True, "at": [1.5, None]}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather & more",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "a 'city'"}},
            "required": ["city"],
        },
    },
}


def call(arguments, content=None):
    function = {"name": "weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }


RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "{\"sky\": \"grey\"}"}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nGrey. "}
CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, {"role": "user", "content": "Sure?"}],
    "late_system": [SYSTEM, USER, ANSWER, {"role": "system", "content": "7 left"}, USER],
    "call": [USER, call(ARGUMENTS), RESULT],
    "call_with_text": [USER, call(ARGUMENTS, "Let me look."), RESULT, ANSWER, USER],
    "empty_arguments": [USER, call({}), RESULT],
}


def golden():
    env = environment()
    for file in sorted(HERE.glob("*.jinja")):
        source = file.read_text()
        template = env.from_string(source)
        for name, conversation in CONVERSATIONS.items():
            messages = json.loads(json.dumps(conversation))
            for message in messages:
                for tool_call in message.get("tool_calls", []):
                    if file.stem == "string_arguments":
                        function = tool_call["function"]
                        function["arguments"] = json.dumps(
                            function["arguments"], ensure_ascii=False, separators=(",", ":")
                        )
                if file.stem == "xml_arguments" and message["content"] is None:
                    message["content"] = ""
            for tools, extra in [
                (None, {}),
                ([TOOL], {}),
                (None, {"enable_thinking": False}),
                (None, {"add_generation_prompt": False}),
            ]:
                variables = {"add_generation_prompt": True, **extra}
                row = {"template": file.stem, "conversation": name, "tools": tools, **variables}
                tokens = {"bos_token": "<s>", "eos_token": "</s>"}
                try:
                    row["text"] = template.render(
                        messages=messages, tools=tools, documents=None, **tokens, **variables
                    )
                except jinja2.exceptions.TemplateError as error:
                    row["error"] = str(error)
                yield row


def openai(conversation):
    """The same conversation as a client sends it."""
    messages = json.loads(json.dumps(conversation))
    for message in messages:
        for tool_call in message.get("tool_calls", []):
            function = tool_call["function"]
            function["arguments"] = json.dumps(
                function["arguments"], ensure_ascii=False, separators=(",", ":")
            )
    return messages


if __name__ == "__main__":
    conversations = {name: openai(messages) for name, messages in CONVERSATIONS.items()}
    data = {"conversations": conversations, "rows": list(golden())}
    (HERE / "golden.json").write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    print(len(data["rows"]), "rows,", sum("error" in row for row in data["rows"]), "errors")
