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
