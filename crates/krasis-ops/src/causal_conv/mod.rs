//! Depthwise causal convolution along each sequence, then SiLU:
//! `out[t, c] = silu(Σ_j w[c, j] · x[t - (K-1) + j, c])`, `w [channels, K]`, so that `w[c, K-1]`
//! meets the present.
//!
//! The state of a sequence is its last `K - 1` inputs, `[K - 1, channels]`, oldest first; before
//! position 0 they are zero.

use crate::cpu::{Cpu, Rows};
use crate::reference::Reference;
use crate::silu_mul::silu;
use crate::step::{Seqs, StateStore};
use krasis_core::{Act, Mat, Weight};

pub(crate) fn reference(
    d: &mut Reference,
    x: Mat<Act>,
    w: &Weight,
    state: &StateStore,
    seqs: &Seqs,
    out: Mat<Act>,
) {
    let (w, rows) = (d.weight(w), d.rows(x));
    let (kernel, channels) = (w[0].len(), w.len());
    let first_row = d.arena.slice(seqs.first_row).to_vec();
    let positions = d.arena.slice(seqs.positions).to_vec();
    let places = d.arena.slice(seqs.state).to_vec();
    let mut result = vec![vec![0.0; channels]; rows.len()];
    for seq in 0..seqs.count as usize {
        let (first, end) = (first_row[seq] as usize, first_row[seq + 1] as usize);
        let memory = &mut d.arena.slice_mut(state.data)[(places[seq] * state.each) as usize..]
            [..state.each as usize];
        if positions[first] == 0 {
            memory.fill(0.0);
        }
        // The past inputs, then those of this step.
        let mut inputs: Vec<Vec<f32>> =
            memory.chunks_exact(channels).map(<[f32]>::to_vec).collect();
        inputs.extend_from_slice(&rows[first..end]);
        for t in 0..end - first {
            for c in 0..channels {
                let sum: f32 = (0..kernel).map(|j| w[c][j] * inputs[t + j][c]).sum();
                result[first + t][c] = silu(sum);
            }
        }
        memory.copy_from_slice(&inputs[inputs.len() - (kernel - 1)..].concat());
    }
    d.put(out, &result);
}

pub(crate) fn cpu(
    d: &mut Cpu,
    x: Mat<Act>,
    w: &Weight,
    state: &StateStore,
    seqs: &Seqs,
    out: Mat<Act>,
) {
    let (inputs, memory, all) = d.arena.write_two(state.data, out.whole().floats());
    let (kernel, channels) = (w.cols as usize, w.rows as usize);
    let weights = Rows::of(w, &inputs);
    // [tap, channel], so that channels are contiguous.
    let mut taps = vec![vec![0.0; channels]; kernel];
    let mut row = vec![0.0; kernel];
    for c in 0..channels {
        weights.decode(c, &mut row);
        (0..kernel).for_each(|j| taps[j][c] = row[j]);
    }
    let (first_row, positions) = (inputs.slice(seqs.first_row), inputs.slice(seqs.positions));
    let places = inputs.slice(seqs.state);
    for seq in 0..seqs.count as usize {
        let memory = &mut memory[(places[seq] * state.each) as usize..][..state.each as usize];
        for row in first_row[seq]..first_row[seq + 1] {
            if positions[row as usize] == 0 {
                memory.fill(0.0);
            }
            let (now, out) = (inputs.row(x, row), &mut all[row as usize * channels..][..channels]);
            out.fill(0.0);
            let past = memory.chunks_exact(channels).chain([now]);
            for (tap, past) in taps.iter().zip(past) {
                (0..channels).for_each(|c| out[c] += tap[c] * past[c]);
            }
            out.iter_mut().for_each(|x| *x = silu(*x));
            memory.copy_within(channels.., 0);
            memory[(kernel - 2) * channels..].copy_from_slice(now);
        }
    }
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge, as_mat};
    use krasis_core::{DType, Format};

    cases![sequences_start_and_go_on];

    fn sequences_start_and_go_on(on: &mut dyn Judge) {
        for format in [DType::F32, DType::Bf16].map(Format::Float) {
            for kernel in [2, 4] {
                let mut case = Case::new(15);
                let all = case.act(8, 20);
                let x = all.cols(0, 18);
                let w = case.weight(18, kernel, format);
                // The middle one is shorter than the kernel, and its state moves up.
                let (seqs, _) = case.seqs(&[(0, 3), (9, 1), (4, 4)], 4);
                let state = case.state(3, (kernel - 1) * 18);
                let out = case.blank(8, 18);
                let memory = as_mat(state.data, 3);
                case.agree(on, &[out, memory], 1e-5, |ops| {
                    ops.causal_conv(x, &w, &state, &seqs, out)
                });
            }
        }
    }
}
