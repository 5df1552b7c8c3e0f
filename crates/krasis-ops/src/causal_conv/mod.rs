//! Depthwise causal convolution along each sequence, then SiLU:
//! `out[t, c] = silu(Σ_j w[c, j] · x[t - (K-1) + j, c])`, `w [channels, K]`, so that `w[c, K-1]`
//! meets the present.
//!
//! The state of a sequence is its last `K - 1` inputs, `[K - 1, channels]`, oldest first; before
//! position 0 they are zero.

use crate::cpu::{Cpu, Rows};
use crate::reference::Reference;
use crate::silu_mul;
use crate::step::{Seqs, StateStore};
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::Tiles;
use krasis_cpu::vector::{add_pairs, silu};

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
                result[first + t][c] = silu_mul::silu(sum);
            }
        }
        memory.copy_from_slice(&inputs[inputs.len() - (kernel - 1)..].concat());
    }
    d.put(out, &result);
}

/// Channels of a task: their taps and sums stay in the first cache.
const CHANNELS: usize = 256;

/// A task is some channels of a sequence, along all of its rows.
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
    let (first_row, positions) = (inputs.slice(seqs.first_row), inputs.slice(seqs.positions));
    let places = inputs.slice(seqs.state);
    // Rows of the past: `kernel - 1` of each place.
    let (memory, tiles) = (Tiles::new(memory, channels), Tiles::new(all, channels));
    let own = (2 * kernel + 1) * CHANNELS;
    let workers = Tiles::new(d.workers.take(own * d.team.threads()), own);
    let pieces = channels.div_ceil(CHANNELS);
    d.team.each(seqs.count as usize * pieces, |worker, task| {
        let (seq, first) = (task / pieces, task % pieces * CHANNELS);
        let some = first..channels.min(first + CHANNELS);
        // SAFETY: a worker has one task at a time.
        let own = unsafe { workers.tile(worker, 0..own) };
        let (taps, rest) = own.split_at_mut(kernel * CHANNELS);
        let (stored, sums) = rest.split_at_mut(kernel * CHANNELS);
        // [tap, channel], so that channels are contiguous.
        weights.decode_rows(some.clone(), &mut stored[..kernel * some.len()]);
        for (c, stored) in stored[..kernel * some.len()].chunks_exact(kernel).enumerate() {
            (0..kernel).for_each(|j| taps[j * CHANNELS + c] = stored[j]);
        }
        let sums = &mut sums[..some.len()];
        let past = places[seq] as usize * (kernel - 1);
        let rows = first_row[seq] as usize..first_row[seq + 1] as usize;
        // SAFETY: sequences have places of their own, and tasks channels of their own in them;
        // tiles die at once.
        let remembered = |j: usize| unsafe { memory.tile(past + j, some.clone()) };
        if positions[rows.start] == 0 {
            (0..kernel - 1).for_each(|j| remembered(j).fill(0.0));
        }
        // What came before, then the rows of this step.
        let input = |i: usize| match i.checked_sub(kernel - 1) {
            None => &*remembered(i),
            Some(i) => &inputs.row(x, (rows.start + i) as u32)[some.clone()],
        };
        for row in rows.clone() {
            sums.fill(0.0);
            for (j, taps) in taps.chunks_exact(CHANNELS).enumerate() {
                add_pairs(sums, &taps[..some.len()], input(row - rows.start + j));
            }
            // SAFETY: each task has its own rows and channels.
            silu(sums, unsafe { tiles.tile(row, some.clone()) });
        }
        for j in 0..kernel - 1 {
            sums.copy_from_slice(input(rows.len() + j));
            remembered(j).copy_from_slice(sums);
        }
    });
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge, as_mat};
    use krasis_core::{DType, Format};

    cases![sequences_start_and_go_on, long_sequences];

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

    /// Rows that devices share among themselves, whatever lies before them.
    fn long_sequences(on: &mut dyn Judge) {
        for (channels, kernel) in [(130, 4), (3, 8)] {
            let mut case = Case::new(19);
            let parts = [(0, 63), (9, 1), (4, 66), (0, 5), (300, 130), (1, 64)];
            let rows = parts.iter().map(|(_, rows)| rows).sum();
            let x = case.act(rows, channels);
            let w = case.weight(channels, kernel, Format::Float(DType::Bf16));
            let (seqs, _) = case.seqs(&parts, 4);
            let state = case.state(6, (kernel - 1) * channels);
            let out = case.blank(rows, channels);
            let memory = as_mat(state.data, 6);
            case.agree(on, &[out, memory], 1e-5, |ops| ops.causal_conv(x, &w, &state, &seqs, out));
        }
    }
}
