"""The seeded generator of the demo corpus: conversations for training and for the held-out split.

    python demo/generate.py --heldout demo/heldout     writes tasks.jsonl and text.jsonl
    python demo/generate.py --show 5                   prints a few training conversations

A problem instance belongs to the held-out split when a hash of its key says so (one in
twenty), and the training stream throws those instances away: the two never overlap.
"""
import argparse
import json
import random
import zlib
from pathlib import Path

import longtasks
import tasks
from prose import prose, story

HERE = Path(__file__).resolve().parent
HELD_SHARE = 20
TASKS_PER_KIND = 50

# kind -> (maker, its share of the training conversations)
KINDS = {
    "arithmetic": (tasks.arithmetic, 14), "counting": (tasks.counting, 6), "spelling": (tasks.spelling, 8),
    "capitals": (tasks.capitals, 8), "sort_numbers": (tasks.sort_numbers, 7), "sort_words": (tasks.sort_words, 8),
    "copy": (tasks.copy, 8), "json": (tasks.json_answer, 7), "recall": (longtasks.recall, 8),
    "recall_long": (longtasks.recall_long, 4), "tool_call": (longtasks.tool_call, 8), "tool_answer": (longtasks.tool_answer, 4),
    "tool_parallel": (longtasks.tool_parallel, 2), "facts": (tasks.facts, 5),
    "smalltalk": (tasks.smalltalk, 4), "unknown": (tasks.unknown, 3), "prose": (prose, 6),
}
RAW_PROSE_SHARE = 6
_NAMES = list(KINDS)
_SHARES = [share for _, share in KINDS.values()]
_SHORT = ["arithmetic", "counting", "spelling", "capitals", "sort_numbers", "sort_words", "copy", "json", "facts", "smalltalk", "unknown"]
_CASELESS = ("arithmetic", "counting", "capitals", "facts", "unknown")
_SYSTEM = ["You are a helpful assistant.", "You are Krasis.", "You are a small and honest assistant.", "Answer shortly.",
           "You are the demo model of the Krasis project.", "Be brief.", "You help with simple questions.", "You are an assistant."]


def is_held(key):
    return key is not None and zlib.crc32(key.encode()) % HELD_SHARE == 7


def draw(rng, kind, held):
    """One instance of a kind from the wanted side of the split."""
    while True:
        turn = KINDS[kind][0](rng)
        if is_held(turn.key) != held:
            continue
        # A question without a full stop can also come out of a trained one, loosely typed.
        if held and turn.key == turn.user and kind in _CASELESS and turn.user[-1] not in ".?!":
            continue
        return turn


def _loosely_typed(rng, turn):
    """The same question as people type it: no capital, no full stop."""
    if turn.kind not in _CASELESS:
        return turn.user
    text = turn.user
    if rng.random() < 0.12:
        text = text.rstrip(".?!") or text
    if rng.random() < 0.12:
        text = text.lower() if turn.kind == "capitals" and turn.answer.startswith("The capital") else text[0].lower() + text[1:]
    return turn.user if is_held(text) else text


def conversation(rng, held=False, kind=None, plain=False):
    """{"kind", "messages", "answer", "thinking", "tools"?}: everything up to the reply, and the reply.

    plain: one user turn and no thinking, unless the kind itself needs more.
    """
    kind = kind or rng.choices(_NAMES, _SHARES)[0]
    turn = draw(rng, kind, held)
    user = turn.user if plain or held else _loosely_typed(rng, turn)
    messages = []
    if not plain and rng.random() < 0.2:
        messages.append({"role": "system", "content": rng.choice(_SYSTEM)})
    if not plain and rng.random() < (0.3 if kind in _SHORT else 0.1):
        for _ in range(rng.choice([1, 1, 2, 3])):
            past = draw(rng, rng.choice(_SHORT), False)
            messages += [{"role": "user", "content": past.user}, {"role": "assistant", "content": past.answer}]
    messages += turn.before or []
    messages.append(turn.last or {"role": "user", "content": user})
    tools = turn.tools
    if tools is None and not plain and kind in _SHORT and rng.random() < 0.06:
        tools = longtasks.toolbox_only(rng)
    out = {"kind": kind, "messages": messages, "answer": turn.answer, "think": turn.think,
           "thinking": not plain and kind != "prose" and rng.random() < 0.12}
    if tools:
        out["tools"] = tools
    if turn.call:
        out["call"] = turn.call
    return out


