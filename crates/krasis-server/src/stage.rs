//! Where a server is in its life, from the open port to the last answer.

use serde_json::{Value, json};

/// What a server can do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The port is open and the model is not there yet.
    Loading(Progress),
    /// Requests are answered.
    Ready,
    /// A signal has come: answers in flight are finished, new requests refused.
    Draining,
    /// Answers in flight are told that they end here.
    Over(Over),
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is done, in words: "quantising".
    pub phase: &'static str,
    /// How much of this phase is done, of 100.
    pub percent: u8,
}

impl Progress {
    /// A phase that has done so much of so much.
    pub fn of(phase: &'static str, done: u64, of: u64) -> Progress {
        let percent = u128::from(done) * 100 / u128::from(of.max(1));
        Progress { phase, percent: percent.min(100) as u8 }
    }
}

/// Why answers in flight end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The time for finishing them is over.
    Stopped,
    /// The device or the engine failed.
    Failed,
}

impl Stage {
    /// For readiness and status.
    pub fn json(&self) -> Value {
        match self {
            Stage::Loading(Progress { phase, percent }) => {
                json!({"status": "loading", "phase": phase, "percent": percent})
            }
            Stage::Ready => json!({"status": "ok"}),
            Stage::Draining | Stage::Over(Over::Stopped) => json!({"status": "draining"}),
            Stage::Over(Over::Failed) => json!({"status": "failed"}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Progress;

    #[test]
    fn progress_never_leaves_its_scale() {
        for (done, of, percent) in [(0, 0, 0), (1, 3, 33), (3, 3, 100), (9, 3, 100)] {
            assert_eq!(Progress::of("x", done, of).percent, percent);
        }
        assert_eq!(Progress::of("x", u64::MAX, u64::MAX).percent, 100);
    }
}
