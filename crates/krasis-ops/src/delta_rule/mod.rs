//! The gated delta rule along each sequence (Yang et al., Gated Delta Networks, 2024), recurrent
//! form, as Qwen3-Next uses it.
//!
//! `qkv` columns are `[q: key heads · k | k: key heads · k | v: value heads · v]` after convolution,
//! `ba` columns `[b: value heads | a: value heads]`. Per value head, whose key head is
//! `head / (value heads / key heads)`, with state `S [k, v]`, zero before position 0:
//!
//! ```text
//! q = q · rsqrt(Σq² + 1e-6) · k^-½      k = k · rsqrt(Σk² + 1e-6)
//! S = S · exp(-exp(a_log) · softplus(a + dt_bias))
//! S = S + k ⊗ (sigmoid(b) · (v - kᵀS))
//! out = qᵀS
//! ```

use crate::cpu::{Cpu, vector_of};
use crate::reference::Reference;
use crate::sigmoid_gate::sigmoid;
use crate::step::{Seqs, StateStore};
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::Tiles;
use krasis_cpu::vector::{add_scaled, dot};

/// Heads of a gated delta net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaHeads {
    /// Query and key heads.
    pub key: u32,
    /// Value heads, a multiple of the key heads.
    pub value: u32,
    /// Elements of a query or key.
    pub key_dim: u32,
    /// Elements of a value.
    pub value_dim: u32,
}

impl DeltaHeads {
    /// Columns that the convolution mixes: all queries, keys and values.
    pub const fn channels(self) -> u32 {
        2 * self.key * self.key_dim + self.value * self.value_dim
    }

    /// Columns of the output.
    pub const fn width(self) -> u32 {
        self.value * self.value_dim
    }

    /// Floats of a sequence's state.
    pub const fn state(self) -> u32 {
        self.value * self.key_dim * self.value_dim
    }
}

/// ln(1 + eˣ), which is x for large x.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

fn l2_norm(x: &[f32]) -> Vec<f32> {
    let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f32>() + 1e-6).sqrt();
    x.iter().map(|x| x * scale).collect()
}

pub(crate) fn reference(
    d: &mut Reference,
    qkv: Mat<Act>,
    ba: Mat<Act>,
    h: &DeltaHeads,
    a_log: &Weight,
    dt_bias: &Weight,
    state: &StateStore,
    seqs: &Seqs,
    out: Mat<Act>,
) {
    let (a_log, dt_bias) = (d.vector(a_log), d.vector(dt_bias));
    let (qkv, ba) = (d.rows(qkv), d.rows(ba));
    let first_row = d.arena.slice(seqs.first_row).to_vec();
    let positions = d.arena.slice(seqs.positions).to_vec();
    let places = d.arena.slice(seqs.state).to_vec();
    let (keys, dk, dv) = ((h.key * h.key_dim) as usize, h.key_dim as usize, h.value_dim as usize);
    let mut result = vec![vec![0.0; h.width() as usize]; qkv.len()];
    for seq in 0..seqs.count as usize {
        for row in first_row[seq] as usize..first_row[seq + 1] as usize {
            for head in 0..h.value as usize {
                let key_head = head / (h.value / h.key) as usize;
                let q: Vec<f32> = l2_norm(&qkv[row][key_head * dk..][..dk])
                    .iter()
                    .map(|q| q / (dk as f32).sqrt())
                    .collect();
                let k = l2_norm(&qkv[row][keys + key_head * dk..][..dk]);
                let v = &qkv[row][2 * keys + head * dv..][..dv];
                let beta = sigmoid(ba[row][head]);
                let decay = (-a_log[head].exp()
                    * softplus(ba[row][h.value as usize + head] + dt_bias[head]))
                .exp();
                let at = (places[seq] * state.each) as usize + head * dk * dv;
                let s = &mut d.arena.slice_mut(state.data)[at..][..dk * dv];
                if positions[row] == 0 {
                    s.fill(0.0);
                }
                s.iter_mut().for_each(|s| *s *= decay);
                for j in 0..dv {
                    let remembered: f32 = (0..dk).map(|i| k[i] * s[i * dv + j]).sum();
                    let delta = beta * (v[j] - remembered);
                    (0..dk).for_each(|i| s[i * dv + j] += k[i] * delta);
                    result[row][head * dv + j] = (0..dk).map(|i| q[i] * s[i * dv + j]).sum();
                }
            }
        }
    }
    d.put(out, &result);
}

