//! Grouped-query attention, with the options of Qwen3, GLM-4.5 and Qwen3-Next.

use super::Step;
use crate::buffers::Buffers;
use crate::model::Gqa;
use krasis_core::Weight;
use krasis_ops::{KvStore, Ops, Turns};

/// `b.normed` to `b.block`.
pub fn gqa<O: Ops>(
    o: &mut O,
    m: &Gqa<Weight>,
    eps: f32,
    k_store: &KvStore,
    v_store: &KvStore,
    s: &Step,
    b: &Buffers,
) {
    let (queries, keys) = (m.heads * m.dim, m.kv_heads * m.dim);
    let qkv = b.wide.mat(s.rows, m.qkv.rows);
    let (q, k, v) = (qkv.cols(0, queries), qkv.cols(queries, keys), qkv.cols(queries + keys, keys));
    let mixed = b.mixed.mat(s.rows, queries);

    o.linear(b.normed, &m.qkv, m.qkv_bias.as_ref(), qkv);
    let turns = Turns { freqs: m.rope.freqs, scale: m.rope.scale };
    o.gqa_heads([q, k, v], m.qk_norm.as_ref(), eps, turns, [k_store, v_store], &s.seqs);
    o.attend(q, k_store, v_store, &s.seqs, (m.dim as f32).powf(-0.5), mixed);
    if m.gated {
        o.sigmoid_gate(mixed, qkv.cols(queries + 2 * keys, queries));
    }
    o.linear(mixed, &m.out, m.out_bias.as_ref(), b.block);
}
