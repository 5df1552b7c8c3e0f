//! The recurrence, token after token, in slices of the state that stay in a core's first cache.
//!
//! What a state recalls before it fades gives both terms: `kᵀ(S·fade) = fade·kᵀS`, and after the
//! update `qᵀS = fade·qᵀS + (q·k)·delta`. So a token reads a state once, and once more to change it:
//! 7 operations per element, against peak in a prefill and against reading the state in decode.
//!
//! Bound: a chunked form would be products of matrices, but its sums would depend on where chunks
//! begin.

use super::{DeltaHeads, softplus};
use crate::cpu::{Cpu, vector_of};
use crate::sigmoid_gate::sigmoid;
use crate::step::{Seqs, StateStore};
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::floats::{Block, fade_and_add, recall};
use krasis_cpu::vector::{blend, dot, scaled};
use krasis_cpu::{Isa, Tiles};

/// Columns of a slice: 16 KiB of 128 rows.
const SLICE: usize = 32;

/// Tokens that pass by a slice before the next slice's turn.
const TOKENS: usize = 32;

/// A task is a key head of a sequence with all its value heads, or with one of them where tasks would
/// be fewer than threads.
pub(crate) fn cpu(
    d: &mut Cpu,
    qkv: Mat<Act>,
    ba: Mat<Act>,
    h: &DeltaHeads,
    a_log: &Weight,
    dt_bias: &Weight,
    state: &StateStore,
    seqs: &Seqs,
    out: Mat<Act>,
) {
    let (inputs, memory, all) = d.arena.write_two(state.data, out.whole().floats());
    let (a_log, dt_bias) = (vector_of(a_log, &inputs), vector_of(dt_bias, &inputs));
    let (first_row, positions) = (inputs.slice(seqs.first_row), inputs.slice(seqs.positions));
    let places = inputs.slice(seqs.state);
    let (memory, tiles) =
        (Tiles::new(memory, state.each as usize), Tiles::new(all, out.cols as usize));
    let (dk, dv) = (h.key_dim as usize, h.value_dim as usize);
    let (keys, heads) = ((h.key * h.key_dim) as usize, h.value as usize);
    let (isa, threads, group) = (d.isa, d.team.threads(), heads / h.key as usize);
    let few = (seqs.count * h.key) < 2 * threads as u32;
    let together = if few { 1 } else { group };

    let own = (SLICE + 2 * TOKENS) * dk.next_multiple_of(16);
    let workers = Tiles::new(d.workers.take(own * threads), own);
    let units = heads / together;
    d.team.each(seqs.count as usize * units, |worker, task| {
        let (seq, unit) = (task / units, task % units);
        let (first, end) = (first_row[seq] as usize, first_row[seq + 1] as usize);
        // SAFETY: a worker has one task at a time.
        let (slice, normed) = unsafe { workers.tile(worker, 0..own) }.split_at_mut(SLICE * dk);
        let key_head = unit * together / group;
        for start in (first..end).step_by(TOKENS) {
            let rows = start..end.min(start + TOKENS);
            for (row, both) in rows.clone().zip(normed.chunks_exact_mut(2 * dk)) {
                let (q, k) = both.split_at_mut(dk);
                let qkv = inputs.row(qkv, row as u32);
                norm(&qkv[key_head * dk..][..dk], 1.0 / (dk as f32).sqrt(), q);
                norm(&qkv[keys + key_head * dk..][..dk], 1.0, k);
            }
            for head in unit * together..(unit + 1) * together {
                let range = head * dk * dv..(head + 1) * dk * dv;
                // SAFETY: sequences have places of their own, and heads parts of their own in them.
                let s = unsafe { memory.tile(places[seq] as usize, range) };
                if positions[start] == 0 {
                    s.fill(0.0);
                }
                let mut gates = [Gates::default(); TOKENS];
                for ((row, gates), both) in
                    rows.clone().zip(&mut gates).zip(normed.chunks_exact(2 * dk))
                {
                    let ba = inputs.row(ba, row as u32);
                    let (q, k) = both.split_at(dk);
                    let step = softplus(ba[heads + head] + dt_bias[head]);
                    gates.fade = (-a_log[head].exp() * step).exp();
                    gates.beta = sigmoid(ba[head]);
                    gates.overlap = dot(q, k);
                }
                for col in (0..dv).step_by(SLICE) {
                    let cols = col..dv.min(col + SLICE);
                    let meet = |s: &mut [f32], stride: usize| {
                        let tokens = rows.clone().zip(&gates).zip(normed.chunks_exact(2 * dk));
                        for ((row, gates), both) in tokens {
                            let v = &inputs.row(qkv, row as u32)[2 * keys + head * dv..];
                            let place = head * dv + cols.start..head * dv + cols.end;
                            // SAFETY: each task has its own rows and heads.
                            let out = unsafe { tiles.tile(row, place) };
                            token(isa, s, stride, both.split_at(dk), &v[cols.clone()], gates, out);
                        }
                    };
                    if rows.len() == 1 {
                        meet(&mut s[col..], dv);
                        continue;
                    }
                    // Where it lies, a slice has only a part of the cache's sets to itself.
                    for (to, s) in slice.chunks_exact_mut(SLICE).zip(s.chunks_exact(dv)) {
                        to[..cols.len()].copy_from_slice(&s[cols.clone()]);
                    }
                    meet(slice, SLICE);
                    for (from, s) in slice.chunks_exact(SLICE).zip(s.chunks_exact_mut(dv)) {
                        s[cols.clone()].copy_from_slice(&from[..cols.len()]);
                    }
                }
            }
        }
    });
}

/// What a token brings for a head.
#[derive(Clone, Copy, Default)]
struct Gates {
    fade: f32,
    beta: f32,
    /// `q·k`.
    overlap: f32,
}

/// One token meets some columns of a state.
fn token(
    isa: Isa,
    s: &mut [f32],
    stride: usize,
    (q, k): (&[f32], &[f32]),
    v: &[f32],
    gates: &Gates,
    out: &mut [f32],
) {
    let mut delta = [0.0; SLICE];
    let delta = &mut delta[..v.len()];
    recall(isa, Block { data: s, stride }, k, q, delta, out);
    blend(delta, -gates.fade * gates.beta, v, gates.beta);
    fade_and_add(isa, s, stride, gates.fade, k, delta);
    blend(out, gates.fade, delta, gates.overlap);
}

/// `x` at length `scale`.
fn norm(x: &[f32], scale: f32, out: &mut [f32]) {
    scaled(x, scale / (dot(x, x) + 1e-6).sqrt(), out);
}
