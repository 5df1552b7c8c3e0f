//! Causal multi-head latent attention, absorbed form (DeepSeek-V2, 2024):
//! `out[r, h] = Σ_j softmax_j(scale · (q[r, h]·c[j] + q_rope[r, h]·k_rope[j])) · c[j]`.
//!
//! `c [latent]` is what a token keeps for all heads; `q` has been brought into the latent space and
//! `out` leaves it through [`crate::linear_heads`]. A token costs `latent + rope` numbers of cache.

use crate::attend::{Past, mix, scores, softmax};
use crate::cpu::Cpu;
use crate::linear::dot;
use crate::reference::Reference;
use crate::step::{KvStore, Seqs};
use krasis_core::{Act, Mat};
use krasis_cpu::Tiles;

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
    let (inputs, all) = d.arena.write(out.whole().floats());
    let tiles = Tiles::new(all, out.cols as usize);
    let (row_seq, positions) = (inputs.slice(seqs.row_seq), inputs.slice(seqs.positions));
    let pages = inputs.slice(seqs.pages);
    let (c_dim, k_dim) = (latent.dim as usize, rope.dim as usize);
    let heads = out.cols as usize / c_dim;
    // Heads in blocks: each block reads the past once, and few tokens still occupy all threads.
    const BLOCK: usize = 4;
    let blocks = heads.div_ceil(BLOCK);
    d.team.split(q.rows as usize * blocks, 1, |tasks| {
        let (mut latents, mut ropes) = (Past::new(latent, &inputs), Past::new(rope, &inputs));
        for task in tasks {
            let (row, first) = (task / blocks, task % blocks * BLOCK);
            let block = first..heads.min(first + BLOCK);
            let pages = &pages[(row_seq[row] * seqs.pages_max) as usize..];
            let len = positions[row] as usize + 1;
            let q = &inputs.row(q, row as u32)[block.start * c_dim..block.end * c_dim];
            let q_rope = &inputs.row(q_rope, row as u32)[block.start * k_dim..block.end * k_dim];
            // [head of the block, position]
            let mut weights = vec![0.0; block.len() * len];
            latents.each_block(pages, len, 0, |at, latents| {
                scores(latents, q, at, len, scale, &mut weights);
            });
            ropes.each_block(pages, len, 0, |at, keys| {
                scores(keys, q_rope, at, len, scale, &mut weights);
            });
            weights.chunks_exact_mut(len).for_each(softmax);
            // SAFETY: each task has its own row and heads.
            let mixed = unsafe { tiles.tile(row, block.start * c_dim..block.end * c_dim) };
            mixed.fill(0.0);
            latents.each_block(pages, len, 0, |at, latents| mix(latents, &weights, at, len, mixed));
        }
    });
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};
    use krasis_core::KvDtype;

    cases![latent_and_rotated_parts];

    fn latent_and_rotated_parts(on: &mut dyn Judge) {
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::F8E4M3] {
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
    }
}
