"""Trains the demo model on one GPU for a fixed number of minutes and exports it in the hub's layout.

    python demo/train.py --minutes 8 --out OUT [--init demo/model] [--peak 3e-3]

Documents are generated while the GPU trains, so almost every batch is new. The rate is
constant, then falls to zero over the last half; in the last 30 % every other step sees the
experts rounded to INT4, so that the finished model loses little when it is served so.
"""
import argparse
import json
import math
import multiprocessing as mp
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from generate import HERE, encode_document
from longtasks import call_text
from net import MATRICES, Net, layer
from stream import REPLY, ROW, ROWS, Encoder, pack, produce

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made near-orthogonal by Newton-Schulz steps, for stacks of matrices."""

    def __init__(self, params, decay=0.05):
        super().__init__(params, {"lr": 0.0, "decay": decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                m = state["m"].lerp_(p.grad, 0.05)
                update = orthogonal(p.grad.lerp(m, 0.95).view(-1, *p.shape[-2:]))
                p.mul_(1 - group["lr"] * group["decay"])
                # 0.2 * sqrt(max side) gives the update the size of Adam's, so both share a rate.
                p.add_(update.view_as(p), alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape[-2:])))


def orthogonal(g):
    x = g.to(torch.bfloat16 if CUDA else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).to(g.dtype)


class Masks:
    """Causal attention inside each document of a packed row."""

    def __init__(self):
        if CUDA:
            # One buffer and one rule for all batches, so that nothing is compiled again.
            numbers = self.numbers = torch.zeros(ROWS, ROW, dtype=torch.int16, device=DEVICE)
            self.make = torch.compile(create_block_mask, dynamic=False)
            self.rule = lambda b, h, q, k: (q >= k) & (numbers[b, q] == numbers[b, k])

    def __call__(self, numbers):
        if CUDA:
            self.numbers.copy_(numbers)
            return self.make(self.rule, ROWS, None, ROW, ROW, device=DEVICE)
        causal = torch.ones(numbers.shape[1], numbers.shape[1], dtype=torch.bool).tril()
        return (causal & (numbers[:, :, None] == numbers[:, None]))[:, None]


def masked_layer(x, p, cos, sin, mask, dtype):
    """The network's layer with its attention bound to a mask argument, so that it is compiled once."""
    if CUDA:
        attend = lambda q, k, v: flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    else:
        attend = lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return layer(x, p, cos, sin, attend, dtype)


class Feed:
    """Batches from the workers; when they fall behind, an old batch is used again."""

    def __init__(self, workers, seed):
        context = mp.get_context("spawn")
        self.queue = context.Queue(maxsize=4 * workers)
        self.workers = [context.Process(target=produce, args=(self.queue, f"{seed}-{i}"), daemon=True) for i in range(workers)]
        for worker in self.workers:
            worker.start()
        self.old, self.fresh, self.reused = [], 0, 0

    def next(self):
        if len(self.old) < 200 or not self.queue.empty():
            batch = self.queue.get()
            self.fresh += 1
            if len(self.old) < 4000:
                self.old.append(batch)
            else:
                self.old[random.randrange(4000)] = batch
            return batch
        self.reused += 1
        return random.choice(self.old)

    def stop(self):
        for worker in self.workers:
            worker.terminate()


def to_device(batch):
    tokens, weights, numbers = (torch.from_numpy(part.astype(kind)).to(DEVICE, non_blocking=True)
                                for part, kind in zip(batch, (np.int64, np.float32, np.int16)))
    targets = tokens.roll(-1, 1)
    weights = weights.roll(-1, 1) / REPLY
    weights[:, -1] = 0
    return tokens, targets, weights, numbers


