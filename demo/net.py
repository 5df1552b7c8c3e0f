"""The training network: HF's Qwen3Moe in a form that trains fast at this size, and its export.

All experts are computed for every token as one wide matrix product and those
outside the top k are multiplied by zero. At 16 experts of 128 channels that
wastes arithmetic but keeps the GPU on large dense products.
"""
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": None, "eos_token_id": 1531, "pad_token_id": 1529, "decoder_sparse_step": 1, "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 256, "initializer_range": 0.02, "intermediate_size": 512, "max_position_embeddings": 4096, "mlp_only_layers": [],
    "moe_intermediate_size": 128, "norm_topk_prob": True, "num_attention_heads": 8, "num_experts": 16, "num_experts_per_tok": 4,
    "num_hidden_layers": 6, "num_key_value_heads": 2, "output_router_logits": False, "rms_norm_eps": 1e-6, "rope_scaling": None,
    "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 1536,
}
GENERATION = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": [1531, 1529], "pad_token_id": 1529}

C = CONFIG
L, H, D, E, I = C["num_hidden_layers"], C["hidden_size"], C["head_dim"], C["num_experts"], C["moe_intermediate_size"]
NH, NKV, V, TOP = C["num_attention_heads"], C["num_key_value_heads"], C["vocab_size"], C["num_experts_per_tok"]
EPS = C["rms_norm_eps"]
GROUP = 128

# Parameter -> (shape of one layer, name in the checkpoint; "{e}" for one expert's part).
LAYER = {
    "n1": ((H,), "input_layernorm"), "n2": ((H,), "post_attention_layernorm"), "qn": ((D,), "self_attn.q_norm"), "kn": ((D,), "self_attn.k_norm"),
    "q": ((NH * D, H), "self_attn.q_proj"), "k": ((NKV * D, H), "self_attn.k_proj"), "v": ((NKV * D, H), "self_attn.v_proj"),
    "o": ((H, NH * D), "self_attn.o_proj"), "router": ((E, H), "mlp.gate"), "gate": ((E, I, H), "mlp.experts.{e}.gate_proj"),
    "up": ((E, I, H), "mlp.experts.{e}.up_proj"), "down": ((E, H, I), "mlp.experts.{e}.down_proj"),
}
EXPERTS = ("gate", "up", "down")
MATRICES = ("q", "k", "v", "o") + EXPERTS


def rms(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def layer(x, p, cos, sin, attend, dtype):
    """One block. x: [B, S, H] in float32; p: this layer's parameters. Also returns the balance loss."""
    b, s, _ = x.shape
    y = rms(x, p["n1"]).to(dtype)
    q = (y @ p["q"].to(dtype).T).view(b, s, NH, D).transpose(1, 2).float()
    k = (y @ p["k"].to(dtype).T).view(b, s, NKV, D).transpose(1, 2).float()
    v = (y @ p["v"].to(dtype).T).view(b, s, NKV, D).transpose(1, 2)
    q, k = rotate(rms(q, p["qn"]), cos, sin).to(dtype), rotate(rms(k, p["kn"]), cos, sin).to(dtype)
    y = attend(q, k, v).transpose(1, 2).reshape(b, s, NH * D)
    x = x + (y @ p["o"].to(dtype).T).float()

    y = rms(x, p["n2"])
    probs = (y @ p["router"].T).softmax(-1)
    chosen = probs >= probs.topk(TOP, -1).values[..., -1:]
    gates = probs * chosen
    gates = gates / gates.sum(-1, keepdim=True)
    balance = E * (chosen.float().mean((0, 1)) / TOP * probs.mean((0, 1))).sum()
    y = y.to(dtype)
    h = F.silu(y @ p["gate"].reshape(E * I, H).to(dtype).T) * (y @ p["up"].reshape(E * I, H).to(dtype).T)
    h = (h.view(b, s, E, I) * gates.to(dtype)[..., None]).view(b, s, E * I)
    return x + (h @ p["down"].transpose(1, 2).reshape(E * I, H).to(dtype)).float(), balance


def head_loss(x, norm, embed, targets, weights, dtype):
    """(weighted mean loss, per-token loss, arg max)."""
    logits = (rms(x, norm).to(dtype) @ embed.to(dtype).T).float()
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return (each * weights).sum() / weights.sum().clamp(min=1), each, logits.argmax(-1)


def fake_int4(w):
    """Symmetric INT4 in groups of GROUP along the input, with the gradient passed straight through."""
    groups = w.unflatten(-1, (-1, min(GROUP, w.shape[-1])))
    scale = groups.detach().abs().amax(-1, keepdim=True).clamp(min=1e-8) / 7
    rounded = (groups.detach() / scale).round().clamp(-8, 7) * scale
    return w + (rounded.flatten(-2) - w).detach()


class Net(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.embed = nn.Parameter(torch.randn(V, H) * 0.02)
        self.norm = nn.Parameter(torch.ones(H))
        for name, (shape, _) in LAYER.items():
            std = 0.02 / math.sqrt(2 * L) if name in ("o", "down") else 0.02
            start = torch.ones(L, *shape) if len(shape) == 1 else torch.randn(L, *shape) * std
            setattr(self, name, nn.Parameter(start))
        inverse = C["rope_theta"] ** (-torch.arange(0, D, 2).float() / D)
        angle = torch.outer(torch.arange(C["max_position_embeddings"]).float(), inverse).repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        self.layer, self.head = layer, head_loss      # train.py puts the compiled ones here

    def forward(self, tokens, targets, weights, attend, quantised=False):
        """(loss, balance loss, per-token loss, arg max)."""
        stacks = {n: getattr(self, n) for n in LAYER}
        if quantised:
            stacks.update({n: fake_int4(stacks[n]) for n in EXPERTS})
        parts = {n: s.unbind(0) for n, s in stacks.items()}
        s = tokens.shape[1]
        x, balance = F.embedding(tokens, self.embed), 0.0
        for i in range(L):
            x, b = self.layer(x, {n: part[i] for n, part in parts.items()}, self.cos[:s], self.sin[:s], attend, self.dtype)
            balance = balance + b / L
        loss, each, best = self.head(x, self.norm, self.embed, targets, weights, self.dtype)
        return loss, balance, each, best

    def tensors(self):
        """Checkpoint name -> tensor view of a parameter, in the hub's layout."""
        found = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm}
        for name, (_, hub) in LAYER.items():
            for i in range(L):
                part = getattr(self, name)[i]
                for e in range(E) if name in EXPERTS else [None]:
                    found[f"model.layers.{i}.{hub.format(e=e)}.weight"] = part if e is None else part[e]
        return found

    @torch.no_grad()
    def load(self, folder):
        from safetensors.torch import load_file
        saved = {}
        for shard in sorted(Path(folder).glob("*.safetensors")):
            saved.update(load_file(shard))
        for name, view in self.tensors().items():
            view.copy_(saved[name])

    @torch.no_grad()
    def export(self, folder):
        """Two shards of BF16 weights (each under 15 MB), the index and the two configs."""
        from safetensors.torch import save_file
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: t.detach().to("cpu", torch.bfloat16).contiguous() for n, t in self.tensors().items()}
        late = [f"model.layers.{i}." for i in range(L // 2, L)] + ["model.norm."]
        shards = [{}, {}]
        for name, tensor in tensors.items():
            shards[any(name.startswith(start) for start in late)][name] = tensor
        where = {}
        for i, shard in enumerate(shards):
            file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            where.update({name: file for name in shard})
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        for name, value in (("model.safetensors.index", index), ("config", CONFIG), ("generation_config", GENERATION)):
            (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
