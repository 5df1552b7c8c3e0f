"""What other parsers read differently by design.

Answers as templates write them are read alike, but for two things. Krasis takes markers within a value
for a part of the value, as files and searches need them: the value ends where its JSON or its tag says
so. And an answer that is malformed is read as well as may be, by everybody in another way.
"""

import json
import re

# A call in each format, behind the first line break; what is JSON in it is a group.
CALLS = {
    "qwen3": r"\n?<tool_call>\n(\{.*?\})\n</tool_call>",
    "qwen3_coder": r"\n?<tool_call>\n<function=\w+>\n(?:<parameter=\w+>\n(?:(?!<parameter=).)*?\n</parameter>\n)*"
    r"</function>\n</tool_call>",
    "glm4": r"\n?<tool_call>\w+\n(?:<arg_key>\w+</arg_key>\n<arg_value>.*?</arg_value>\n)*</tool_call>",
    "deepseek_v3": r"<｜tool▁call▁begin｜>function<｜tool▁sep｜>\w+\n```json\n(\{.*?\})\n```<｜tool▁call▁end｜>\n",
    "deepseek_v31": r"<｜tool▁call▁begin｜>\w+<｜tool▁sep｜>(\{.*?\})<｜tool▁call▁end｜>",
    "kimi_k2": r"<\|tool_call_begin\|>functions\.\w+:\d+<\|tool_call_argument_begin\|>(\{.*?\})<\|tool_call_end\|>",
    "harmony": r"<\|channel\|>commentary to=functions\.\w+ <\|constrain\|>json<\|message\|>(\{.*?\})<\|call\|>",
}
SECTIONS = {
    "deepseek_v3": ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    "deepseek_v31": ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    "kimi_k2": ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
}
THOUGHT = r"\A<think>\n(?:(?!<think>|</think>).)*\n</think>\n\n"
MESSAGE = r"<\|channel\|>(?:analysis|commentary|final)<\|message\|>(?:(?!<\||\|>).)*<\|end\|>"
SCRAP = re.compile(
    r"think>|tool_call|call>|function|parameter|arg_key|arg_value|<\||\|>|｜|```|\"name\"|"
    r"assistant|analysis|commentary"
)


def well_formed(line):
    """Whether an answer is one that its template could have written."""
    kind, rest = line["format"], line["answer"]
    sound = True

    def taken(call):
        nonlocal sound
        for text in call.groups():
            sound = sound and is_object(text)
        return ""

    rest = re.sub(CALLS[kind], taken, rest, flags=re.DOTALL)
    if kind == "harmony":
        rest = re.sub(MESSAGE, "", rest, flags=re.DOTALL).replace("<|start|>assistant", "")
        return sound and rest == ""
    if kind in SECTIONS:
        begin, end = SECTIONS[kind]
        rest = rest.removesuffix(begin + end) if "call" in line["answer"] else rest
    rest = re.sub(THOUGHT, "", rest, flags=re.DOTALL)
    return sound and not SCRAP.search(rest)


def is_object(text):
    def once(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    try:
        return isinstance(json.loads(text, object_pairs_hook=once), dict)
    except (ValueError, AssertionError):
        return False


def marked(mine):
    """Whether a value holds what is a marker elsewhere."""
    return any(SCRAP.search(json.dumps(value, ensure_ascii=False)) for _, value in mine["calls"])


def told_types(calls):
    """Calls in which a text that is JSON is what it says: SGLang guesses where no schema tells."""

    def told(value):
        try:
            return json.loads(value)
        except (TypeError, ValueError):
            return value

    return [
        (name, {key: told(value) for key, value in given.items()})
        for name, given in calls
        if isinstance(given, dict)
    ]


RULES = [
    ("a marker within a value is a part of it here", lambda line, mine, theirs: marked(mine)),
    ("malformed", lambda line, mine, theirs: not well_formed(line)),
    (
        "what is no call is text here, and lost there",
        lambda line, mine, theirs: mine["calls"] == theirs["calls"]
        and mine["text"].startswith(theirs["text"]),
    ),
    (
        "a value without a schema is a text here, and guessed there",
        lambda line, mine, theirs: not line["tools"]
        and told_types(mine["calls"]) == told_types(theirs["calls"]),
    ),
]


def reason(line, mine, theirs):
    """Why an answer is read differently; `None` if nobody knows."""
    return next((sentence for sentence, holds in RULES if holds(line, mine, theirs)), None)
