"""lm-evaluation-harness itself against the server: its loglikelihoods of held-out texts are those of
`krasis eval`, and its generation ends where it asks for it. Too large to install for `.ci/run`, which
has `evaluation.py` send the same requests.

    pip install "lm-eval[api]==0.4.13"
    python harness.py [--krasis target/release/krasis]
"""

import argparse
import json
import math
import re
import subprocess
from pathlib import Path

import requests
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

from served import served

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = 20


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split(":")[0])
    arguments.add_argument("--krasis", default=ROOT / "target/release/krasis", type=Path)
    krasis = arguments.parse_args().krasis
    file = ROOT / "demo/heldout/text.jsonl"
    with open(file) as lines:
        documents = [json.loads(line)["ids"] for line, _ in zip(lines, range(DOCUMENTS))]
    with served(krasis) as url:

        def text(ids):
            return requests.post(f"{url}/detokenize", json={"tokens": ids}).json()["prompt"]

        model = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions", model="default", tokenizer_backend="remote",
            batch_size=4, max_length=4096,
        )
        pairs = [(text(ids[:1]), text(ids[1:])) for ids in documents]
        asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
        total = sum(logprob for logprob, _ in model.loglikelihood(asked))
        prompt = "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
        options = {"until": ["<|im_end|>", "."], "max_gen_toks": 20}
        said = model.generate_until([Instance("generate_until", {}, (prompt, options), 0)])[0]
    assert "5" in said and "." not in said, said
    through = math.exp(-total / sum(len(ids) - 1 for ids in documents))
    command = [krasis, "eval", "--text", file, "--limit", str(DOCUMENTS)]
    own = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    own = float(re.search(r"perplexity\D*([0-9.]+)", own).group(1))
    assert abs(through - own) < 1e-4 * own, (through, own)
    print(f"ok perplexity of {DOCUMENTS} texts: {through:.5f}, krasis eval {own}")


if __name__ == "__main__":
    main()
