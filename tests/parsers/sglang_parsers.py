"""SGLang's parsers, out of its wheel: what they import besides is replaced by nothing."""

import importlib
import logging
import sys
import types
from typing import Optional

PARSERS = {
    "qwen3": ("qwen25_detector", "Qwen25Detector"),
    "qwen3_coder": ("qwen3_coder_detector", "Qwen3CoderDetector"),
    "glm4": ("glm4_moe_detector", "Glm4MoeDetector"),
    "deepseek_v3": ("deepseekv3_detector", "DeepSeekV3Detector"),
    "deepseek_v31": ("deepseekv31_detector", "DeepSeekV31Detector"),
    "kimi_k2": ("kimik2_detector", "KimiK2Detector"),
    "harmony": ("gpt_oss_detector", "GptOssDetector"),
}


class Anything:
    """Settings that are off, whichever they are."""

    def __getattr__(self, name):
        return self

    def get(self):
        return False


def stub(name, **members):
    module = types.ModuleType(name)
    module.__getattr__ = lambda member: type(member, (), {})
    vars(module).update(members)
    sys.modules[name] = module


def reader(wheel):
    """A function that reads a line as SGLang does."""
    import pydantic

    # It says of each malformed answer that it is one.
    logging.disable()

    class Function(pydantic.BaseModel):
        name: str
        description: Optional[str] = None
        parameters: Optional[dict] = None
        strict: bool = False

    class Tool(pydantic.BaseModel):
        type: str = "function"
        function: Function

    # The packages' own beginnings import all of the server.
    for name in ("sglang", "sglang.srt", "sglang.srt.utils"):
        package = types.ModuleType(name)
        package.__path__ = [f"{wheel}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    stub("sglang.srt.entrypoints.openai.protocol", Tool=Tool, Function=Function)
    stub("sglang.srt.environ", envs=Anything())
    stub("sglang.srt.parser.beam")
    stub("transformers")
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    def read(line):
        from compare import value

        # It leaves out calls of functions that it was not given, so changed answers, in which the
        # names are changed as well, have all that could be meant.
        tools = [Tool(**tool) for tool in line["tools"]]
        names = {tool["function"]["name"] for tool in line["tools"]}
        for call in line["calls"]:
            if call["name"] not in names:
                names.add(call["name"])
                tools.append(Tool(function=Function(name=call["name"])))
        module, parser = PARSERS[line["format"]]
        parser = getattr(importlib.import_module(f"sglang.srt.function_call.{module}"), parser)()
        kind = "gpt-oss" if line["format"] == "harmony" else "qwen3"
        answer = line["answer"]
        if kind == "gpt-oss":
            answer = "<|start|>assistant" + answer
        thoughts, answer = ReasoningParser(kind, stream_reasoning=False).parse_non_stream(answer)
        found = parser.detect_and_parse(answer or "", tools)
        calls = [(call.name, value(call.parameters)) for call in found.calls]
        text = (found.normal_text or "").strip()
        return {"text": text, "thoughts": (thoughts or "").strip(), "calls": calls}

    return read
