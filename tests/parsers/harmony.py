"""OpenAI's parser of gpt-oss's format."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

# Of o200k_base, as OpenAI publishes it: litellm has the file under another name.
VOCABULARY = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"


def encoding():
    import importlib.util

    root = Path(importlib.util.find_spec("litellm").origin).parent
    for file in (root / "litellm_core_utils/tokenizers").iterdir():
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == VOCABULARY:
            folder = tempfile.mkdtemp()
            shutil.copy(file, Path(folder) / "o200k_base.tiktoken")
            os.environ["TIKTOKEN_ENCODINGS_BASE"] = folder
            from openai_harmony import HarmonyEncodingName, load_harmony_encoding

            return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    raise AssertionError("this version of litellm has no vocabulary of gpt-oss")


ENCODING = encoding()


def read(line):
    """Nothing for other formats, and where the parser gives up."""
    if line["format"] != "harmony":
        return None
    from compare import value
    from openai_harmony import HarmonyError, Role

    tokens = ENCODING.encode(line["answer"], allowed_special="all")
    try:
        messages = ENCODING.parse_messages_from_completion_tokens(tokens, Role.ASSISTANT)
    except HarmonyError:
        return None
    text, thoughts, calls = "", "", []
    for message in messages:
        content = "".join(part.text for part in message.content)
        if (message.recipient or "").startswith("functions."):
            calls.append((message.recipient.removeprefix("functions."), value(content)))
        elif message.channel == "analysis":
            thoughts += content
        else:
            text += content
    return {"text": text.strip(), "thoughts": thoughts.strip(), "calls": calls}