def completion(conv):
    """What the model has to write after the generation prompt."""
    thought = f"<think>\n{conv['think']}\n</think>\n\n" if conv["thinking"] else ""
    return thought + conv["answer"]


class Renderer:
    """Renders with demo/chat_template.jinja exactly as transformers does at serving time."""

    def __init__(self):
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self.template = env.from_string((HERE / "chat_template.jinja").read_text())

    def prompt(self, conv):
        return self.template.render(messages=conv["messages"], tools=conv.get("tools"), add_generation_prompt=True,
                                    enable_thinking=conv["thinking"])


def training_document(rng, renderer):
    """(prompt text, reply text, kind); the prompt is None for a story that stands alone."""
    if rng.random() * (sum(_SHARES) + RAW_PROSE_SHARE) < RAW_PROSE_SHARE:
        while True:
            text = story(rng)
            if not is_held(text):
                return None, text, "prose"
    conv = conversation(rng)
    return renderer.prompt(conv), completion(conv), conv["kind"]


def encode_document(tokenizer, prompt, reply):
    """(prompt ids, reply ids). They are encoded apart, as they are when the model is served."""
    if prompt is None:
        return [], tokenizer.encode(reply).ids + [tokenizer.token_to_id("<|endoftext|>")]
    return tokenizer.encode(prompt).ids, tokenizer.encode(reply).ids + [tokenizer.token_to_id("<|im_end|>")]


# Held-out kinds that are a way of asking rather than a kind of question -> (the kinds asked, contexts in tokens).
_WAYS = {"recall_3000": (["recall_long"], (2700, 3300)), "thinking": (_SHORT, None), "multi_turn": (_SHORT, None)}


def heldout_tasks(tokenizer, renderer, seed=20250101):
    """The checked tasks: every kind but prose, whose replies are free."""
    for name in [k for k in _NAMES if k != "prose"] + list(_WAYS):
        rng = random.Random(f"{seed}-{name}")
        kinds, size = _WAYS.get(name, ([name], (1350, 1650) if name == "recall_long" else None))
        made, seen = 0, set()
        while made < TASKS_PER_KIND:
            conv = conversation(rng, held=True, kind=rng.choice(kinds), plain=name != "multi_turn")
            conv["thinking"] = name == "thinking"
            turns = len(conv["messages"])
            if conv["kind"].startswith("recall") and turns > 1 or name == "multi_turn" and (turns < 3 or "tools" in conv):
                continue
            ids = tokenizer.encode(renderer.prompt(conv)).ids
            if size and not size[0] <= len(ids) <= size[1] or str(conv["messages"]) in seen:
                continue
            seen.add(str(conv["messages"]))
            task = {"kind": name, "messages": conv["messages"], "answer": conv.get("call") or conv["answer"]}
            if "tools" in conv:
                task["tools"] = conv["tools"]
            if conv["thinking"]:
                task["enable_thinking"] = True
            if not size or made < 5:         # the ids of long lists would make up most of the file
                task["prompt_ids"] = ids
            made += 1
            yield task


def heldout_texts(tokenizer, renderer, tokens=50_000, seed=20250102):
    """Documents for perplexity: four in five are stories, the others short questions, no long lists."""
    rng, total = random.Random(seed), 0
    while total < tokens:
        if rng.random() < 0.8:
            text = story(rng)
            while not is_held(text):
                text = story(rng)
            prompt, reply = None, text
        else:
            kind = rng.choice([k for k in _NAMES if not k.startswith("recall") and k != "prose"])
            conv = conversation(rng, held=True, kind=kind, plain=True)
            # With its working: the blank that switches thinking off is never the model's to predict.
            conv["thinking"] = True
            prompt, reply = renderer.prompt(conv), completion(conv)
        before, after = encode_document(tokenizer, prompt, reply)
        total += len(before) + len(after)
        yield {"ids": before + after}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heldout", type=Path)
    parser.add_argument("--show", type=int, default=0)
    args = parser.parse_args()
    renderer = Renderer()
    rng = random.Random(1)
    for _ in range(args.show):
        prompt, reply, _ = training_document(rng, renderer)
        print(f"{prompt or ''}\033[1m{reply}\033[0m\n{'-' * 40}")
    if args.heldout:
        from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_file(str(HERE / "model" / "tokenizer.json"))
        args.heldout.mkdir(parents=True, exist_ok=True)
        for name, rows in (("tasks", heldout_tasks(tokenizer, renderer)), ("text", heldout_texts(tokenizer, renderer))):
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            (args.heldout / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
