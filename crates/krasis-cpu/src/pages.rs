//! Memory straight from the system: zeroed, and in pages of 2 MiB where they can be had.
//!
//! Decode reads gigabytes a token in short runs that start anywhere. With pages of 4 KiB each run
//! begins with a walk through the page tables, and prefetches that miss the TLB are dropped: two
//! cores decode 70 tokens a second of twelve layers of Qwen3-30B-A3B then, and 91 with 2 MiB.

use std::ops::Range;
use std::ptr::NonNull;

/// On which NUMA nodes pages lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Where they are written first.
    Anywhere,
    /// On these nodes in turn, so that threads do not all wait for the memory of one. The first
    /// Krasis went from 98 to 53 ms a token with it, on two sockets.
    Interleave(Vec<u32>),
}

/// A page of the second level, on x86-64 and on most ARM systems.
pub(crate) const HUGE: usize = 2 << 20;

/// One mapping, whole huge pages from a multiple of their size.
pub(crate) struct Pages {
    base: NonNull<u8>,
    /// What was mapped, which begins up to a huge page before `base`.
    mapped: NonNull<u8>,
    mapped_bytes: usize,
}

// SAFETY: it owns its memory and says where it is, no more: whoever reads or writes there, as an arena
// does through `&self` and `&mut self`, has to argue for it.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

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

    /// All that was mapped.
    pub(crate) fn mapped(&self) -> Range<usize> {
        let first = self.mapped.as_ptr() as usize;
        first..first + self.mapped_bytes
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
    use crate::nodes::{Kernel, System};

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

    /// The policy of the page at `at`, as the kernel tells it.
    fn policy(at: *mut u8) -> Option<libc::c_int> {
        const OF_ADDRESS: libc::c_int = 2;
        let mut mode: libc::c_int = -1;
        let none = std::ptr::null_mut::<u64>();
        // SAFETY: the kernel writes one number, and nothing through the absent mask.
        let refused = unsafe {
            libc::syscall(libc::SYS_get_mempolicy, &mut mode, none, 0usize, at, OF_ADDRESS)
        };
        (refused == 0).then_some(mode)
    }

    /// Node 0 is everywhere; where system calls are filtered, the refusal is all there is to see.
    #[test]
    fn pages_are_interleaved_where_the_system_allows_it() {
        let pages = Pages::new(3 * HUGE).unwrap();
        let last = pages.base().as_ptr().wrapping_add(3 * HUGE - 1);
        assert!(policy(last).is_none_or(|mode| mode == 0));
        match System.interleave(pages.mapped(), &[0]) {
            Ok(()) => assert_eq!(policy(last), Some(libc::MPOL_INTERLEAVE)),
            Err(error) => println!("refused: {error}"),
        }
    }

    #[test]
    fn memory_is_usable_after_a_refusal() {
        for nodes in [&[][..], &[900], &[100_000]] {
            let pages = Pages::new(1).unwrap();
            assert!(System.interleave(pages.mapped(), nodes).is_err(), "{nodes:?}");
            // SAFETY: at least a byte was asked for, and it is ours alone.
            unsafe { pages.base().as_ptr().write(1) };
        }
    }
}
