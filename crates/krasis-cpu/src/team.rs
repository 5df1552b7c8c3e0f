//! The threads that compute: a fork-join team that is ready again in about a microsecond.
//!
//! The thread that calls is worker 0; the others wait for the next job, first spinning, then
//! yielding, then parked. Spinning catches the hundreds of small jobs of a decode step; yielding
//! soon keeps a team with more threads than cores from burning the time slices that its own workers
//! need (llama.cpp issue 13079 tells of a 200-fold loss); parking frees the machine between
//! requests.

use crate::affinity;
use crate::nodes::{Homes, NODES_MAX};
use crate::tiles::Tiles;
use krasis_machine::Core;
use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};

/// Rounds of spinning before the first yield: some 20 µs, longer than the gaps inside a layer.
const SPINS: u32 = 2_000;

/// Yields before a worker parks: a few milliseconds without work.
const YIELDS: u32 = 2_000;

/// What all workers run: called with the worker's number.
type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// A fixed set of threads. Work is handed out as ranges of indices.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    /// The NUMA node of each thread that stays on one.
    nodes: Vec<Option<u32>>,
}

struct Shared {
    /// Counts jobs; a worker that sees a new number runs the job.
    epoch: AtomicU32,
    /// Workers that have not finished the current job.
    pending: AtomicUsize,
    /// The current job, its lifetime erased; read only between a new epoch and the end of pending.
    job: UnsafeCell<Option<Job<'static>>>,
    /// Whether a job is running: a job inside a job, or one of another thread, runs alone.
    busy: AtomicBool,
    /// Workers that are parked or about to be.
    parked: Vec<AtomicBool>,
    /// The first panic of a worker, to be raised where the job was given.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    /// Rounds of spinning: none if threads outnumber cores, for then a waiting thread stands in the
    /// way of the one that it waits for.
    spins: u32,
}

// SAFETY: `job` is written only by the thread that holds `busy`, while no worker is pending, and
// read only by workers that are pending; `epoch` and `pending` order the two. The rest is atomic.
unsafe impl Sync for Shared {}
// SAFETY: as above; a job is `Sync`, so any thread may hold the reference.
unsafe impl Send for Shared {}

impl Team {
    /// A team of `threads`, or of one per physical core that this process may use all the time. As long
    /// as each has a core of its own, workers stay on theirs; NUMA nodes take turns.
    pub fn new(threads: Option<usize>) -> Team {
        Team::on(&affinity::cores(), threads)
    }

