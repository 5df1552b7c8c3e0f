//! What whoever waits for a model may want to see.

use krasis_core::Bytes;

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

/// Nobody looks.
pub struct Unwatched;

impl Watch for Unwatched {
    fn progress(&self, _: Phase, _: Bytes, _: Bytes) {}
}
