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

mod cpu;

use crate::reference::Reference;
use crate::sigmoid_gate::sigmoid;
use crate::step::{Seqs, StateStore};
pub(crate) use cpu::cpu;
use krasis_core::{Act, Mat, Weight};

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

pub(crate) mod cases {
    use super::DeltaHeads;
    use crate::testing::{Case, Judge, as_mat};
    use krasis_core::{Act, Mat, Slot, Weight};

    cases![heads_states_and_starts, long_sequences, more_than_a_workspace];

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

    /// Heads that remember a few, tens, hundreds and thousands of tokens.
    fn memories(case: &mut Case, heads: u32) -> Weight {
        let a_logs: Vec<f32> = (0..heads).map(|head| -2.5 * (head % 4) as f32).collect();
        case.vector_of(&a_logs)
    }

    /// Keys that are alike, as those of a model are after its convolution, so that tokens depend on
    /// those before them, and values so large that results are.
    fn alike(case: &mut Case, rows: u32, h: &DeltaHeads) -> Mat<Act> {
        let (channels, keys) = (h.channels(), 2 * h.key * h.key_dim);
        let places = (0..rows * channels).map(|i| i % channels);
        let values: Vec<f32> = places
            .map(|col| if col < keys { case.float() + 0.7 } else { 32.0 * case.float() })
            .collect();
        case.act_of(rows, channels, &values)
    }

    fn agree(on: &mut dyn Judge, h: &DeltaHeads, parts: &[(u32, u32)]) {
        let mut case = Case::new(18);
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let (qkv, ba) = (alike(&mut case, rows, h), case.act(rows, 2 * h.value));
        let (a_log, dt_bias) = (memories(&mut case, h.value), case.vector(h.value));
        let (seqs, _) = case.seqs(parts, 4);
        let places = parts.len() as u32;
        let state = case.state(places, h.state());
        let mut outs = vec![case.blank(rows, h.width())];
        // Each by itself: what is large in one allows nothing in another.
        outs.extend((0..places).map(|place| {
            let start = state.data.start + u64::from(4 * place * h.state());
            as_mat(Slot::new(start, u64::from(h.state())), h.value)
        }));
        case.agree(on, &outs, 1e-4, |ops| {
            ops.delta_rule(qkv, ba, h, &a_log, &dt_bias, &state, &seqs, outs[0]);
        });
    }

    /// Where chunks begin, end and are not full, at position 0 and later, beside sequences of few rows.
    fn long_sequences(on: &mut dyn Judge) {
        let h = DeltaHeads { key: 2, value: 4, key_dim: 128, value_dim: 64 };
        agree(on, &h, &[(0, 63), (7, 1), (100, 64), (0, 9), (3, 8)]);
        agree(on, &h, &[(0, 65), (64, 200)]);
        let h = DeltaHeads { key: 1, value: 3, key_dim: 64, value_dim: 32 };
        agree(on, &h, &[(31, 130), (0, 1), (0, 200)]);
        // Columns that no block of 32 has, and keys of another size.
        agree(on, &DeltaHeads { key_dim: 64, value_dim: 40, ..h }, &[(0, 70)]);
        agree(on, &DeltaHeads { key_dim: 96, value_dim: 32, ..h }, &[(2, 70)]);
    }

    /// What a GPU keeps of chunks in between takes two launches here, which part the last sequence.
    fn more_than_a_workspace(on: &mut dyn Judge) {
        let h = DeltaHeads { key: 1, value: 64, key_dim: 64, value_dim: 32 };
        let mut parts = vec![(3, 1); 13];
        parts.push((5, 200));
        agree(on, &h, &parts);
    }
}

#[cfg(test)]
mod tests {
    use super::DeltaHeads;
    use crate::testing::Case;
    use crate::{Memory, Ops};

    /// Token after token, in chunks and all at once: the same bits, and the same state after them.
    #[test]
    fn chunks_do_not_matter() {
        let h = DeltaHeads { key: 2, value: 4, key_dim: 24, value_dim: 40 };
        const PARTS: [(u32, u32); 2] = [(0, 37), (5, 3)];
        let mut case = Case::new(17);
        let (a_log, dt_bias) = (case.vector(4), case.vector(4));
        let inputs: Vec<f32> = (0..40 * h.channels()).map(|_| case.float()).collect();
        let gates: Vec<f32> = (0..40 * 8).map(|_| case.float()).collect();
        let state = case.state(2, h.state());
        let (seqs, _) = case.seqs(&PARTS, 4);
        let (qkv, ba) = (case.act_of(40, h.channels(), &inputs), case.act_of(40, 8, &gates));
        let out = case.blank(40, h.width());
        let mut steps = vec![];
        for chunk in [1, 7, 20] {
            let mut step = vec![];
            for start in (0..37).step_by(chunk) {
                let rows = start..37.min(start + chunk as u32);
                let at = |values: &[f32], cols: u32| {
                    values[(rows.start * cols) as usize..(rows.end * cols) as usize].to_vec()
                };
                let (qkv, ba) = (at(&inputs, h.channels()), at(&gates, 8));
                let count = rows.len() as u32;
                let (qkv, ba) =
                    (case.act_of(count, h.channels(), &qkv), case.act_of(count, 8, &ba));
                let seqs = case.some_rows(&PARTS, 4, 0, rows);
                step.push((seqs, qkv, ba, case.blank(count, h.width())));
            }
            steps.push(step);
        }
        for d in &mut case.cpus(&[1, 3]) {
            d.delta_rule(qkv, ba, &h, &a_log, &dt_bias, &state, &seqs, out);
            // Sequence 0 is in the last place.
            let memory = d.download(state.data)[h.state() as usize..].to_vec();
            let wanted = d.download_act(out)[..(37 * h.width()) as usize].to_vec();
            for step in &steps {
                let mut got = vec![];
                for (seqs, qkv, ba, out) in step {
                    d.delta_rule(*qkv, *ba, &h, &a_log, &dt_bias, &state, seqs, *out);
                    got.extend(d.download_act(*out));
                }
                assert_eq!(got, wanted);
                assert_eq!(d.download(state.data)[h.state() as usize..], memory);
            }
        }
    }
}