    /// The same with these cores, which may be those of a machine that a test has made up.
    pub fn on(cores: &[Core], threads: Option<usize>) -> Team {
        let threads = threads.unwrap_or_else(affinity::threads).max(1);
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            pending: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            busy: AtomicBool::new(false),
            parked: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            spins: if threads > cores.len() { 0 } else { SPINS },
        });
        let workers: Vec<JoinHandle<()>> = (1..threads)
            .map(|worker| {
                // The first core is left to the thread that calls.
                let core = (threads <= cores.len()).then(|| cores[worker]);
                let shared = shared.clone();
                let name = format!("krasis-team-{worker}");
                let body = move || {
                    if let Some(core) = core {
                        affinity::stay_on(core.cpu);
                    }
                    shared.work(worker);
                };
                thread::Builder::new()
                    .name(name)
                    .spawn(body)
                    .expect("the system has room for a few threads")
            })
            .collect();
        let handles = workers.iter().map(|worker| worker.thread().clone()).collect();
        let pinned = |worker: &usize| *worker > 0 && threads <= cores.len();
        let stays = |worker| Some(worker).filter(pinned).and_then(|worker| cores[worker].node);
        Team { shared, workers, handles, nodes: (0..threads).map(stays).collect() }
    }

    /// Threads in the team.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` once on every thread, with the numbers from 0, and returns when all are done. A
    /// panic in any of them is raised here. Inside another job it calls all numbers in a row.
    pub fn run(&self, work: impl Fn(usize) + Sync) {
        let shared = &*self.shared;
        if self.workers.is_empty() || shared.busy.swap(true, Ordering::Acquire) {
            return (0..self.threads()).for_each(work);
        }
        // SAFETY: only the lifetime changes; this function returns after the last worker is done
        // with the job, and panics do not leave it early.
        let job = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(&work) };
        // SAFETY: `busy` is ours and no worker is pending, so nobody else looks at the job.
        unsafe { *shared.job.get() = Some(job) };
        shared.pending.store(self.workers.len(), Ordering::Relaxed);
        // Sequentially consistent with `parked`: either the worker sees the epoch, or we see it parked.
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (worker, thread) in self.handles.iter().enumerate() {
            if shared.parked[worker + 1].load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        let mut waited = 0;
        while shared.pending.load(Ordering::Acquire) > 0 {
            shared.pause(&mut waited);
        }
        let theirs = shared.panic.lock().expect("nothing panics while it is held").take();
        shared.busy.store(false, Ordering::Release);
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Calls `work` on ranges that together cover `0..items`, at least `least` items each: a
    /// range that small is not worth waking a thread for. Whoever is free takes a share of what is
    /// left, so ranges get shorter: long stretches of memory first, and at the end all threads are
    /// done within a short one of each other.
    pub fn split(&self, items: usize, least: usize, work: impl Fn(Range<usize>) + Sync) {
        if self.threads() == 1 || items < 2 * least.max(1) {
            return work(0..items);
        }
        let shares = self.shares(items, least);
        self.run(|_| {
            while let Some(range) = shares.take() {
                work(range);
            }
        });
    }

    /// The ranges of [`Self::split`], for a job in which threads do more than take them.
    pub fn shares(&self, items: usize, least: usize) -> Shares {
        Shares { next: AtomicUsize::new(0), items, least: least.max(1), parts: 2 * self.threads() }
    }

    /// The same for a list of items on each of the nodes that memory lies on: `work(node, range)`, and
    /// whoever is free takes of its own node's list first.
    pub fn split_by_node(
        &self,
        homes: &Homes,
        items: &[usize],
        least: usize,
        work: impl Fn(usize, Range<usize>) + Sync,
    ) {
        if self.threads() == 1 || items.iter().sum::<usize>() < 2 * least.max(1) {
            return items.iter().enumerate().for_each(|(node, &items)| work(node, 0..items));
        }
        let shares = self.shares_by_node(items, least);
        self.run(|worker| {
            let own = self.place_of(worker, homes);
            while let Some((node, range)) = shares.take(own) {
                work(node, range);
            }
        });
    }

    /// The ranges of [`Self::split_by_node`], for a job in which threads do more than take them.
    pub fn shares_by_node(&self, items: &[usize], least: usize) -> NodeShares {
        assert!(items.len() <= NODES_MAX, "lists of {} nodes", items.len());
        // As long as nobody is late, each list has its own node's threads.
        let parts = 2 * self.threads().div_ceil(items.len().max(1));
        let shares = |node| {
            let items = items.get(node).copied().unwrap_or(0);
            Shares { next: AtomicUsize::new(0), items, least: least.max(1), parts }
        };
        NodeShares { lists: std::array::from_fn(shares), nodes: items.len() }
    }

    /// Whose list the calling thread begins with, which is this worker, if memory lies on these nodes.
    /// Threads that stay nowhere are asked where they are.
    pub fn place_of(&self, worker: usize, homes: &Homes) -> usize {
        let node = self.nodes[worker].or_else(affinity::node);
        homes.place_of(node).unwrap_or(worker % homes.nodes().max(1))
    }

    /// Waits within a job for what another of its threads is about to do.
    pub fn wait_until(&self, done: impl Fn() -> bool) {
        let mut waited = 0;
        while !done() {
            self.shared.pause(&mut waited);
        }
    }

    /// Calls `work(worker, item)` with each of `0..items`, one at a time and in order: for few items
    /// that cost unequally, dearest first.
    pub fn each(&self, items: usize, work: impl Fn(usize, usize) + Sync) {
        if items <= 1 || self.workers.is_empty() {
            return (0..items).for_each(|item| work(0, item));
        }
        let next = AtomicUsize::new(0);
        self.run(|worker| {
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= items {
                    return;
                }
                work(worker, item);
            }
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
        assert!(b_cols == 0 || b.rows() == rows, "matrices of {rows} and {} rows", b.rows());
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

/// Ranges that together cover `0..items`, in order, for whoever comes next.
pub struct Shares {
    next: AtomicUsize,
    items: usize,
    least: usize,
    /// As many shares would be left if they did not get shorter.
    parts: usize,
}

impl Shares {
    /// The next one; nothing if none is left.
    pub fn take(&self) -> Option<Range<usize>> {
        let mut start = self.next.load(Ordering::Relaxed);
        while start < self.items {
            let left = self.items - start;
            let end = start + (left / self.parts).max(self.least).min(left);
            match self.next.compare_exchange(start, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(start..end),
                Err(moved) => start = moved,
            }
        }
        None
    }
}

/// Ranges of several lists, one for each NUMA node.
pub struct NodeShares {
    lists: [Shares; NODES_MAX],
    nodes: usize,
}

impl NodeShares {
    /// The next range and its list: of `own` as long as there are any, then of the others.
    pub fn take(&self, own: usize) -> Option<(usize, Range<usize>)> {
        let nodes = (0..self.nodes).map(|turn| (own + turn) % self.nodes);
        nodes.map(|node| Some((node, self.lists[node].take()?))).find_map(|taken| taken)
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.handles.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker's panic was raised where its job was given.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, worker: usize) {
        let mut seen = 0;
        while self.wait(worker, seen) {
            seen = seen.wrapping_add(1);
            // SAFETY: a new epoch means that the job is written and stays until we are done.
            let job = unsafe { (*self.job.get()).expect("an epoch comes with a job") };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(worker))) {
                self.panic.lock().expect("nothing panics while it is held").get_or_insert(panic);
            }
            self.pending.fetch_sub(1, Ordering::Release);
        }
    }

    /// Until the epoch is no longer `seen`; false if the team is dissolved.
    fn wait(&self, worker: usize, seen: u32) -> bool {
        let mut waited = 0;
        loop {
            if self.epoch.load(Ordering::Acquire) != seen {
                return true;
            }
            if self.stop.load(Ordering::Acquire) {
                return false;
            }
            if waited < self.spins + YIELDS {
                self.pause(&mut waited);
                continue;
            }
            self.parked[worker].store(true, Ordering::SeqCst);
            if self.epoch.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            self.parked[worker].store(false, Ordering::SeqCst);
        }
    }

    /// A short rest: first on the core, then leaving it to others.
    fn pause(&self, waited: &mut u32) {
        if *waited < self.spins {
            spin_loop();
        } else {
            thread::yield_now();
        }
        *waited = waited.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::fake::FakeKernel;
    use crate::nodes::{Kernel, PIECE};
    use std::time::Duration;

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
    fn a_list_is_left_to_the_threads_of_its_node_as_long_as_they_have_any() {
        let team = Team::new(Some(3));
        for items in [&[7, 0, 100][..], &[0, 0], &[1, 1, 1, 1], &[1000]] {
            for own in 0..items.len() {
                let shares = team.shares_by_node(items, 2);
                let taken: Vec<_> = std::iter::from_fn(|| shares.take(own)).collect();
                let mut ends = vec![0; items.len()];
                for (node, range) in &taken {
                    assert_eq!(range.start, ends[*node]);
                    ends[*node] = range.end;
                }
                assert_eq!(ends, items);
                let others = taken.iter().position(|(node, _)| *node != own);
                let first = others.unwrap_or(taken.len());
                assert!(taken[first..].iter().all(|(node, _)| *node != own), "{taken:?}");
            }
        }
    }

    #[test]
    fn threads_know_their_nodes_on_machines_of_several() {
        for (nodes, threads) in [(2, 8), (4, 8), (4, 3)] {
            let core = |i| Core { cpu: 900 + i, node: Some(3 * (i % nodes)) };
            let cores: Vec<Core> = (0..8).map(core).collect();
            let team = Team::on(&cores, Some(threads));
            let kernel = FakeKernel::large_pages();
            let numbers: Vec<u32> = (0..nodes).map(|node| 3 * node).collect();
            kernel.interleave(0..16 * PIECE, &numbers).unwrap();
            let homes = Homes::find(&kernel, 0, 16 * PIECE, &numbers).unwrap().unwrap();
            let places: Vec<usize> =
                (0..threads).map(|worker| team.place_of(worker, &homes)).collect();
            let wanted: Vec<usize> = (0..threads).map(|worker| worker % nodes as usize).collect();
            assert_eq!(places, wanted);
            let items = vec![50; nodes as usize];
            let seen = Mutex::new(vec![vec![0; 50]; nodes as usize]);
            team.split_by_node(&homes, &items, 1, |node, range| {
                let mut seen = seen.lock().unwrap();
                range.for_each(|item| seen[node][item] += 1);
            });
            assert!(seen.into_inner().unwrap().iter().flatten().all(|&times| times == 1));
        }
    }

    #[test]
    fn each_item_comes_once() {
        let team = Team::new(Some(3));
        for items in [0, 1, 2, 50] {
            let seen: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            team.each(items, |worker, item| {
                assert!(worker < 3);
                seen[item].fetch_add(1, Ordering::Relaxed);
            });
            assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{items} items");
        }
    }

    /// More threads than cores, jobs in quick succession and after long rests.
    #[test]
    fn every_job_runs_once_on_every_thread() {
        let team = Team::new(Some(7));
        for round in 0..2000 {
            let calls: Vec<AtomicUsize> = (0..7).map(|_| AtomicUsize::new(0)).collect();
            team.run(|worker| {
                calls[worker].fetch_add(1, Ordering::Relaxed);
            });
            assert!(calls.iter().all(|n| n.load(Ordering::Relaxed) == 1), "round {round}");
            if round % 500 == 0 {
                thread::sleep(Duration::from_millis(30));
            }
        }
    }

    #[test]
    fn a_job_inside_a_job_runs_alone() {
        let team = Team::new(Some(2));
        let sum = AtomicUsize::new(0);
        team.split(10, 1, |outer| {
            for _ in outer {
                team.split(10, 1, |inner| {
                    sum.fetch_add(inner.len(), Ordering::Relaxed);
                });
            }
        });
        assert_eq!(sum.into_inner(), 100);
    }

    #[test]
    fn a_panic_is_raised_where_the_job_was_given() {
        let team = Team::new(Some(3));
        let result = catch_unwind(AssertUnwindSafe(|| {
            team.run(|worker| assert_ne!(worker, 2, "worker two fails"));
        }));
        assert!(result.is_err());
        let calls = AtomicUsize::new(0);
        team.run(|_| {
            calls.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.into_inner(), 3, "the team lives on");
    }
}
