//! Reads a file as fast as it comes: what the system's file cache has from there, everything else
//! from the disk straight into its place.
//!
//! Past the file cache the disk writes into our memory by itself: no copy, no pages taken from
//! others, and no second copy of the weights in memory afterwards. `cargo bench -p krasis-engine
//! --bench load` compares it with plain reads.

use rustix::fs::{Advice, OFlags, fadvise};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags, preadv2};
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Bytes that are read from the file cache at a time, so that whoever looks at them next finds them
/// in the second-level cache.
const STEP: usize = 512 << 10;

/// What the largest blocks of disks divide: lengths and places of direct reads are multiples of it.
const BLOCK: usize = 4 << 10;

/// A file that is read by several threads.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    /// Past the file cache, where the file system can do that and can tell what is cached.
    direct: Option<File>,
}

impl Disk {
    pub(super) fn open(path: &Path) -> io::Result<Disk> {
        let file = File::open(path)?;
        let flag = OFlags::DIRECT.bits() as i32;
        let direct = OpenOptions::new().read(true).custom_flags(flag).open(path);
        // Whoever builds the file again puts another one under its name.
        let number = file.metadata()?.ino();
        let direct = direct.ok().filter(|direct| {
            direct.metadata().is_ok_and(|about| about.ino() == number)
                && cached(&file, 0, &mut [0]).is_some()
        });
        Ok(Disk { file, direct })
    }

    /// The file as others read it.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Fills `bytes` from `at` on, and shows them to `see` in order.
    pub(super) fn read(
        &self,
        at: u64,
        bytes: &mut [u8],
        mut see: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let (first, end) = (at + done as u64, bytes.len().min(done + STEP));
            let is_cached = self.direct.is_some()
                && cached(&self.file, first, &mut bytes[done..end]).unwrap_or(false);
            if !is_cached {
                if self.read_direct(first, &mut bytes[done..])? {
                    see(&bytes[done..]);
                    return Ok(());
                }
                self.file.read_exact_at(&mut bytes[done..end], first)?;
            }
            see(&bytes[done..end]);
            done = end;
        }
        Ok(())
    }

    /// Fills `bytes` from the disk, whatever the file cache has.
    pub(super) fn read_anew(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        if !self.read_direct(at, bytes)? {
            self.forget(at, bytes.len() as u64);
            self.file.read_exact_at(bytes, at)?;
        }
        Ok(())
    }

    /// Has the file cache drop a range, as far as whole pages of it go. Where that is refused it drops
    /// others as it needs them.
    pub(super) fn forget(&self, at: u64, bytes: u64) {
        if let Some(bytes) = NonZeroU64::new(bytes) {
            let _ = fadvise(&self.file, at, Some(bytes), Advice::DontNeed);
        }
    }

    /// Fills `bytes` straight from the disk; false if it wants them in other memory or cannot. What else
    /// is wrong with it, the file cache will hear, too.
    fn read_direct(&self, at: u64, bytes: &mut [u8]) -> io::Result<bool> {
        let Some(direct) = &self.direct else { return Ok(false) };
        let (whole, rest) = bytes.split_at_mut(bytes.len() / BLOCK * BLOCK);
        if direct.read_exact_at(whole, at).is_err() {
            return Ok(false);
        }
        self.file.read_exact_at(rest, at + whole.len() as u64)?;
        Ok(true)
    }
}

/// Fills `bytes` if the file cache has all of them; nothing if that cannot be told.
fn cached(file: &File, at: u64, bytes: &mut [u8]) -> Option<bool> {
    match preadv2(file, &mut [IoSliceMut::new(bytes)], at, ReadWriteFlags::NOWAIT) {
        Ok(read) => Some(read == bytes.len()),
        Err(Errno::AGAIN) => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Disk, STEP};
    use rustix::fs::{Advice, fadvise};
    use std::fs::File;
    use std::io::Write;
    use std::ops::Range;

    /// From the disk and from the file cache, into memory that a disk can write and that it cannot,
    /// at places that it can read and that it cannot.
    #[test]
    fn every_way_of_reading_gives_the_same_bytes() {
        let all: Vec<u8> = (0..2 * STEP + 3 * BLOCK + 77).map(|at| (at * 7 % 251) as u8).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers");
        let mut file = File::create(&path).unwrap();
        file.write_all(&all).unwrap();
        file.sync_all().unwrap();
        let mut room = vec![0; all.len() + 2 * BLOCK];
        let aligned = room.as_ptr().align_offset(BLOCK);
        let mut check = |range: Range<usize>, skip: usize| {
            let disk = Disk::open(&path).unwrap();
            let wanted = &all[range.clone()];
            for forgotten in [true, false, false] {
                if forgotten {
                    // A file system that keeps everything in memory refuses, which is as well.
                    let _ = fadvise(&file, 0, None, Advice::DontNeed);
                }
                let bytes = &mut room[aligned + skip..][..range.len()];
                bytes.fill(0xff);
                let mut seen = Vec::new();
                disk.read(range.start as u64, bytes, |part| seen.extend_from_slice(part)).unwrap();
                assert!(bytes == wanted && seen == wanted, "{range:?}, {skip} bytes off");
            }
        };
        for skip in [0, 1, 64] {
            check(0..all.len(), skip);
            check(BLOCK..BLOCK + STEP, skip);
            check(2 * BLOCK..2 * BLOCK + 5, skip);
            check(77..STEP + 100, skip);
            check(all.len()..all.len(), skip);
        }
    }

    #[test]
    fn a_file_that_ends_too_early_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("short");
        std::fs::write(&path, vec![1; 3 * BLOCK]).unwrap();
        let disk = Disk::open(&path).unwrap();
        for len in [3 * BLOCK + 1, 4 * BLOCK, STEP] {
            assert!(disk.read(0, &mut vec![0; len], |_| {}).is_err(), "{len}");
        }
    }
}