/// One task per sequence and value head: the state of a head fits the first cache levels.
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
    let (keys, dk, dv) = ((h.key * h.key_dim) as usize, h.key_dim as usize, h.value_dim as usize);
    let heads = h.value as usize;
    d.team.split(seqs.count as usize * heads, 1, |tasks| {
        let (mut q, mut k, mut delta) = (vec![0.0; dk], vec![0.0; dk], vec![0.0; dv]);
        for task in tasks {
            let (seq, head) = (task / heads, task % heads);
            let key_head = head / (h.value / h.key) as usize;
            let own = head * dk * dv..(head + 1) * dk * dv;
            // SAFETY: sequences have places of their own, and heads parts of their own in them.
            let s = unsafe { memory.tile(places[seq] as usize, own) };
            for row in first_row[seq]..first_row[seq + 1] {
                if positions[row as usize] == 0 {
                    s.fill(0.0);
                }
                let (qkv, ba) = (inputs.row(qkv, row), inputs.row(ba, row));
                normed(&qkv[key_head * dk..][..dk], 1.0 / (dk as f32).sqrt(), &mut q);
                normed(&qkv[keys + key_head * dk..][..dk], 1.0, &mut k);
                let v = &qkv[2 * keys + head * dv..][..dv];
                let beta = sigmoid(ba[head]);
                let decay = (-a_log[head].exp() * softplus(ba[heads + head] + dt_bias[head])).exp();
                delta.fill(0.0);
                for (s, k) in s.chunks_exact_mut(dv).zip(&k) {
                    s.iter_mut().for_each(|s| *s *= decay);
                    add_scaled(&mut delta, *k, s);
                }
                delta.iter_mut().zip(v).for_each(|(delta, v)| *delta = beta * (v - *delta));
                // SAFETY: each task has its own rows and head.
                let out = unsafe { tiles.tile(row as usize, head * dv..(head + 1) * dv) };
                out.fill(0.0);
                for ((s, k), q) in s.chunks_exact_mut(dv).zip(&k).zip(&q) {
                    add_scaled(s, *k, &delta);
                    add_scaled(out, *q, s);
                }
            }
        }
    });
}

fn normed(x: &[f32], scale: f32, out: &mut [f32]) {
    let scale = scale / (dot(x, x) + 1e-6).sqrt();
    out.iter_mut().zip(x).for_each(|(out, x)| *out = x * scale);
}

pub(crate) mod cases {
    use super::DeltaHeads;
    use crate::testing::{Case, Judge, as_mat};

    cases![heads_states_and_starts];

    fn heads_states_and_starts(on: &mut dyn Judge) {
        for (key, value, key_dim, value_dim) in [(1, 1, 10, 7), (2, 6, 10, 7), (1, 2, 72, 40)] {
            let h = DeltaHeads { key, value, key_dim, value_dim };
            let mut case = Case::new(16);
            let (qkv, all) = (case.act(8, h.channels()), case.act(8, 3 + 2 * value));
            let ba = all.cols(3, 2 * value);
            let (a_log, dt_bias) = (case.vector(value), case.vector(value));
            let (seqs, _) = case.seqs(&[(0, 3), (9, 1), (4, 4)], 4);
            let state = case.state(3, h.state());
            let (out, memory) = (case.blank(8, h.width()), as_mat(state.data, 3));
            case.agree(on, &[out, memory], 1e-5, |ops| {
                ops.delta_rule(qkv, ba, &h, &a_log, &dt_bias, &state, &seqs, out);
            });
        }
    }
}
