//! Delta nets as launches: sequences of many rows in chunks on tensor cores, others and what has no
//! chunks a token at a time; and the convolution before them.
//!
//! Qwen3-Next, 8,192 tokens of a layer: 43 GFLOP along the sequences, 0.07 ms at what `mma.sync`
//! reaches on an H200, but a sequence is a chain of 128 chunks. They read 1.0 GB from the second-level
//! cache, the same rows for every slice of columns: 0.2 ms, which is what the chain should take.

use crate::activation::Activation;
use crate::cuda::{Cuda, WORK_BYTES};
use crate::machine::{Arg, Kernel, Limits, Machine, Shape};
use crate::programs::format_variant;
use krasis_core::{Act, Format, Mat, Weight};
use krasis_ops::{DeltaHeads, Seqs, StateStore};

/// Sizes of keys that there are chunks for.
const KEY_DIMS: [u32; 2] = [64, 128];

/// Rows of a sequence in a step that go token by token: a chunk costs more. It is the number that
/// products go by, too, but here a sequence's company does not count.
const FEW_ROWS: u32 = 8;

/// Tokens of a chunk, columns of a block's slice, and threads, of `kernels/delta_chunks.cu`.
const CHUNK: u32 = 64;
const SLICE: u32 = 32;
const THREADS: u32 = 128;

/// Bytes of a chunk's factors: `FACTORS` of the kernel.
const FACTORS: u32 = 3 * CHUNK * 4;

/// Rows of a block of `kernels/causal_conv.cu`, and its channels.
const CONV_ROWS: u32 = 64;
const CONV_CHANNELS: u32 = 128;

/// How `delta_states` is built for a size of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stages {
    key_dim: u32,
    /// Chunks in shared memory: where there is room for two, one arrives while the other is used.
    stages: u32,
}

impl Stages {
    fn new(key_dim: u32, limits: Limits) -> Stages {
        let one = Stages { key_dim, stages: 1 };
        let two = Stages { key_dim, stages: 2 };
        if two.shared() <= limits.shared_max { two } else { one }
    }

    /// `SHARED_BYTES`: queries, keys, M, X and values, with 16 bytes more in each row, and factors.
    fn shared(self) -> u32 {
        let keys = 2 * CHUNK * (2 * self.key_dim + 16);
        let pairs = (CHUNK + self.key_dim) * (2 * CHUNK + 16);
        self.stages * (keys + pairs + CHUNK * (2 * SLICE + 16) + FACTORS)
    }
}

/// Bytes that a chunk of a value head leaves in the workspace: `WORK_BYTES` of the kernel.
fn work_bytes(key_dim: u32) -> u64 {
    u64::from((CHUNK + key_dim) * CHUNK * 2 + FACTORS)
}

/// Shared memory of `delta_chunks`: keys, and two matrices of f32 with four more in each row, over
/// whose first queries have lain.
fn chunks_shared(key_dim: u32) -> u32 {
    CHUNK * (2 * key_dim + 16) + 2 * CHUNK * (CHUNK + 4) * 4
}

/// The macros of each variant of `delta_chunks.cu`.
pub(crate) fn defines(limits: Limits) -> Vec<Vec<String>> {
    let of = |key_dim| {
        let stages = Stages::new(key_dim, limits);
        vec![
            format!("-DKEY_DIM={key_dim}"),
            format!("-DSTAGES={}", stages.stages),
            format!("-DSHARED_BYTES={}", stages.shared()),
        ]
    };
    KEY_DIMS.map(of).into()
}

/// Pieces of `rows` that a step's sequences are cut into, at most: each begins a piece of its own.
/// Kernels number them so that a sequence's follow those of the sequences before, with holes.
fn pieces(rows: u32, seqs: &Seqs, each: u32) -> u32 {
    rows / each + seqs.count
}

impl<A: Activation, M: Machine> Cuda<A, M> {
    pub(crate) fn convolve(
        &mut self,
        x: Mat<Act>,
        w: &Weight,
        state: &StateStore,
        seqs: &Seqs,
        out: Mat<Act>,
    ) {
        assert!((2..=8).contains(&w.cols), "a convolution of {} taps", w.cols);
        assert_eq!((x.cols, out.cols), (w.rows, w.rows), "a filter per channel");
        let group = match w.format {
            Format::Float(_) => 1,
            Format::Int8 { group } | Format::Int4 { group } => group,
            Format::Lines(_) => panic!("taps are in order in rows only"),
        };
        let args = [
            self.mat(x),
            x.stride.into(),
            self.slot(w.data),
            self.slot(w.scales),
            w.cols.into(),
            group.into(),
            self.slot(state.data),
            state.each.into(),
            self.slot(seqs.first_row),
            self.slot(seqs.positions),
            self.slot(seqs.state),
            seqs.count.into(),
            self.mat(out),
            out.stride.into(),
            w.rows.into(),
        ];
        let grid = [w.rows.div_ceil(CONV_CHANNELS), pieces(x.rows, seqs, CONV_ROWS), 1];
        let kernel = Kernel { entry: "causal_conv", variant: format_variant(w.format) };
        self.launch(kernel, Shape { grid, block: CONV_CHANNELS, shared: 0 }, &args);
    }

