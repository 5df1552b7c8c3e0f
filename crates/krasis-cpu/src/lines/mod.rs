//! Products with weights in line layout (see `krasis_core::lines`), in integers.
//!
//! Activations are rounded to INT8 with a scale per 128 columns ([`Tokens`]). For each scale of the
//! weight the integers are multiplied and summed exactly, and the sums of a row are joined in f32 in
//! the order of its columns:
//!
//! `out = Σ_s fma(Σ_{k in s} w[k]·x[k], w_scale[s] · x_scale[s], …)`
//!
//! That is all the rounding there is. So every kernel gives the same bits, whatever its instruction
//! set, and whatever other rows and tokens it works on at the same time.

/// Calls the variant of a kernel for the lines at hand: its parameters are the 64-byte planes of
/// eight lines (INT4 keeps two in one) and the scales of a line, then one of its own if need be.
#[cfg(target_arch = "x86_64")]
macro_rules! by_format {
    ($lines:expr, $kernel:ident($($argument:expr),*) $(, $more:tt)?) => {
        match ($lines.bits, $lines.line_scales()) {
            (Bits::Four, 1) => $kernel::<8, 1 $(, $more)?>($($argument),*),
            (Bits::Four, 2) => $kernel::<8, 2 $(, $more)?>($($argument),*),
            (Bits::Four, _) => $kernel::<8, 4 $(, $more)?>($($argument),*),
            (Bits::Eight, 1) => $kernel::<16, 1 $(, $more)?>($($argument),*),
            (Bits::Eight, 2) => $kernel::<16, 2 $(, $more)?>($($argument),*),
            (Bits::Eight, _) => $kernel::<16, 4 $(, $more)?>($($argument),*),
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod panel;
mod plain;
#[cfg(target_arch = "x86_64")]
mod prefetch;
mod tokens;

use crate::isa::Isa;
use half::bf16;
use krasis_core::Lines;
use krasis_core::lines::{PLANE, ROWS};
pub use panel::PANEL_BLOCKS;
use panel::{Panel, TILE};
use std::ops::Range;
pub use tokens::{Span, Tokens};

/// A weight in line layout, or some whole blocks of one.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    lines: Lines,
    cols: usize,
    data: &'a [u8],
    scales: &'a [bf16],
}

impl<'a> Matrix<'a> {
    /// `data` and `scales` of whole blocks of rows of `cols`.
    pub fn new(lines: Lines, cols: usize, data: &'a [u8], scales: &'a [bf16]) -> Matrix<'a> {
        let blocks = data.len() / lines.block_bytes(cols);
        assert_eq!(data.len(), blocks * lines.block_bytes(cols), "whole blocks of {lines}");
        assert_eq!(scales.len(), blocks * lines.block_scales(cols), "scales of {blocks} blocks");
        Matrix { lines, cols, data, scales }
    }

    /// Its format.
    pub fn lines(&self) -> Lines {
        self.lines
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Blocks of 8 rows.
    pub fn blocks(&self) -> usize {
        self.data.len() / self.lines.block_bytes(self.cols)
    }

    /// Planes and scales of a block, line by line.
    fn block(&self, block: usize) -> (&'a [[u8; PLANE]], &'a [[bf16; ROWS]]) {
        let (bytes, scales) =
            (self.lines.block_bytes(self.cols), self.lines.block_scales(self.cols));
        let data = &self.data[block * bytes..][..bytes];
        let scales = &self.scales[block * scales..][..scales];
        (data.as_chunks().0, scales.as_chunks().0)
    }
}

/// Multiplies rows of `w` with `tokens` of `x`. Hands out `put(i, row, sums)`: the products of
/// `tokens[i]` with consecutive rows of the weight from `row` on; padding rows are among them.
///
/// Bytes: the blocks once for every 96 tokens (64 with AMX), and the tokens from cache.
pub fn multiply(
    isa: Isa,
    w: &Matrix,
    blocks: Range<usize>,
    x: &Tokens,
    tokens: &[u32],
    mut put: impl FnMut(usize, usize, &[f32]),
) {
    assert_eq!(x.lines(), w.lines, "activations were prepared for another format");
    assert!(blocks.end <= w.blocks(), "blocks {blocks:?} of {}", w.blocks());
    #[cfg(target_arch = "x86_64")]
    if let Isa::Amx(proof) = isa
        && tokens.len() >= amx::TOKENS_LEAST
    {
        return amx::multiply(proof, w, blocks, x, tokens, put);
    }
    let isa = isa.vectors();
    if tokens.len() <= tokens_alone(isa) {
        for block in blocks {
            let mut at = 0;
            while at < tokens.len() {
                at += few(isa, w, block, x, &tokens[at..], |i, sums| {
                    put(at + i, block * ROWS, sums);
                });
            }
        }
        return;
    }
    let mut panel = Panel::new();
    for first in blocks.clone().step_by(PANEL_BLOCKS) {
        let count = PANEL_BLOCKS.min(blocks.end - first);
        for (tile, tokens) in tokens.chunks(TILE).enumerate() {
            let sums = panel_sums(isa, w, first..first + count, x, tokens, &mut panel);
            for (i, sums) in sums.iter().enumerate() {
                put(tile * TILE + i, first * ROWS, &sums[..count * ROWS]);
            }
        }
    }
}

/// As many tokens meet a block one by one faster than a panel is unpacked for them: the block stays
/// in the first-level cache meanwhile.
fn tokens_alone(isa: Isa) -> usize {
    match isa {
        Isa::Plain => usize::MAX,
        Isa::Avx2(_) => 4,
        Isa::AvxVnni(_) => 3,
        Isa::Avx512Vnni(_) | Isa::Amx(_) => 4,
    }
}

/// The rows of one block times the first few tokens, as many as registers allow and the rest needs;
/// returns how many.
fn few(
    isa: Isa,
    w: &Matrix,
    block: usize,
    x: &Tokens,
    tokens: &[u32],
    mut put: impl FnMut(usize, &[f32]),
) -> usize {
    let token = |i: usize| x.row(tokens[i] as usize);
    let mut put = |sums: &[[f32; ROWS]]| {
        sums.iter().enumerate().for_each(|(i, sums)| put(i, sums));
        sums.len()
    };
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(proof) => match tokens.len() {
            1 => put(&avx512::vectors(proof, w, block, [token(0)])),
            2 | 4 => put(&avx512::vectors(proof, w, block, [token(0), token(1)])),
            _ => put(&avx512::vectors(proof, w, block, [token(0), token(1), token(2)])),
        },
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(proof) => put(&[avx2::vector_vnni(proof, w, block, token(0))]),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => put(&[avx2::vector(proof, w, block, token(0))]),
        _ => put(&[plain::vector(w, block, token(0))]),
    }
}

/// The rows of up to [`PANEL_BLOCKS`] blocks times up to [`TILE`] tokens.
fn panel_sums<'p>(
    isa: Isa,
    w: &Matrix,
    blocks: Range<usize>,
    x: &Tokens,
    tokens: &[u32],
    panel: &'p mut Panel,
) -> &'p [panel::Sums] {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(proof) => avx512::panel(proof, w, blocks, x, tokens, panel),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(proof) => avx2::panel_vnni(proof, w, blocks, x, tokens, panel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => avx2::panel(proof, w, blocks, x, tokens, panel),
        _ => unreachable!("the plain kernel has no panels"),
    }
    &panel.sums[..tokens.len()]
}

#[cfg(test)]
mod tests;
