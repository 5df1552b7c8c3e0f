//! The threads that compute, and the matrix that they fill together.

use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// A fixed set of threads. Work is handed out as ranges of indices.
pub struct Team {
    pool: rayon::ThreadPool,
}

impl Team {
    /// A team of `threads`, or of as many as this process may use.
    pub fn new(threads: Option<usize>) -> Team {
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(allowed).max(1))
            .thread_name(|i| format!("krasis-team-{i}"))
            .build()
            .expect("the system has room for a few threads");
        Team { pool }
    }

    /// Threads in the team.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Calls `work` on ranges that together cover `0..items`, at least `least` items each: a
    /// range that small is not worth waking a thread for.
    pub fn split(&self, items: usize, least: usize, work: impl Fn(Range<usize>) + Sync) {
        // A few ranges per thread even out cores of unequal speed.
        let ranges = (items / least.max(1)).clamp(1, self.threads() * 4);
        if ranges == 1 || self.threads() == 1 {
            return work(0..items);
        }
        let bound = |i| items * i / ranges;
        self.pool.install(|| {
            (0..ranges).into_par_iter().for_each(|i| work(bound(i)..bound(i + 1)));
        });
    }

    /// Calls `work` with each row of two matrices that have equally many rows, of `a_cols` and
    /// `b_cols` elements; the second may have none.
    pub fn each_row<A: Send, B: Send>(
        &self,
        a: &mut [A],
        a_cols: usize,
        b: &mut [B],
        b_cols: usize,
        work: impl Fn(usize, &mut [A], &mut [B]) + Sync,
    ) {
        let (rows, a, b) = (a.len() / a_cols, Tiles::new(a, a_cols), Tiles::new(b, b_cols));
        assert!(b_cols == 0 || b.rows == rows, "matrices of {rows} and {} rows", b.rows);
        self.split(rows, 1, |range| {
            for row in range {
                // SAFETY: each row is handed out once.
                let (a, b) = unsafe {
                    let b = if b_cols == 0 { &mut [] } else { b.tile(row, 0..b_cols) };
                    (a.tile(row, 0..a_cols), b)
                };
                work(row, a, b);
            }
        });
    }
}

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
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn ranges_cover_every_item_once() {
        let team = Team::new(Some(3));
        for items in [0, 1, 2, 7, 100, 1001] {
            let seen: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            team.split(items, 2, |range| {
                for i in range {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{items} items");
        }
    }

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
