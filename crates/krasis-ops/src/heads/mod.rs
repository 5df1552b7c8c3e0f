//! What lies between projections and attention, a call for each kind of attention: norms, rotation,
//! and the way into the cache. Here from the small operations; a GPU does it in one launch.
//!
//! Queries are changed in place. Keys, values and latents go to their stores; what is left of them in
//! the projection is nobody's.

use crate::{KvStore, Ops, Seqs};
use krasis_core::{Act, Mat, Weight};

/// Rotation of a layer's heads, see [`crate::rope`].
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    /// Radians per position of each pair.
    pub freqs: Weight,
    /// Factor of cosine and sine.
    pub scale: f32,
}

/// [`Ops::gqa_heads`] from the small operations.
pub fn gqa<O: Ops + ?Sized>(
    o: &mut O,
    [q, k, v]: [Mat<Act>; 3],
    norms: Option<&[Weight; 2]>,
    eps: f32,
    turns: Turns,
    [k_store, v_store]: [&KvStore; 2],
    seqs: &Seqs,
) {
    let dim = k_store.dim;
    if let Some([q_norm, k_norm]) = norms {
        o.head_norm(q, dim, q_norm, eps);
        o.head_norm(k, dim, k_norm, eps);
    }
    o.rope(q, dim, &turns.freqs, turns.scale, seqs);
    o.rope(k, dim, &turns.freqs, turns.scale, seqs);
    o.kv_append(k, k_store, seqs);
    o.kv_append(v, v_store, seqs);
}

/// [`Ops::mla_heads`] from the small operations.
pub fn mla<O: Ops + ?Sized>(
    o: &mut O,
    q_rope: Mat<Act>,
    [latent, k_rope]: [Mat<Act>; 2],
    norm: &Weight,
    eps: f32,
    turns: Turns,
    [latent_store, rope_store]: [&KvStore; 2],
    seqs: &Seqs,
) {
    o.head_norm(latent, latent_store.dim, norm, eps);
    o.rope(q_rope, rope_store.dim, &turns.freqs, turns.scale, seqs);
    o.rope(k_rope, rope_store.dim, &turns.freqs, turns.scale, seqs);
    o.kv_append(latent, latent_store, seqs);
    o.kv_append(k_rope, rope_store, seqs);
}

pub(crate) mod cases {
    use super::Turns;
    use crate::testing::{Case, Judge};
    use krasis_core::KvDtype;

    cases![grouped_heads, latent_heads];

    const PARTS: [(u32, u32); 3] = [(3, 4), (0, 1), (977, 6)];

    /// What went into the cache shows in attention; heads of a warp's width, wider and odd ones.
    fn grouped_heads(on: &mut dyn Judge) {
        for (dtype, dim, half, normed) in [
            (KvDtype::F32, 16, 8, true),
            (KvDtype::Bf16, 10, 3, true),
            (KvDtype::F8E4M3, 128, 64, true),
            (KvDtype::Bf16, 256, 32, true),
            (KvDtype::Bf16, 128, 32, false),
        ] {
            let mut case = Case::new(31);
            let (seqs, tokens) = case.seqs(&PARTS, 4);
            let stores = [(); 2].map(|()| case.store(tokens, 2, dim, dtype, 4));
            let qkv = case.act(11, 10 * dim + 5);
            let mats = [(0, 6), (6, 2), (8, 2)].map(|(at, n)| qkv.cols(5 + at * dim, n * dim));
            let norms = [(); 2].map(|()| case.vector(dim));
            let turns = Turns { freqs: case.vector(half), scale: 1.25 };
            let out = case.blank(11, 6 * dim);
            case.agree(on, &[out, mats[0]], 2e-4, |ops| {
                let norms = normed.then_some(&norms);
                ops.gqa_heads(mats, norms, 1e-3, turns, [&stores[0], &stores[1]], &seqs);
                ops.attend(mats[0], &stores[0], &stores[1], &seqs, 0.1, out);
            });
        }
    }

    fn latent_heads(on: &mut dyn Judge) {
        for (dtype, latent, rope) in
            [(KvDtype::F32, 24, 8), (KvDtype::F8E4M3, 512, 64), (KvDtype::Bf16, 600, 10)]
        {
            let mut case = Case::new(32);
            let (seqs, tokens) = case.seqs(&PARTS, 4);
            let stores = [latent, rope].map(|dim| case.store(tokens, 1, dim, dtype, 4));
            let (all, q) = (case.act(11, 7 * rope + 3), case.act(11, 7 * latent));
            let (q_rope, kept) = (all.cols(3, 7 * rope), case.act(11, latent + rope));
            let kept = [kept.cols(0, latent), kept.cols(latent, rope)];
            let norm = case.vector(latent);
            let turns = Turns { freqs: case.vector(rope / 2), scale: 0.75 };
            let out = case.blank(11, 7 * latent);
            // A latent that was rounded before may be a step of FP8 off.
            let tolerance = if dtype == KvDtype::F8E4M3 { 0.06 } else { 2e-4 };
            case.agree(on, &[out, q_rope], tolerance, |ops| {
                let stores = [&stores[0], &stores[1]];
                ops.mla_heads(q_rope, kept, &norm, 1e-3, turns, stores, &seqs);
                ops.mla_attend(q, q_rope, stores[0], stores[1], &seqs, 0.05, out);
            });
        }
    }
}
