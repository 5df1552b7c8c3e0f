//! What the engine's thread counts while it works, for whoever wants to look from outside.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers that the engine's thread writes after each step and others read at any time. Each is true
/// by itself; two of them may come from different steps.
#[derive(Debug, Default)]
pub struct Census {
    /// Requests on their way to the engine's thread.
    pub queued: AtomicU64,
    /// Requests that the thread has taken and that wait for memory.
    pub waiting: AtomicU64,
    /// Requests that run.
    pub running: AtomicU64,
    /// KV pages of the plan.
    pub pages: AtomicU64,
    /// Those that a new request could get; some hold a past that may be found again.
    pub pages_available: AtomicU64,
    /// Prompt tokens that were looked for among known prefixes.
    pub prefix_queries: AtomicU64,
    /// Those that were found.
    pub prefix_hits: AtomicU64,
    /// Those of them that lay in the device's memory.
    pub prefix_hits_device: AtomicU64,
    /// Those that came from host memory beyond it.
    pub prefix_hits_ram: AtomicU64,
    /// Those that were read from the disk.
    pub prefix_hits_disk: AtomicU64,
    /// Those that nobody had computed before, or that nothing is left of.
    pub prefix_misses_new: AtomicU64,
    /// Those that were computed, but whose memory was needed, behind others that are known.
    pub prefix_misses_forgotten: AtomicU64,
    /// Those whose keys and values are known, but no state of recurrent layers behind them.
    pub prefix_misses_state: AtomicU64,
    /// Those that the disk has, but not as fast as they are computed.
    pub prefix_misses_slow: AtomicU64,
    /// Those that were found on the disk, and then could not be read.
    pub prefix_misses_damaged: AtomicU64,
    /// Bytes of host memory that pages and states take beyond the device's memory.
    pub prefix_ram_bytes: AtomicU64,
    /// Bytes of those on the disk that can be found.
    pub prefix_disk_bytes: AtomicU64,
    /// Sequences that went back to the queue because memory ended.
    pub preemptions: AtomicU64,
    /// Forward passes.
    pub steps: AtomicU64,
}

impl Census {
    /// A number as it is now.
    pub fn read(number: &AtomicU64) -> u64 {
        number.load(Ordering::Relaxed)
    }
}
