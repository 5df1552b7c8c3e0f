"""The loglikelihood requests of lm-evaluation-harness, added up: what they say of a text is what
`krasis eval` says of it."""

import json
import math
import re
import subprocess

import httpx

DOCUMENTS = 20
BATCH = 5


def perplexity(url, krasis, root):
    """A-60, A-62, A-65."""
    file = root / "demo/heldout/text.jsonl"
    with open(file) as lines:
        documents = [json.loads(line)["ids"] for line, _ in zip(lines, range(DOCUMENTS))]
    total = count = 0
    for at in range(0, len(documents), BATCH):
        batch = documents[at : at + BATCH]
        request = {
            "model": "default", "prompt": batch, "temperature": 0, "max_tokens": 1, "logprobs": 1,
            "echo": True, "seed": 1234,
        }
        answer = httpx.post(f"{url}/v1/completions", json=request, timeout=300).json()
        for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
            ids, lists = batch[choice["index"]], choice["logprobs"]
            assert len(lists["token_logprobs"]) == len(lists["top_logprobs"]) == len(ids) + 1
            # As the harness slices: without the token that was written, from the first that has a
            # probability.
            logprobs = lists["token_logprobs"][1:-1]
            assert all(
                logprob in top.values()
                for logprob, top in zip(logprobs, lists["top_logprobs"][1:-1])
            )
            total, count = total + sum(logprobs), count + len(logprobs)
    through = math.exp(-total / count)
    command = [krasis, "eval", "--text", file, "--limit", str(DOCUMENTS)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    own = float(re.search(r"perplexity\D*([0-9.]+)", said).group(1))
    assert abs(through - own) < 1e-4 * own, (through, own)
    print(f"ok A-60 A-62 A-65 perplexity of {count} tokens: {through:.5f}, krasis eval {own}")
