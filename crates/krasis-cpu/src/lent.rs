//! Memory of an arena in somebody else's hands: a thread fills it from a disk while the arena is at work.

use crate::pages::Pages;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

/// A range of an arena that is its holder's alone: the arena refuses to read or write there until it has
/// it back. What is dropped instead stays refused.
pub struct Lent {
    pages: Arc<Pages>,
    range: Range<usize>,
}

// SAFETY: the range is the holder's alone, whichever thread that is, and the pages stay mapped.
unsafe impl Send for Lent {}

impl Deref for Lent {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: inside the allocation and initialised, as `Loans::lend` was promised; nobody else has it.
        unsafe {
            let first = self.pages.base().add(self.range.start);
            std::slice::from_raw_parts(first.as_ptr(), self.range.len())
        }
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and through `&mut self` there is one borrower.
        unsafe {
            let first = self.pages.base().add(self.range.start);
            std::slice::from_raw_parts_mut(first.as_ptr(), self.range.len())
        }
    }
}

/// What an arena has lent, by where it begins; no two overlap.
#[derive(Default)]
pub(crate) struct Loans(Vec<Range<usize>>);

impl Loans {
    /// Whether a range is free of them.
    pub(crate) fn spare(&self, range: &Range<usize>) -> bool {
        let next = self.0.partition_point(|lent| lent.end <= range.start);
        self.0.get(next).is_none_or(|lent| lent.start >= range.end)
    }

    /// # Safety
    /// The range lies inside `pages`, nobody borrows from it now, and whoever hands out memory of these
    /// pages asks [`Self::spare`] first.
    pub(crate) unsafe fn lend(&mut self, pages: &Arc<Pages>, range: Range<usize>) -> Lent {
        assert!(self.spare(&range), "bytes {range:?} are lent already");
        if !range.is_empty() {
            let at = self.0.partition_point(|lent| lent.start < range.start);
            self.0.insert(at, range.clone());
        }
        Lent { pages: pages.clone(), range }
    }

    pub(crate) fn take_back(&mut self, pages: &Arc<Pages>, lent: Lent) {
        assert!(Arc::ptr_eq(pages, &lent.pages), "it was lent by another arena");
        let at = self.0.partition_point(|range| range.start < lent.range.start);
        if !lent.range.is_empty() {
            assert_eq!(self.0.remove(at), lent.range, "what comes back was lent");
        }
    }
}
