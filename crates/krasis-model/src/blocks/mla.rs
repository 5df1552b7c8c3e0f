//! Multi-head latent attention in its absorbed form: attention runs in the latent space, so that a
//! token's cache is one vector for all heads.

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

    let q_latent = b.middle.mat(s.rows, h.count * h.latent);
    let mixed = b.mixed.mat(s.rows, h.count * h.latent);
    o.linear_heads(q_nope, &m.absorb_k, h.count, q_latent);
    o.mla_attend(q_latent, q_rope, latent_store, rope_store, &s.seqs, m.scale, mixed);
    // The queries are spent: their buffer takes the values.
    let values = b.wide.mat(s.rows, h.count * h.value);
    o.linear_heads(mixed, &m.absorb_v, h.count, values);
    o.linear(values, &m.out, m.out_bias.as_ref(), b.block);
}
