//! Fetching lines before they are needed: the hardware's own prefetch stops at pages of 4 KiB.
//!
//! All lines come to the first-level cache 4 KiB ahead, and every other line (the hardware brings
//! its neighbour) to the second 8 KiB ahead. Asked for before the lines at hand are multiplied, one
//! thread of any instruction set reads nine tenths and more of what plain reading does (`cargo bench -p
//! krasis-ops --bench lines -- 1 vectors`); asked for behind them, or 2 KiB ahead, up to a tenth less.

use super::Matrix;
use super::panel::{PANEL_BLOCKS, WORDS};
use krasis_core::lines::{PLANE, ROWS};
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
use std::ops::Range;

const NEAR: usize = 4096;
const FAR: usize = 8192;

/// What will follow these planes.
#[inline]
#[target_feature(enable = "sse")]
pub fn prefetch(planes: &[[u8; PLANE]]) {
    for (i, plane) in planes.iter().enumerate() {
        let at = plane.as_ptr();
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(NEAR).cast());
        if i % 2 == 0 {
            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(FAR).cast());
        }
    }
}

/// For one part of `parts` of a panel: its share of the next panel's bytes, one page after the other,
/// to the second level. A panel jumps from block to block, where no prefetch of the hardware follows;
/// and many at once would stand in the way of its loads.
#[inline]
#[target_feature(enable = "sse")]
pub fn prefetch_panel(w: &Matrix, next: usize, part: usize, parts: usize) {
    let bytes = w.lines.block_bytes(w.cols);
    far(w.data.as_ptr().wrapping_add(next * bytes), PANEL_BLOCKS * bytes, part, parts);
    prefetch_scales(w, next, part, parts);
}

/// The same for its scales alone.
#[inline]
#[target_feature(enable = "sse")]
pub fn prefetch_scales(w: &Matrix, next: usize, part: usize, parts: usize) {
    let scales = w.lines.block_scales(w.cols);
    let from = w.scales.as_ptr().wrapping_add(next * scales);
    far(from.cast(), 2 * PANEL_BLOCKS * scales, part, parts);
}

#[inline]
#[target_feature(enable = "sse")]
fn far(from: *const u8, bytes: usize, part: usize, parts: usize) {
    let each = bytes.div_ceil(parts).next_multiple_of(PLANE);
    for at in (part * each..bytes.min((part + 1) * each)).step_by(PLANE) {
        _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(at).cast());
    }
}

/// What a panel of AVX-512 will need, asked for a line at a time while tiles of tokens are multiplied,
/// which leave the ports of loads idle half of the time: the next group of columns for the first level,
/// and the next panel's share for the second. All at once, before the tiles, INT8 of 32 tokens took a
/// quarter longer from memory than from cache (`cargo bench -p krasis-ops --bench lines -- 1 batches` has
/// both).
pub struct Ahead {
    near: *const u8,
    far: *const u8,
    block: usize,
    /// Stretches of [`WORDS`] lines that are left.
    left: usize,
}

impl Ahead {
    /// While `group` of a panel of these blocks is multiplied.
    pub fn of(w: &Matrix, blocks: &Range<usize>, group: usize) -> Ahead {
        let (block, each) = (w.lines.block_bytes(w.cols), ROWS * w.lines.line_bytes());
        let (first, next) = (blocks.start * block, blocks.end * block);
        let near = if (group + 1) * each < block { first + (group + 1) * each } else { next };
        let at = |at: usize| w.data.as_ptr().wrapping_add(at);
        let far = at(next + group * PANEL_BLOCKS * each);
        Ahead { near: at(near), far, block, left: PANEL_BLOCKS * each / (WORDS * PLANE) }
    }

    /// Line `i` of a stretch: of the group to come four lines of each block, of the panel to come
    /// 2 KiB.
    #[inline]
    #[target_feature(enable = "sse")]
    pub fn line(&self, i: usize) {
        if self.left > 0 {
            let near = i % PANEL_BLOCKS * self.block + i / PANEL_BLOCKS * PLANE;
            _mm_prefetch::<_MM_HINT_T0>(self.near.wrapping_add(near).cast());
            _mm_prefetch::<_MM_HINT_T1>(self.far.wrapping_add(i * PLANE).cast());
        }
    }

    /// On to the next stretch.
    #[inline]
    pub fn next(&mut self) {
        self.near = self.near.wrapping_add(WORDS / PANEL_BLOCKS * PLANE);
        self.far = self.far.wrapping_add(WORDS * PLANE);
        self.left = self.left.saturating_sub(1);
    }

    /// What too few tiles have left.
    #[inline]
    #[target_feature(enable = "sse")]
    pub fn rest(&mut self) {
        while self.left > 0 {
            (0..WORDS).for_each(|i| self.line(i));
            self.next();
        }
    }
}
