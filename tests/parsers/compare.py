"""What other parsers read in random answers, against what Krasis reads in them.

    cargo run --release -p krasis-text --example answers -- 4000 > answers.jsonl
    python compare.py harmony answers.jsonl
    python compare.py sglang answers.jsonl --wheel FILE

`harmony` is OpenAI's own parser of gpt-oss (`pip install openai-harmony litellm`; the second has the
vocabulary in it). `sglang` has parsers of all families; they are read from its wheel (`pip download
--no-deps sglang`), whose dependencies are not needed but for those in `requirements.txt`. What differs by
design is counted under its reason (`differences.py`); anything else ends the script.
"""

import argparse
import json
from collections import Counter

import differences


def peer_named(name, wheel):
    if name == "harmony":
        import harmony

        return harmony.read
    import sglang_parsers

    return sglang_parsers.reader(wheel)


def ours(line):
    """What Krasis read, as plain values."""
    calls = [(call["name"], value(call["arguments"])) for call in line["calls"]]
    return {"text": line["text"].strip(), "thoughts": line["reasoning"].strip(), "calls": calls}


def value(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("peer", choices=["harmony", "sglang"])
    arguments.add_argument("answers")
    arguments.add_argument("--wheel")
    arguments.add_argument("--show", type=int, default=5, help="so many of what is not explained")
    given = arguments.parse_args()
    read = peer_named(given.peer, given.wheel)
    counts, unexplained = Counter(), 0
    with open(given.answers, encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            theirs = read(line)
            if theirs is None:
                continue
            mine = ours(line)
            kind = f"{line['format']}, {line['origin']}"
            if mine == theirs:
                counts[f"{kind}: the same"] += 1
                continue
            reason = differences.reason(line, mine, theirs)
            counts[f"{kind}: {reason or 'NOT EXPLAINED'}"] += 1
            if reason is None:
                unexplained += 1
                if unexplained <= given.show:
                    print(f"{kind}\n  answer {line['answer']!r}\n  ours   {mine}\n  theirs {theirs}")
    for name, count in sorted(counts.items()):
        print(f"{count:6} {name}")
    same = sum(count for name, count in counts.items() if name.endswith("the same"))
    assert same > 0, "nothing was compared"
    assert unexplained == 0, f"{unexplained} answers are read differently, and nobody says why"


if __name__ == "__main__":
    main()
