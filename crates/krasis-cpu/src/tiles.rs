//! A matrix that threads fill together.

use std::marker::PhantomData;
use std::ops::Range;

/// A matrix that a team fills, each worker its own tiles.
pub struct Tiles<'a, T> {
    base: *mut T,
    rows: usize,
    cols: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: workers only reach disjoint tiles, which `tile` demands of its caller.
unsafe impl<T: Send> Sync for Tiles<'_, T> {}

impl<'a, T> Tiles<'a, T> {
    /// `all` as rows of `cols`.
    pub fn new(all: &'a mut [T], cols: usize) -> Tiles<'a, T> {
        assert_eq!(all.len() % cols.max(1), 0, "{} elements in rows of {cols}", all.len());
        Tiles { base: all.as_mut_ptr(), rows: all.len() / cols.max(1), cols, life: PhantomData }
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns `cols` of row `row`.
    ///
    /// # Safety
    /// No other live tile overlaps it.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub unsafe fn tile(&self, row: usize, cols: Range<usize>) -> &mut [T] {
        assert!(row < self.rows && cols.start <= cols.end && cols.end <= self.cols);
        // SAFETY: inside the slice by the assertion, unshared by the caller's promise.
        unsafe {
            let first = self.base.add(row * self.cols + cols.start);
            std::slice::from_raw_parts_mut(first, cols.len())
        }
    }

    /// One element.
    ///
    /// # Safety
    /// No other live tile holds it.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub unsafe fn cell(&self, row: usize, col: usize) -> &mut T {
        // SAFETY: promised by the caller.
        unsafe { &mut self.tile(row, col..col + 1)[0] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::Team;

    #[test]
    fn workers_fill_their_tiles() {
        let team = Team::new(Some(2));
        let mut all = vec![0usize; 6 * 10];
        let tiles = Tiles::new(&mut all, 10);
        team.split(10, 1, |cols| {
            for row in 0..6 {
                // SAFETY: the ranges of `split` are disjoint.
                let tile = unsafe { tiles.tile(row, cols.clone()) };
                tile.iter_mut().zip(cols.clone()).for_each(|(at, col)| *at = row * 10 + col);
            }
        });
        assert!(all.iter().enumerate().all(|(i, &value)| i == value));
    }
}
