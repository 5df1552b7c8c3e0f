//! What can be wrong with a cache.

use krasis_core::Bytes;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why a cache cannot be read or written. None of it is fatal: there is always the checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The operating system said no.
    #[error("cannot {doing} {file}: {cause}")]
    Io {
        /// Read, write, …
        doing: &'static str,
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// It would not fit.
    #[error("{dir} has {free} left and the cache needs {need} more: make room there")]
    Full {
        /// Where it should be.
        dir: PathBuf,
        /// What is missing of it.
        need: Bytes,
        /// What the file system has.
        free: Bytes,
    },
    /// Somebody has the lock and does nothing.
    #[error(
        "{file}: {} has the lock for {minutes} minutes without finishing a section: end it, or load without a cache (--no-cache)",
        process.map_or("a process".into(), |process| format!("process {process}"))
    )]
    Held {
        /// The file to be built.
        file: PathBuf,
        /// Who has it, if it told.
        process: Option<u32>,
        /// Since when nothing happened.
        minutes: u64,
    },
    /// Some other file.
    #[error("{file} is not a cache of weights")]
    NotACache {
        /// The file.
        file: PathBuf,
    },
    /// Of an older or newer program.
    #[error("{file} was written by another version of Krasis (format {found} instead of {known})")]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// It was changed after it was written.
    #[error("{file} is damaged: {what}")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where.
        what: String,
    },
    /// Of other weights.
    #[error("{file} was made of another checkpoint, or the checkpoint has changed since")]
    OtherModel {
        /// The file.
        file: PathBuf,
    },
    /// Of the right weights, in other formats.
    #[error("{file} holds other weights than are wanted: {what}")]
    OtherContents {
        /// The file.
        file: PathBuf,
        /// The first difference.
        what: String,
    },
}

impl CacheError {
    pub(super) fn io(doing: &'static str, file: &Path, cause: std::io::Error) -> CacheError {
        CacheError::Io { doing, file: file.into(), cause }
    }

    /// Whether there is simply no such file.
    pub fn is_absent(&self) -> bool {
        matches!(self, CacheError::Io { cause, .. } if cause.kind() == ErrorKind::NotFound)
    }
}
