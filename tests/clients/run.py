"""Drives `krasis serve` with the clients that people use: what they cannot read, nobody can.

    pip install -r requirements.txt
    python run.py [--krasis target/release/krasis]

All calls go to one server with the demo model, which knows tools and reasoning. Each names the
points that it holds of the list of API conventions (A-01 to A-70) that the server was made by.
"""

import argparse
import time
from pathlib import Path

import calls
import evaluation
import openai_calls
from served import served

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    "openai_calls", "responses_calls", "anthropic_calls", "langchain_calls", "litellm_calls",
    "agent_calls",
]
CALLS_MIN = 60


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--krasis", default=ROOT / "target/release/krasis", type=Path)
    krasis = arguments.parse_args().krasis
    began = time.monotonic()
    with served(krasis) as url:
        count = calls.run(url, MODULES)
        assert count >= CALLS_MIN, f"{count} calls are less than the promised {CALLS_MIN}"
        evaluation.perplexity(url, krasis, ROOT)
    with served(krasis, *openai_calls.OVERRIDES) as url:
        openai_calls.overridden(url)
    print(f"ok {count} calls in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
