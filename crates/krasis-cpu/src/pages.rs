//! Memory straight from the system: zeroed, and in pages of 2 MiB where they can be had.
//!
//! Decode reads gigabytes a token in short runs that start anywhere. With pages of 4 KiB each run
//! begins with a walk through the page tables, and prefetches that miss the TLB are dropped: two
//! cores decode 70 tokens a second of twelve layers of Qwen3-30B-A3B then, and 91 with 2 MiB.

use std::ptr::NonNull;

/// A page of the second level, on x86-64 and on most ARM systems.
const HUGE: usize = 2 << 20;

/// One mapping, whole huge pages from a multiple of their size.
pub(crate) struct Pages {
    base: NonNull<u8>,
    /// What was mapped, which begins up to a huge page before `base`.
    mapped: NonNull<u8>,
    mapped_bytes: usize,
}

impl Pages {
    /// At least `bytes` bytes, or nothing if the system refuses. Pages that are never touched cost
    /// nothing.
    pub(crate) fn new(bytes: usize) -> Option<Pages> {
        let bytes = bytes.max(1).checked_next_multiple_of(HUGE)?;
        let mapped_bytes = bytes.checked_add(HUGE)?;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new private mapping, which touches no memory of ours.
        let mapped =
            unsafe { libc::mmap(std::ptr::null_mut(), mapped_bytes, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return None;
        }
        let mapped = NonNull::new(mapped.cast::<u8>())?;
        let skip = mapped.align_offset(HUGE);
        // SAFETY: at most a huge page further, and the mapping is that much longer than asked for.
        let base = unsafe { mapped.add(skip) };
        // SAFETY: the range lies in the mapping; this is a wish, and small pages work as well.
        unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Some(Pages { base, mapped, mapped_bytes })
    }

    /// The first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nobody borrows from a value that is dropped.
        unsafe { libc::munmap(self.mapped.as_ptr().cast(), self.mapped_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::{HUGE, Pages};

    #[test]
    fn pages_are_zero_and_aligned() {
        for bytes in [0, 1, HUGE, HUGE + 1] {
            let pages = Pages::new(bytes).unwrap();
            assert!(pages.base().align_offset(HUGE) == 0);
            // SAFETY: as many bytes were asked for, and nobody writes them.
            let all = unsafe { std::slice::from_raw_parts(pages.base().as_ptr(), bytes) };
            assert!(all.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn more_than_there_is_address_space_is_refused() {
        assert!(Pages::new(usize::MAX).is_none() && Pages::new(usize::MAX / 2).is_none());
    }
}
