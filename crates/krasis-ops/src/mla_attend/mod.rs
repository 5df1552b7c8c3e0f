//! Causal multi-head latent attention, absorbed form (DeepSeek-V2, 2024):
//! `out[r, h] = Σ_j softmax_j(scale · (q[r, h]·c[j] + q_rope[r, h]·k_rope[j])) · c[j]`.
//!
//! `c [latent]` is what a token keeps for all heads; `q` has been brought into the latent space and
//! `out` leaves it through [`crate::linear_heads`]. A token costs `latent + rope` numbers of cache.

use crate::attend::attend;
use crate::cpu::Cpu;
use crate::linear::dot;
use crate::reference::Reference;
use crate::step::{KvStore, Seqs};
use krasis_core::{Act, Mat};

pub(crate) fn reference(
    d: &mut Reference,
    q: Mat<Act>,
    q_rope: Mat<Act>,
    latent: &KvStore,
    rope: &KvStore,
    seqs: &Seqs,
    scale: f32,
    out: Mat<Act>,
) {
    let mut rows = Vec::new();
    for (row, (q, q_rope)) in d.rows(q).iter().zip(d.rows(q_rope)).enumerate() {
        let (past, past_rope) = (d.past(latent, seqs, row, 0), d.past(rope, seqs, row, 0));
        let heads = q.chunks_exact(latent.dim as usize).zip(q_rope.chunks_exact(rope.dim as usize));
        let mut mixed = Vec::new();
        for (q, q_rope) in heads {
            let score = |(c, k): (&Vec<f32>, &Vec<f32>)| scale * (dot(q, c) + dot(q_rope, k));
            mixed.extend(d.mix(past.iter().zip(&past_rope).map(score).collect(), &past));
        }
        rows.push(mixed);
    }
    d.put(out, &rows);
}

pub(crate) fn cpu(
    d: &mut Cpu,
    q: Mat<Act>,
    q_rope: Mat<Act>,
    latent: &KvStore,
    rope: &KvStore,
    seqs: &Seqs,
    scale: f32,
    out: Mat<Act>,
) {
    attend(d, &[(q, latent), (q_rope, rope)], latent, seqs, scale, out);
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};
    use krasis_core::KvDtype;

    cases![
        latent_and_rotated_parts,
        heads_in_tiles_and_parts,
        latents_of_models_in_steps_of_all_kinds,
    ];

    fn latent_and_rotated_parts(on: &mut dyn Judge) {
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::F8E4M3] {
            parts_in(on, dtype);
        }
    }

    pub(super) fn parts_in(on: &mut dyn Judge, dtype: KvDtype) {
        for (heads, latent, rotated) in [(1, 24, 6), (6, 24, 6), (11, 64, 16)] {
            let mut case = Case::new(10);
            let (seqs, tokens) = case.seqs(&[(2, 4), (33, 1)], 4);
            let (q, q_rope) = (case.act(5, heads * latent), case.act(5, heads * rotated));
            let out = case.blank(5, heads * latent);
            let latent = case.store(tokens, 1, latent, dtype, 4);
            let rope = case.store(tokens, 1, rotated, dtype, 4);
            case.agree(on, &[out], 1e-5, |ops| {
                ops.mla_attend(q, q_rope, &latent, &rope, &seqs, 0.8, out);
            });
        }
    }

    /// A row each over long and short pasts, few rows, many rows; scores are four wide.
    fn latents_of_models_in_steps_of_all_kinds(on: &mut dyn Judge) {
        let steps =
            [&[(400, 1)][..], &[(260, 1), (0, 1)], &[(150, 3), (0, 2)], &[(40, 20), (9, 9)]];
        for dtype in [KvDtype::Bf16, KvDtype::F8E4M3] {
            for (heads, parts) in [5, 16, 40, 64].into_iter().flat_map(|h| steps.map(|s| (h, s))) {
                let mut case = Case::new(32);
                let (seqs, tokens) = case.seqs(parts, 16);
                let rows = parts.iter().map(|(_, rows)| rows).sum();
                let (latent, rope) =
                    (case.store(tokens, 1, 512, dtype, 16), case.store(tokens, 1, 64, dtype, 16));
                let q = case.act(rows, heads * 512 + 1).cols(1, heads * 512);
                let q_rope = case.act(rows, heads * 64 + 8).cols(8, heads * 64);
                let out = case.blank(rows, heads * 512);
                case.agree(on, &[out], 1e-4, |ops| {
                    ops.mla_attend(q, q_rope, &latent, &rope, &seqs, 0.5, out);
                });
            }
        }
    }

    fn heads_in_tiles_and_parts(on: &mut dyn Judge) {
        for heads in [16, 40] {
            let mut case = Case::new(23);
            let (seqs, tokens) = case.seqs(&[(60, 9), (530, 2), (0, 3)], 16);
            let latent = case.store(tokens, 1, 72, KvDtype::F32, 16);
            let rope = case.store(tokens, 1, 8, KvDtype::F32, 16);
            let (q, q_rope) = (case.act(14, heads * 72), case.act(14, heads * 8));
            let out = case.blank(14, heads * 72);
            case.agree(on, &[out], 1e-5, |ops| {
                ops.mla_attend(q, q_rope, &latent, &rope, &seqs, 0.11, out);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Cpus;
    use krasis_core::KvDtype;

    /// Which GPUs do not have.
    #[test]
    fn latents_in_half_precision() {
        super::cases::parts_in(&mut Cpus, KvDtype::F16);
    }
}
