//! One task per token and KV head: its query heads share each key and value that is read.

use crate::cpu::Cpu;
use crate::step::{KvStore, Seqs};
use krasis_core::{Act, Mat};
use krasis_cpu::vector::{add_rows, dot, dot4};
use krasis_cpu::{Inputs, Tiles};

/// Positions that are read before any head uses them: their vectors stay in the first cache.
const BLOCK: usize = 16;

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
    let (kv_heads, k_dim, v_dim) = (k.heads as usize, k.dim as usize, v.dim as usize);
    let group = out.cols as usize / v_dim / kv_heads;
    d.team.split(q.rows as usize * kv_heads, 1, |tasks| {
        let (mut keys, mut values) = (Past::new(k, &inputs), Past::new(v, &inputs));
        for task in tasks {
            let (row, kv_head) = (task / kv_heads, task % kv_heads);
            let pages = &pages[(row_seq[row] * seqs.pages_max) as usize..];
            let len = positions[row] as usize + 1;
            let q = &inputs.row(q, row as u32)[kv_head * group * k_dim..][..group * k_dim];
            // [query head of the group, position]
            let mut weights = vec![0.0; group * len];
            keys.each_block(pages, len, kv_head as u32, |first, keys| {
                scores(keys, q, first, len, scale, &mut weights);
            });
            weights.chunks_exact_mut(len).for_each(softmax);
            let first = kv_head * group * v_dim;
            // SAFETY: each task has its own row and heads.
            let mixed = unsafe { tiles.tile(row, first..first + group * v_dim) };
            mixed.fill(0.0);
            values.each_block(pages, len, kv_head as u32, |first, values| {
                mix(values, &weights, first, len, mixed);
            });
        }
    });
}

/// `weights[h, first + i] = scale · q[h]·keys[i]`, four heads at a time.
pub(crate) fn scores(
    keys: &[&[f32]],
    q: &[f32],
    first: usize,
    len: usize,
    scale: f32,
    weights: &mut [f32],
) {
    let dim = keys[0].len();
    let fours = q.chunks_exact(4 * dim);
    let rest = fours.remainder();
    for (four, q) in fours.enumerate() {
        let heads = [&q[..dim], &q[dim..2 * dim], &q[2 * dim..3 * dim], &q[3 * dim..]];
        for (i, key) in keys.iter().enumerate() {
            let products = dot4(key, heads);
            for head in 0..4 {
                weights[(4 * four + head) * len + first + i] += scale * products[head];
            }
        }
    }
    let done = (q.len() - rest.len()) / dim;
    for (head, q) in rest.chunks_exact(dim).enumerate() {
        for (i, key) in keys.iter().enumerate() {
            weights[(done + head) * len + first + i] += scale * dot(key, q);
        }
    }
}

/// `mixed[h] += Σ_i weights[h, first + i] · values[i]`.
pub(crate) fn mix(values: &[&[f32]], weights: &[f32], first: usize, len: usize, mixed: &mut [f32]) {
    for (head, mixed) in mixed.chunks_exact_mut(values[0].len()).enumerate() {
        add_rows(mixed, &weights[head * len + first..][..values.len()], values);
    }
}

/// A store as a task reads it: a few positions at a time.
pub(crate) struct Past<'a> {
    store: &'a KvStore,
    data: &'a [u8],
    scales: &'a [f32],
    scratch: Vec<f32>,
}

impl<'a> Past<'a> {
    pub(crate) fn new(store: &'a KvStore, inputs: &Inputs<'a>) -> Past<'a> {
        let scratch = vec![0.0; BLOCK * store.dim as usize];
        Past { store, data: inputs.slice(store.data), scales: inputs.slice(store.scales), scratch }
    }

    /// Hands over the vectors of one head at positions `0..len`: `with(first position, vectors)`.
    pub(crate) fn each_block(
        &mut self,
        pages: &[u32],
        len: usize,
        head: u32,
        mut with: impl FnMut(usize, &[&[f32]]),
    ) {
        let dim = self.store.dim as usize;
        for first in (0..len).step_by(BLOCK) {
            let count = BLOCK.min(len - first);
            let mut vectors: [&[f32]; BLOCK] = [&[]; BLOCK];
            let scratch = self.scratch.chunks_exact_mut(dim);
            for ((i, vector), scratch) in vectors[..count].iter_mut().enumerate().zip(scratch) {
                let token = self.store.token(pages, (first + i) as u32);
                *vector = self.store.get(self.data, self.scales, token, head, scratch);
            }
            with(first, &vectors[..count]);
        }
    }
}

/// Exponentials of `x` less its largest, divided by their sum.
pub(crate) fn softmax(x: &mut [f32]) {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - largest).exp());
    let total: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= total);
}
