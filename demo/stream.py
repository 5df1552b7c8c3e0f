"""Turns generated documents into rows of tokens: packing, loss weights, and the worker processes."""
import random

import numpy as np
from tokenizers import Tokenizer

from generate import HERE, Renderer, encode_document, training_document

ROW = 4096
ROWS = 16
# Loss weights, in tenths. The reply matters; the rest is learned lightly, so that the
# perplexity of whole documents means something too.
REPLY, PAST_REPLY, STORY, PROMPT = 10, 5, 4, 1


class Encoder:
    def __init__(self):
        self.tokenizer = Tokenizer.from_file(str(HERE / "model" / "tokenizer.json"))
        self.renderer = Renderer()
        token = self.tokenizer.token_to_id
        self.start, self.end = token("<|im_start|>"), token("<|im_end|>")
        self.assistant, self.think = token("assistant"), token("<think>")

    def training(self, rng):
        """(ids, weights) of one training document."""
        prompt, reply, kind = training_document(rng, self.renderer)
        before, after = encode_document(self.tokenizer, prompt, reply)
        weights = self.prompt_weights(before) + [STORY if kind == "prose" else REPLY] * len(after)
        weights[0] = 0
        return before + after, weights

    def prompt_weights(self, ids):
        """Earlier replies in the prompt count half: they are lessons about the same context.

        Not their first token: a reply of the past stands without its thinking, and would teach
        the model to skip it.
        """
        weights = [PROMPT] * len(ids)
        for i, token in enumerate(ids[:-3]):
            if token == self.start and ids[i + 1] == self.assistant and self.end in ids[i + 3:]:
                stop = ids.index(self.end, i + 3)
                weights[i + 3:stop + 1] = [0] + [PAST_REPLY] * (stop - i - 3)
        if ids[-4:-3] == [self.think]:       # the blank that switches thinking off is the server's to write
            weights[-3] = 0
        return weights


def pack(documents):
    """First-fit packing of (ids, weights) into rows: (tokens, weights, document numbers)."""
    rows, room = [], []
    for doc in sorted(documents, key=lambda d: -len(d[0])):
        size = len(doc[0])
        at = next((i for i, left in enumerate(room) if left >= size), None)
        if at is None:
            rows.append([])
            room.append(ROW)
            at = len(rows) - 1
        rows[at].append(doc)
        room[at] -= size
    tokens = np.zeros((len(rows), ROW), np.uint16)
    weights = np.zeros((len(rows), ROW), np.uint8)
    numbers = np.full((len(rows), ROW), -1, np.int16)
    for r, row in enumerate(rows):
        at = 0
        for number, (ids, weight) in enumerate(row):
            span = slice(at, at + len(ids))
            tokens[r, span], weights[r, span], numbers[r, span] = ids, weight, number
            at += len(ids)
    return tokens, weights, numbers


def produce(queue, seed):
    """Worker process: fills the queue with batches of ROWS rows for ever."""
    rng, encoder = random.Random(seed), Encoder()
    held = None
    while True:
        documents, total = [], 0
        while total < 2 * ROWS * ROW:
            document = encoder.training(rng)
            if len(document[0]) <= ROW:
                documents.append(document)
                total += len(document[0])
        packed = pack(documents)
        order = np.random.default_rng(rng.getrandbits(32)).permutation(len(packed[0]))
        packed = tuple(part[order] for part in packed)
        if held is not None:
            packed = tuple(np.concatenate(pair) for pair in zip(held, packed))
        while len(packed[0]) >= ROWS:
            queue.put(tuple(part[:ROWS] for part in packed))
            packed = tuple(part[ROWS:] for part in packed)
        held = packed
