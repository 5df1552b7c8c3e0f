//! What this process holds in memory.

use crate::files;
use krasis_core::Bytes;
use std::path::Path;

/// Sizes of `/proc/self/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Everything, mapped files included.
    pub all: Option<Bytes>,
    /// The most that it has been, since the process started or [`forget_peak`] was called.
    pub peak: Option<Bytes>,
    /// Without files: what only ends with the process.
    pub anonymous: Option<Bytes>,
    /// What has been swapped out.
    pub swapped: Option<Bytes>,
}

impl Resident {
    /// Reads `/proc/self/status` below `root`.
    pub fn read(root: &Path) -> Resident {
        let status = files::text(root, "proc/self/status").unwrap_or_default();
        Resident {
            all: files::kibibytes(&status, "VmRSS"),
            peak: files::kibibytes(&status, "VmHWM"),
            anonymous: files::kibibytes(&status, "RssAnon"),
            swapped: files::kibibytes(&status, "VmSwap"),
        }
    }
}

/// Makes [`Resident::peak`] begin anew, where the kernel lets it.
pub fn forget_peak(root: &Path) {
    // Refused, the peak is that of the whole process: larger, and still true.
    let _ = std::fs::write(root.join("proc/self/clear_refs"), "5");
}

/// How much of it lies in transparent huge pages. The kernel walks all pages for this: some tenths
/// of a second for hundreds of gigabytes in small ones.
pub fn huge(root: &Path) -> Option<Bytes> {
    files::kibibytes(&files::text(root, "proc/self/smaps_rollup")?, "AnonHugePages")
}