    /// The variant of `delta_chunks.cu` that serves, if one does.
    fn chunks(&self, qkv: Mat<Act>, heads: &DeltaHeads, out: Mat<Act>) -> Option<u8> {
        let whole = self.aligned(qkv) && self.aligned(out);
        let served = A::BYTES == 2 && whole && heads.value_dim.is_multiple_of(SLICE);
        let variant = KEY_DIMS.iter().position(|dim| *dim == heads.key_dim);
        variant.filter(|_| served).map(|variant| variant as u8)
    }

    pub(crate) fn delta(
        &mut self,
        qkv: Mat<Act>,
        ba: Mat<Act>,
        heads: &DeltaHeads,
        a_log: &Weight,
        dt_bias: &Weight,
        state: &StateStore,
        seqs: &Seqs,
        out: Mat<Act>,
    ) {
        assert!(heads.key_dim <= 256, "keys of {} elements", heads.key_dim);
        let few = qkv.rows <= FEW_ROWS || qkv.rows == seqs.count;
        let variant = self.chunks(qkv, heads, out).filter(|_| !few);
        let rows_max = if variant.is_some() { FEW_ROWS } else { u32::MAX };
        let args = [
            self.mat(qkv),
            qkv.stride.into(),
            self.mat(ba),
            ba.stride.into(),
            heads.key.into(),
            heads.value.into(),
            heads.key_dim.into(),
            heads.value_dim.into(),
            self.vector(a_log),
            self.vector(dt_bias),
            self.slot(state.data),
            state.each.into(),
            self.slot(seqs.first_row),
            self.slot(seqs.positions),
            self.slot(seqs.state),
            rows_max.into(),
            self.mat(out),
            out.stride.into(),
        ];
        let grid = [heads.value_dim.div_ceil(32), heads.value, seqs.count];
        let kernel = Kernel { entry: "delta_rule", variant: 0 };
        self.launch(kernel, Shape { grid, block: 256, shared: 0 }, &args);
        if let Some(variant) = variant {
            self.delta_in_chunks(variant, qkv, ba, heads, a_log, dt_bias, state, seqs, out);
        }
    }

    /// As many chunks at a time as the workspace holds; the state lies in its store in between.
    fn delta_in_chunks(
        &mut self,
        variant: u8,
        qkv: Mat<Act>,
        ba: Mat<Act>,
        heads: &DeltaHeads,
        a_log: &Weight,
        dt_bias: &Weight,
        state: &StateStore,
        seqs: &Seqs,
        out: Mat<Act>,
    ) {
        let chunk_bytes = u64::from(heads.value) * work_bytes(heads.key_dim);
        let most = (WORK_BYTES / chunk_bytes) as u32;
        assert!(most > 0, "the workspace has no room for a chunk of {} heads", heads.value);
        let all = pieces(qkv.rows, seqs, CHUNK);
        for first in (0..all).step_by(most as usize) {
            let chunks = most.min(all - first);
            let work = self.workspace(0, u64::from(chunks) * chunk_bytes);
            let args: [Arg; 13] = [
                self.mat(qkv),
                qkv.stride.into(),
                self.mat(ba),
                ba.stride.into(),
                heads.key.into(),
                heads.value.into(),
                self.vector(a_log),
                self.vector(dt_bias),
                self.slot(seqs.first_row),
                seqs.count.into(),
                FEW_ROWS.into(),
                first.into(),
                work,
            ];
            let grid = [chunks, heads.value, 1];
            let shared = chunks_shared(heads.key_dim);
            let shape = Shape { grid, block: THREADS, shared };
            self.launch(Kernel { entry: "delta_chunks", variant }, shape, &args);
            let args: [Arg; 16] = [
                self.mat(qkv),
                qkv.stride.into(),
                heads.key.into(),
                heads.value.into(),
                heads.value_dim.into(),
                self.slot(state.data),
                state.each.into(),
                self.slot(seqs.first_row),
                self.slot(seqs.positions),
                self.slot(seqs.state),
                FEW_ROWS.into(),
                first.into(),
                chunks.into(),
                work,
                self.mat(out),
                out.stride.into(),
            ];
            let grid = [heads.value_dim / SLICE, heads.value, seqs.count];
            let shared = Stages::new(heads.key_dim, self.machine().limits()).shared();
            let shape = Shape { grid, block: THREADS, shared };
            self.launch(Kernel { entry: "delta_states", variant }, shape, &args);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_fits_every_gpu() {
        for (shared_max, stages) in [(99 << 10, [2, 1]), (163 << 10, [2, 2]), (227 << 10, [2, 2])] {
            let limits = Limits { processors: 1, shared_max };
            let chosen = KEY_DIMS.map(|key_dim| Stages::new(key_dim, limits));
            assert_eq!(chosen.map(|of| of.stages), stages, "{shared_max} bytes");
            assert!(chosen.iter().all(|of| of.shared() <= shared_max), "{chosen:?}");
        }
    }
}
