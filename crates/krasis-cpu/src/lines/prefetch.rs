//! Fetching lines before they are needed: the hardware's own prefetch stops at pages of 4 KiB.
//!
//! All lines come to the first-level cache 4 KiB ahead, and every other line (the hardware brings
//! its neighbour) to the second 8 KiB ahead. Asked for before the lines at hand are multiplied, one
//! thread of any instruction set reads nine tenths and more of what plain reading does (`cargo bench -p
//! krasis-ops --bench lines -- 1 vectors`); asked for behind them, or 2 KiB ahead, up to a tenth less.

use super::Matrix;
use super::panel::PANEL_BLOCKS;
use krasis_core::lines::PLANE;
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

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
    let fetch = |from: *const u8, bytes: usize| {
        let each = bytes.div_ceil(parts).next_multiple_of(PLANE);
        for at in (part * each..bytes.min((part + 1) * each)).step_by(PLANE) {
            _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(at).cast());
        }
    };
    let (bytes, scales) = (w.lines.block_bytes(w.cols), w.lines.block_scales(w.cols));
    fetch(w.data.as_ptr().wrapping_add(next * bytes), PANEL_BLOCKS * bytes);
    fetch(w.scales.as_ptr().wrapping_add(next * scales).cast(), 2 * PANEL_BLOCKS * scales);
}
