//! How much memory there is to take, and who limits it.

use crate::{files, groups};
use krasis_core::Bytes;
use std::path::Path;

/// The limit of one control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Its name, `/` for the outermost that is seen.
    pub group: String,
    /// What its processes may take together.
    pub limit: Bytes,
    /// What they hold, without pages of files, which are given back when memory is wanted.
    pub used: Bytes,
}

impl Limit {
    /// What is left.
    pub fn left(&self) -> Bytes {
        Bytes(self.limit.0.saturating_sub(self.used.0))
    }
}

/// The machine's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: Option<Bytes>,
    /// What can be allocated without swapping, as the kernel estimates it.
    pub available: Option<Bytes>,
    /// Swap space.
    pub swap_total: Option<Bytes>,
    /// Swap space that is unused.
    pub swap_free: Option<Bytes>,
    /// Limits of the control groups that hold this process, innermost first.
    pub limits: Vec<Limit>,
}

impl Memory {
    /// Reads `/proc/meminfo` and the control groups below `root`.
    pub fn read(root: &Path) -> Memory {
        let meminfo = files::text(root, "proc/meminfo").unwrap_or_default();
        Memory {
            total: files::kibibytes(&meminfo, "MemTotal"),
            available: files::kibibytes(&meminfo, "MemAvailable"),
            swap_total: files::kibibytes(&meminfo, "SwapTotal"),
            swap_free: files::kibibytes(&meminfo, "SwapFree"),
            limits: groups::limits(root),
        }
    }

    /// The control group that has the least left.
    pub fn tightest(&self) -> Option<&Limit> {
        self.limits.iter().min_by_key(|limit| limit.left())
    }

    /// What can be allocated without swapping and without reaching a limit.
    pub fn available_within_limits(&self) -> Option<Bytes> {
        self.available.into_iter().chain(self.tightest().map(Limit::left)).min()
    }

    /// Swap space that is in use.
    pub fn swapped(&self) -> Bytes {
        Bytes(
            self.swap_total
                .unwrap_or_default()
                .0
                .saturating_sub(self.swap_free.unwrap_or_default().0),
        )
    }
}
