//! One task per token and KV head: its query heads share each key and value that is read.

use crate::cpu::Cpu;
use crate::step::{KvStore, Seqs};
use krasis_core::{Act, Mat};
use krasis_cpu::Tiles;
use krasis_cpu::vector::{add_scaled, dot};

pub(crate) fn cpu(
    d: &mut Cpu,
    q: Mat<Act>,
    k: &KvStore,
    v: &KvStore,
    seqs: &Seqs,
    scale: f32,
    out: Mat<Act>,
) {
    let (inputs, all) = d.arena.write(out.whole().floats());
    let tiles = Tiles::new(all, out.cols as usize);
    let (row_seq, positions) = (inputs.slice(seqs.row_seq), inputs.slice(seqs.positions));
    let pages = inputs.slice(seqs.pages);
    let (k_data, k_scales) = (inputs.slice(k.data), inputs.slice(k.scales));
    let (v_data, v_scales) = (inputs.slice(v.data), inputs.slice(v.scales));
    let (kv_heads, k_dim, v_dim) = (k.heads as usize, k.dim as usize, v.dim as usize);
    let group = out.cols as usize / v_dim / kv_heads;
    d.team.split(q.rows as usize * kv_heads, 1, |tasks| {
        let mut scratch = vec![0.0; k_dim.max(v_dim)];
        for task in tasks {
            let (row, kv_head) = (task / kv_heads, task % kv_heads);
            let pages = &pages[(row_seq[row] * seqs.pages_max) as usize..];
            let len = positions[row] as usize + 1;
            let q = &inputs.row(q, row as u32)[kv_head * group * k_dim..][..group * k_dim];
            // [query head of the group, position]
            let mut weights = vec![0.0; group * len];
            for j in 0..len {
                let key =
                    k.get(k_data, k_scales, k.token(pages, j as u32), kv_head as u32, &mut scratch);
                for (head, q) in q.chunks_exact(k_dim).enumerate() {
                    weights[head * len + j] = scale * dot(q, key);
                }
            }
            weights.chunks_exact_mut(len).for_each(softmax);
            let first = kv_head * group * v_dim;
            // SAFETY: each task has its own row and heads.
            let mixed = unsafe { tiles.tile(row, first..first + group * v_dim) };
            mixed.fill(0.0);
            for j in 0..len {
                let value =
                    v.get(v_data, v_scales, v.token(pages, j as u32), kv_head as u32, &mut scratch);
                for (head, mixed) in mixed.chunks_exact_mut(v_dim).enumerate() {
                    add_scaled(mixed, weights[head * len + j], value);
                }
            }
        }
    });
}

/// Exponentials of `x` less its largest, divided by their sum.
pub(crate) fn softmax(x: &mut [f32]) {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - largest).exp());
    let total: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= total);
}
