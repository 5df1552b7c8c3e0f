//! The right to build a file. It dies with the process that holds it, so nobody waits for the dead.

use super::aside;
use super::error::CacheError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    pub(super) path: PathBuf,
    _file: File,
}

/// What became of asking for a lock.
#[derive(Debug)]
pub enum Taken {
    /// It is ours.
    Ours(Lock),
    /// Somebody else has it.
    Theirs {
        /// Number of the process, as far as it told.
        process: Option<u32>,
    },
}

impl Lock {
    /// Asks for the lock of the file at `path`, without waiting.
    pub fn take(path: &Path) -> Result<Taken, CacheError> {
        let path = aside(path, "lock");
        let cannot = |cause| CacheError::io("lock", &path, cause);
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let mut file = options.open(&path).map_err(cannot)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    // Who holds it may not have said so yet.
                    let _ = file.read_to_string(&mut text);
                    return Ok(Taken::Theirs { process: text.trim().parse().ok() });
                }
                Err(TryLockError::Error(cause)) => return Err(cannot(cause)),
            }
            // Whoever removed the cache meanwhile has removed the file that we have locked.
            let ours = file.metadata().map_err(cannot)?.ino();
            if !path.metadata().is_ok_and(|there| there.ino() == ours) {
                continue;
            }
            let process = std::process::id();
            // For people who wait only: that nothing fits on the disk is found out soon enough.
            let _ = file.set_len(0).and_then(|()| writeln!(file, "{process}"));
            return Ok(Taken::Ours(Lock { path, _file: file }));
        }
    }
}
