//! Multi-head latent attention: a token's cache is one vector for all heads.

use super::Step;
use crate::buffers::Buffers;
use crate::model::{Mla, Query};
use krasis_core::Weight;
use krasis_ops::{KvStore, Ops, Turns};

/// `b.normed` to `b.block`.
pub fn mla<O: Ops>(
    o: &mut O,
    m: &Mla<Weight>,
    latent_store: &KvStore,
    rope_store: &KvStore,
    s: &Step,
    b: &Buffers,
) {
    let h = m.heads;
    let queries = b.wide.mat(s.rows, h.query());
    match &m.query {
        Query::Direct(up) => o.linear(b.normed, up, None, queries),
        Query::LowRank { down, down_bias, norm, up, rank } => {
            let low = b.narrow.mat(s.rows, *rank);
            o.linear(b.normed, down, down_bias.as_ref(), low);
            o.head_norm(low, *rank, norm, m.eps);
            o.linear(low, up, None, queries);
        }
    }
    let q_nope = queries.cols(0, h.count * h.nope);
    let q_rope = queries.cols(h.count * h.nope, h.count * h.rope);

    let kept = b.narrow.mat(s.rows, h.latent + h.rope);
    let (latent, k_rope) = (kept.cols(0, h.latent), kept.cols(h.latent, h.rope));
    o.linear(b.normed, &m.kv_down, m.kv_down_bias.as_ref(), kept);
    let turns = Turns { freqs: m.rope.freqs, scale: m.rope.scale };
    let stores = [latent_store, rope_store];
    o.mla_heads(q_rope, [latent, k_rope], &m.kv_norm, m.eps, turns, stores, &s.seqs);

    // The queries are spent: values take their places, each head's its own query's if they are as long.
    let values = if h.value <= h.nope + h.rope {
        queries.cols(0, h.count * h.value)
    } else {
        b.wide.mat(s.rows, h.count * h.value)
    };
    let absorb = [&m.absorb_k, &m.absorb_v];
    let scratch = [b.middle.whole(), b.mixed.whole()];
    o.mla_mix([q_nope, q_rope], absorb, stores, &s.seqs, m.scale, scratch, values);
    o.linear(values, &m.out, m.out_bias.as_ref(), b.block);
}
