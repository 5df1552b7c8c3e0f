//! A cache that is being written, and the journal that lets an interrupted build go on.
//!
//! The journal's first line says of what contents; each further one that a section is complete on
//! the disk, with its checksums, and has a checksum itself. It is written after the section, so
//! what it says holds, and what a dying machine made of its last line is not believed.

use super::contents::Contents;
use super::error::CacheError;
use super::lock::Lock;
use super::{aside, header};
use krasis_core::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The one process that builds a file.
#[derive(Debug)]
pub struct Builder {
    path: PathBuf,
    contents: Contents,
    places: Vec<Range<u64>>,
    data: File,
    journal: File,
    /// Of each piece of each section.
    checks: Vec<Vec<AtomicU32>>,
    done: Vec<bool>,
    _lock: Lock,
}

/// How far a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are on the disk.
    pub done: Bytes,
    /// Bytes of all sections.
    pub of: Bytes,
}

impl Progress {
    /// How far the build of the file at `path` is, by its journal; nothing if there is none.
    pub fn of(path: &Path) -> Option<Progress> {
        let text = std::fs::read_to_string(aside(path, "journal")).ok()?;
        let mut lines = text.lines();
        let of = lines.next()?.split(' ').nth(2)?.parse().ok()?;
        let bytes = |line: &str| line.split(' ').nth(1)?.parse::<u64>().ok();
        Some(Progress { done: Bytes(lines.map_while(bytes).sum()), of: Bytes(of) })
    }
}

impl Builder {
    /// Begins a build, or goes on with one of the same contents, after reading again what its
    /// journal says is there.
    pub fn begin(lock: Lock, path: &Path, contents: Contents) -> Result<Builder, CacheError> {
        let open = |ending| {
            let path = aside(path, ending);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.open(&path).map_err(|cause| CacheError::io("write", &path, cause))
        };
        let (data, journal) = (open("building")?, open("journal")?);
        let places = contents.places(header::length(&contents));
        let pieces = contents.sections.iter().map(|section| section.pieces());
        let mut builder = Builder {
            path: path.into(),
            checks: pieces.map(|n| (0..n).map(|_| AtomicU32::new(0)).collect()).collect(),
            done: vec![false; places.len()],
            contents,
            places,
            data,
            journal,
            _lock: lock,
        };
        if let Err(error) = builder.resume().and_then(|()| builder.reserve()) {
            builder.discard();
            return Err(error);
        }
        Ok(builder)
    }

    /// Whether a section is there already.
    pub fn has(&self, section: usize) -> bool {
        self.done[section]
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let done = self.contents.sections.iter().zip(&self.done).filter(|(_, done)| **done);
        Progress {
            done: done.map(|(section, _)| Bytes(section.bytes)).sum(),
            of: self.contents.bytes(),
        }
    }

