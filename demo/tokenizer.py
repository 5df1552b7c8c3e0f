"""Trains the demo model's byte-level BPE tokenizer and writes it, with the chat template, into demo/model/.

    python demo/tokenizer.py
"""
import json
import random
import shutil
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from generate import Renderer, training_document

HERE = Path(__file__).resolve().parent
VOCAB = 1536
DOCUMENTS = 12_000
# Words with their leading space, single digits, runs of marks, line ends, blanks.
SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Not "special": decoding that drops control tokens has to keep these in the text.
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]


def build():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(t, special=True, normalized=False) for t in CONTROL] + [AddedToken(t, special=False, normalized=False) for t in MARKS]

    def corpus():
        rng, renderer = random.Random(7), Renderer()
        for _ in range(DOCUMENTS):
            prompt, reply, _ = training_document(rng, renderer)
            text = (prompt or "")[:3000] + reply
            for token in CONTROL + MARKS:      # their letters must not become merges
                text = text.replace(token, "\n")
            yield text

    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=VOCAB - len(added), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_tokens(added)
    return tokenizer, added


def main():
    out = HERE / "model"
    out.mkdir(exist_ok=True)
    tokenizer, added = build()
    assert tokenizer.get_vocab_size() == VOCAB
    tokenizer.save(str(out / "tokenizer.json"))
    shutil.copy(HERE / "chat_template.jinja", out / "chat_template.jinja")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096, "clean_up_tokenization_spaces": False,
        "add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "added_tokens_decoder": {str(tokenizer.token_to_id(t.content)): {
            "content": t.content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": t.special} for t in added},
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