def heldout_batches():
    """The held-out tasks and texts packed as batches, with what each document is."""
    encoder = Encoder()
    tasks, texts = [], []
    for line in open(HERE / "heldout" / "tasks.jsonl"):
        task = json.loads(line)
        if "enable_thinking" in task:        # its reply is not known letter for letter: eval.py measures it
            continue
        prompt = encoder.renderer.prompt({**task, "thinking": False})
        answer = task["answer"]
        if not isinstance(answer, str):
            answer = "\n".join(call_text(call) for call in (answer if isinstance(answer, list) else [answer]))
        before, after = encode_document(encoder.tokenizer, prompt, answer)
        tasks.append((before + after, [0] * len(before) + [REPLY] * len(after), task["kind"]))
    for line in open(HERE / "heldout" / "text.jsonl"):
        ids = json.loads(line)["ids"]
        texts.append((ids, [0] + [REPLY] * (len(ids) - 1), "text"))
    for kind in [*dict.fromkeys(t[2] for t in tasks), "text"]:
        packed = pack([doc[:2] for doc in tasks + texts if doc[2] == kind])
        for at in range(0, len(packed[0]), ROWS):
            rows = [part[at:at + ROWS] for part in packed]
            lacking = ROWS - len(rows[0])
            yield kind, tuple(np.concatenate([part, np.zeros((lacking, ROW), part.dtype)]) for part in rows)


@torch.no_grad()
def heldout_scores(net, masks, batches, quantised=False):
    """Teacher-forced: the share of replies whose every token is the arg max (what greedy decoding gives), and perplexity."""
    right, total, loss, count = {}, {}, 0.0, 0.0
    for kind, batch in batches:
        tokens, targets, weights, numbers = to_device(batch)
        _, _, each, best = net(tokens, targets, weights, masks(numbers), quantised)
        if kind == "text":
            loss, count = loss + (each * weights).sum().item(), count + weights.sum().item()
            continue
        wrong = ((best != targets) & (weights > 0)).cpu().numpy()
        asked, numbers = (weights > 0).cpu().numpy(), batch[2]
        for r in range(ROWS):
            for n in np.unique(numbers[r][asked[r]]):
                total[kind] = total.get(kind, 0) + 1
                right[kind] = right.get(kind, 0) + (not wrong[r][numbers[r] == n].any())
    return {k: round(right[k] / total[k], 3) for k in total}, math.exp(loss / max(count, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="an exported model to go on from")
    parser.add_argument("--peak", type=float, default=3e-3, help="the learning rate before it falls")
    parser.add_argument("--fall", type=float, default=0.5, help="the share of the time in which the rate falls")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    args = parser.parse_args()
    begun = time.time()
    torch.manual_seed(args.seed)
    feed = Feed(args.workers, args.seed)
    batches = list(heldout_batches())
    net = Net(torch.bfloat16 if CUDA else torch.float32).to(DEVICE)
    if args.init:
        net.load(args.init)
    net.layer = masked_layer
    if CUDA:
        torch.set_float32_matmul_precision("high")
        net.layer, net.head = torch.compile(net.layer, dynamic=False), torch.compile(net.head, dynamic=False)
    masks = Masks()
    matrices = [getattr(net, n) for n in MATRICES]
    rest = [p for p in net.parameters() if not any(p is m for m in matrices)]
    optimizers = [Muon(matrices), torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=CUDA)]
    print(f"{sum(p.numel() for p in net.parameters())} parameters, {args.workers} workers", flush=True)

    step, shown, mean, balances = 0, begun, 0.0, 0.0
    while (done := (time.time() - begun) / (60 * args.minutes)) < 1 and step < args.steps:
        tokens, targets, weights, numbers = to_device(feed.next())
        quantised = done > 0.7 and step % 2 == 1
        loss, balance, _, _ = net(tokens, targets, weights, masks(numbers), quantised)
        (loss + 0.01 * balance).backward()
        rate = args.peak * min(1, (step + 1) / 200) * min(1, max(0.01, (1 - done) / args.fall))
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0:       # also keeps the host from running far ahead of the GPU
            mean, balances = loss.item(), balance.item()
        if step == 1:
            print(f"first step after {time.time() - begun:.0f} s", flush=True)
        if time.time() - shown > 40:
            shown = time.time()
            exact, ppl = heldout_scores(net, masks, batches)
            print(f"{shown - begun:.0f} s, step {step}, loss {mean:.4f}, balance {balances:.3f}, rate {rate:.5f}, fresh {feed.fresh}, "
                  f"reused {feed.reused}, ppl {ppl:.4f}, {exact}", flush=True)
    feed.stop()
    net.export(args.out)
    for quantised in (False, True):
        exact, ppl = heldout_scores(net, masks, batches, quantised)
        print(f"end: step {step}, int4 experts {quantised}, ppl {ppl:.4f}, {exact}", flush=True)


if __name__ == "__main__":
    main()
