//! Memory asked for before it is needed. Vectors of a head lie apart from each other, which the
//! machine's own prefetchers do not foresee.

/// Asks for all cache lines of `data`.
#[inline]
pub fn prefetch(data: &[u8]) {
    data.chunks(64).for_each(|line| prefetch_line(line.as_ptr()));
}

/// Asks for the cache line of an address, if there is memory.
#[inline(always)]
pub fn prefetch_line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect on memory, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