    /// Writes whole pieces of a section, from the first of them on; several threads may do so.
    pub fn write(&self, section: usize, first: u64, bytes: &[u8]) -> Result<(), CacheError> {
        self.data
            .write_all_at(bytes, self.places[section].start + first)
            .map_err(|cause| self.cannot(cause))?;
        let piece = self.contents.sections[section].piece();
        let checks = &self.checks[section][(first / piece) as usize..];
        for (check, bytes) in checks.iter().zip(bytes.chunks(piece as usize)) {
            check.store(crc32fast::hash(bytes), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Notes that these sections are complete, once they are on the disk.
    pub fn commit(&mut self, sections: Range<usize>) -> Result<(), CacheError> {
        self.data.sync_data().map_err(|cause| self.cannot(cause))?;
        let mut lines = String::new();
        for section in sections.clone() {
            lines += &line(&format!(
                "{section} {} {}",
                self.contents.sections[section].bytes,
                digits(&self.checks[section])
            ));
        }
        self.note(&lines)?;
        self.done[sections].fill(true);
        Ok(())
    }

    /// Completes the file, which then has its name.
    pub fn finish(self) -> Result<(), CacheError> {
        assert!(self.done.iter().all(|&done| done), "a cache is complete when it gets its name");
        let checks: Vec<Vec<u32>> = self
            .checks
            .iter()
            .map(|checks| checks.iter().map(|check| check.load(Ordering::Relaxed)).collect())
            .collect();
        let whole = self
            .data
            .write_all_at(&header::write(&self.contents, &checks), 0)
            .and_then(|()| self.data.sync_all())
            .and_then(|()| std::fs::rename(aside(&self.path, "building"), &self.path))
            .and_then(|()| File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all());
        whole.map_err(|cause| self.cannot(cause))?;
        // Left behind, it would describe a file that is not there, which the next build sees.
        let _ = std::fs::remove_file(aside(&self.path, "journal"));
        Ok(())
    }

    /// Gives up, and leaves nothing behind.
    pub fn discard(self) {
        for ending in ["building", "journal"] {
            // What cannot be removed is found by the next build, or by people.
            let _ = std::fs::remove_file(aside(&self.path, ending));
        }
    }

    /// Believes the journal as far as it can be checked, and forgets the rest of it.
    fn resume(&mut self) -> Result<(), CacheError> {
        let mut text = Vec::new();
        self.journal.read_to_end(&mut text).map_err(|cause| self.cannot(cause))?;
        let (version, digest) = (header::VERSION, self.contents.digest());
        let opening =
            line(&format!("krasis-journal-{version} {digest:016x} {}", self.contents.bytes().0));
        let Some(rest) = text.strip_prefix(opening.as_bytes()) else {
            // What else may be in the file would stay in its padding.
            let emptied = self.journal.set_len(0).and_then(|()| self.data.set_len(0));
            emptied.map_err(|cause| self.cannot(cause))?;
            return self.note(&opening);
        };
        let mut good = opening.len();
        for line in rest.split_inclusive(|&byte| byte == b'\n') {
            let Some(section) = std::str::from_utf8(line).ok().and_then(|line| self.check(line))
            else {
                break;
            };
            self.done[section] = true;
            good += line.len();
        }
        self.journal.set_len(good as u64).map_err(|cause| self.cannot(cause))
    }

    /// The section that a line of the journal tells of, if it is there and as it should be.
    fn check(&self, text: &str) -> Option<usize> {
        let words = text.strip_suffix('\n')?.rsplit_once(' ')?.0;
        if line(words) != text {
            return None;
        }
        let mut words = words.split(' ');
        let section: usize = words.next()?.parse().ok()?;
        let checks = words.nth(1)?;
        let place = self.places.get(section)?;
        let piece = self.contents.sections[section].piece();
        let mut bytes = vec![0; piece.min(place.end - place.start) as usize];
        for (first, check) in (0..).step_by(piece as usize).zip(&self.checks[section]) {
            let bytes = &mut bytes[..piece.min(place.end - place.start - first) as usize];
            self.data.read_exact_at(bytes, place.start + first).ok()?;
            check.store(crc32fast::hash(bytes), Ordering::Relaxed);
        }
        (digits(&self.checks[section]) == checks).then_some(section)
    }

    /// Takes the disk space of the whole file, so that a disk is full now or not at all.
    fn reserve(&self) -> Result<(), CacheError> {
        let end = self.places.last().map_or(0, |place| place.end);
        let about = self.data.metadata().map_err(|cause| self.cannot(cause))?;
        let need = end.saturating_sub(about.blocks() * 512);
        let dir = self.path.parent().unwrap_or(Path::new("."));
        if let Ok(about) = rustix::fs::statvfs(dir) {
            let free = about.f_bavail * about.f_frsize;
            if need > free {
                let (need, free) = (Bytes(need), Bytes(free));
                return Err(CacheError::Full { dir: dir.into(), need, free });
            }
        }
        match fallocate(&self.data, FallocateFlags::empty(), 0, end) {
            // Not every file system can; then the length is all that is set.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(error) => return Err(self.cannot(error.into())),
        }
        self.data.set_len(end).map_err(|cause| self.cannot(cause))
    }

    fn note(&mut self, lines: &str) -> Result<(), CacheError> {
        let mut journal = &self.journal;
        journal
            .seek(SeekFrom::End(0))
            .and_then(|_| journal.write_all(lines.as_bytes()))
            .and_then(|()| journal.sync_data())
            .map_err(|cause| self.cannot(cause))
    }

    fn cannot(&self, cause: std::io::Error) -> CacheError {
        CacheError::io("write", &aside(&self.path, "building"), cause)
    }
}

/// A line of the journal: words and their checksum.
fn line(words: &str) -> String {
    format!("{words} {:08x}\n", crc32fast::hash(words.as_bytes()))
}

fn digits(checks: &[AtomicU32]) -> String {
    checks.iter().map(|check| format!("{:08x}", check.load(Ordering::Relaxed))).collect()
}
