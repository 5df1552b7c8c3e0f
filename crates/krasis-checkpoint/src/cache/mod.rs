//! A file of weights that are ready to be multiplied, kept beside the checkpoint they were made of.
//!
//! ```text
//! header | padding | section 0 | padding | section 1 | …
//! ```
//!
//! A [`Section`] is the image of one slot: the numbers or the scales of a weight. The header
//! (`header`) says what the sections are and has a checksum for each [`PIECE`] of them, or for each
//! expert of a bank, so that one can be read and checked alone. It is checked, byte for byte, whenever a file is opened; the sections are checked as they are read.
//! All padding is zero, so there is no bit in the file whose change would go unnoticed.
//!
//! Files are written under another name ([`Builder`]) and renamed when they are whole, by whoever
//! holds the lock ([`Lock`]). So reading takes no lock, and a file that is there is complete. What
//! an interrupted build has finished is listed in a journal, and the next one goes on from there.

mod build;
mod contents;
mod disk;
mod error;
mod file;
mod header;
mod lock;
mod rate;

pub use build::{Builder, Progress};
pub use contents::{Contents, Kind, Section, digest};
pub use error::CacheError;
pub use file::CacheFile;
pub use lock::{Lock, Taken};

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Bytes that are read, checked and written together, where a section has no parts.
pub const PIECE: usize = 4 << 20;

/// How the names of complete files end.
const ENDING: &str = "krasis";

/// Bytes a second that a disk gives of some file; nothing if that is too short to tell, or cannot be read.
pub fn rate(file: &Path) -> Option<f64> {
    let bytes = file.metadata().ok()?.len();
    rate::measure(&disk::Disk::open(file).ok()?, bytes)
}

/// All files in a folder, complete ones and those that are being built or were left so.
pub fn list(dir: &Path) -> Vec<PathBuf> {
    let entries = dir.read_dir().into_iter().flatten().flatten();
    let whole = |path: PathBuf| match path.extension() {
        Some(ending) if ending == ENDING => Some(path),
        Some(ending) if ending == "building" => Some(path.with_extension("")),
        _ => None,
    };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| whole(entry.path())).collect();
    files.sort();
    files.dedup();
    files
}

/// Removes a file and what was left of building it, for whoever holds its lock.
pub fn remove(lock: Lock, path: &Path) -> Result<(), CacheError> {
    for file in [path.to_owned(), aside(path, "building"), aside(path, "journal"), lock.path] {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(CacheError::io("remove", &file, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The name of a file that belongs to another.
fn aside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".");
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests;
