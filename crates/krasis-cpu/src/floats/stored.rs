//! Types of numbers that kernels read where they lie.

use super::lanes::Lanes;

/// # Safety
/// That of [`Lanes`].
pub(super) trait Stored {
    const BYTES: usize;
    /// Numbers from memory, as many as a register holds.
    unsafe fn load<L: Lanes>(from: *const u8) -> L;
    /// Number `i` of those in a word.
    unsafe fn of_word<L: Lanes>(word: L, i: usize) -> L;
}

pub(super) struct Bf16;
pub(super) struct F32;

impl Stored for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u8) -> L {
        // SAFETY: promised by the caller.
        unsafe { L::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn of_word<L: Lanes>(word: L, i: usize) -> L {
        // SAFETY: promised by the caller.
        unsafe { if i == 0 { word.lower_bf16() } else { word.upper_bf16() } }
    }
}

impl Stored for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u8) -> L {
        // SAFETY: promised by the caller.
        unsafe { L::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn of_word<L: Lanes>(word: L, _: usize) -> L {
        word
    }
}
