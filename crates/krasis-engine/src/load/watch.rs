//! What whoever waits for a model may want to see.

use krasis_core::Bytes;
use std::sync::atomic::{AtomicU64, Ordering};

/// What takes time before a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Weights are quantised and kept.
    Building,
    /// Another process does so.
    Waiting,
    /// Weights are brought into memory.
    Loading,
}

/// Hears how far loading is, often and from any thread.
pub trait Watch: Sync {
    /// So many bytes of weights are done; all of them ends the phase.
    fn progress(&self, phase: Phase, done: Bytes, of: Bytes);
}

/// How far loading is, over all devices.
pub struct Progress<'a> {
    watch: &'a dyn Watch,
    done: AtomicU64,
    of: Bytes,
}

impl Progress<'_> {
    /// Nothing is there yet of so many bytes.
    pub fn begin(watch: &dyn Watch, of: Bytes) -> Progress<'_> {
        watch.progress(Phase::Loading, Bytes(0), of);
        Progress { watch, done: AtomicU64::new(0), of }
    }

    /// So many bytes more are there.
    pub fn more(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.watch.progress(Phase::Loading, Bytes(done.min(self.of.0)), self.of);
    }

    /// Everything is there.
    pub fn end(self) {
        self.watch.progress(Phase::Loading, self.of, self.of);
    }
}

/// Nobody looks.
pub struct Unwatched;

impl Watch for Unwatched {
    fn progress(&self, _: Phase, _: Bytes, _: Bytes) {}
}
