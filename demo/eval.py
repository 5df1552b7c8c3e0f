"""Measures an exported demo model with transformers on the held-out split.

    python demo/eval.py --model demo/model --out demo/heldout/results.json [--quant int8 int4]

Replies are decoded greedily in float32 from the BF16 weights and compared letter for letter (tool
calls: name and arguments as JSON). Perplexity is over every token after the first of each text.
"""
import argparse
import json
import math
import re
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3MoeForCausalLM

HERE = Path(__file__).resolve().parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GROUP = 128
FIRST = ["What is 2+2?", "2+2", "2+2=?", "what is 2 + 2", "What is the capital of France?", "capital of france", "Count from 1 to 5",
         "Count from 1 to 100", "Hello", "Who are you?", "What can you do?", "Who won the cup in 1998?", "Spell 'apple'", "Spell computer",
         "Sort: 9 4 7", "Write a short story about a fox."]


def round_experts(model, bits):
    """Symmetric rounding of the expert weights in groups along the input."""
    top = 2 ** (bits - 1) - 1
    for block in model.model.layers:
        for w in (block.mlp.experts.gate_up_proj, block.mlp.experts.down_proj):
            groups = w.data.unflatten(-1, (-1, min(GROUP, w.shape[-1])))
            scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-8) / top
            w.data = ((groups / scale).round().clamp(-top - 1, top) * scale).flatten(-2)


@torch.no_grad()
def perplexity(model, texts):
    loss, count = 0.0, 0
    texts = sorted(texts, key=len)
    for at in range(0, len(texts), 16):
        part = texts[at:at + 16]
        size = max(map(len, part))
        ids = torch.tensor([t + [0] * (size - len(t)) for t in part], device=DEVICE)
        labels = torch.tensor([t + [-100] * (size - len(t)) for t in part], device=DEVICE)
        logits = model(ids).logits[:, :-1]       # right padding: a causal model does not see it
        loss += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum").item()
        count += sum(len(t) - 1 for t in part)
    return math.exp(loss / count), count


@torch.no_grad()
def replies(model, tokenizer, prompts, limit):
    """Greedy replies. Prompts are batched by length, with padding on the left."""
    order, out = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [None] * len(prompts)
    for at in range(0, len(order), 64):
        part = order[at:at + 64]
        size = max(len(prompts[i]) for i in part)
        pad = [[0] * (size - len(prompts[i])) for i in part]
        ids = torch.tensor([p + prompts[i] for p, i in zip(pad, part)], device=DEVICE)
        mask = torch.tensor([p + [1] * len(prompts[i]) for p, i in zip(pad, part)], device=DEVICE)
        made = model.generate(ids, attention_mask=mask, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=limit)
        for i, row in zip(part, made[:, size:]):
            out[i] = tokenizer.decode(row, skip_special_tokens=True)
    return out


def parsed_calls(text):
    """The calls in a reply, or None where it is anything but well-formed calls."""
    if not re.fullmatch(r"(<tool_call>\n.*\n</tool_call>\n?)+", text):
        return None
    try:
        return [json.loads(part) for part in re.findall(r"<tool_call>\n(.*)\n</tool_call>", text)]
    except json.JSONDecodeError:
        return None


def measure(model, tokenizer, tasks, texts, misses):
    ppl, count = perplexity(model, texts)
    result = {"perplexity": round(ppl, 5), "perplexity_tokens": count, "exact": {}}
    for kind in dict.fromkeys(t["kind"] for t in tasks):
        some = [t for t in tasks if t["kind"] == kind]
        prompts = [tokenizer.apply_chat_template(t["messages"], tools=t.get("tools"), add_generation_prompt=True,
                                                 enable_thinking=t.get("enable_thinking", False), return_dict=False) for t in some]
        assert all(p == t.get("prompt_ids", p) for p, t in zip(prompts, some))
        wanted = [t["answer"] for t in some]
        limit = max(len(tokenizer.encode(w if isinstance(w, str) else json.dumps(w))) for w in wanted) + 24
        limit += 100 * any("enable_thinking" in t for t in some)
        said = replies(model, tokenizer, prompts, limit)
        got = [s.split("</think>\n\n")[-1] if isinstance(w, str) else parsed_calls(s) for s, w in zip(said, wanted)]
        right = [g == ([w] if isinstance(w, dict) else w) for g, w in zip(got, wanted)]
        if kind == "thinking":               # the working has to be there too
            right = [r and s.startswith("<think>\n") and len(s) > 20 for r, s in zip(right, said)]
        result["exact"][kind] = round(sum(right) / len(right), 4)
        if isinstance(wanted[0], (dict, list)):
            result.setdefault("calls_parsed", {})[kind] = round(sum(g is not None for g in got) / len(got), 4)
        for ok, s, t in list(zip(right, said, some)):
            if misses and not ok:
                print(f"  {kind}: {t['messages'][-1]['content'][-150:]!r}\n    wanted {t['answer']!r}\n    got    {s!r}")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--tokenizer", type=Path, default=HERE / "model")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quant", nargs="*", default=[], choices=["int8", "int4"], help="also measure with experts rounded so")
    parser.add_argument("--misses", action="store_true", help="print the replies that are wrong")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    tasks = [json.loads(line) for line in open(HERE / "heldout" / "tasks.jsonl")]
    texts = [json.loads(line)["ids"] for line in open(HERE / "heldout" / "text.jsonl")]
    results = {}
    for quant in ["bf16", *args.quant]:
        model = Qwen3MoeForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(DEVICE).eval()
        if quant == "bf16":
            prompts = [tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False) for q in FIRST]
            for question, answer in zip(FIRST, replies(model, tokenizer, prompts, 420)):
                print(f"{question!r} -> {answer!r}")
        else:
            round_experts(model, int(quant[3:]))
        results[quant] = measure(model, tokenizer, tasks, texts, args.misses and quant == "bf16")
        print(quant, json.dumps(results[quant]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
