//! A complete cache, to be read.

use super::contents::{Contents, Section};
use super::disk::Disk;
use super::error::CacheError;
use super::{header, rate};
use crc32fast::Hasher;
use krasis_core::{Bytes, from_a_page};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// An open file whose header is sound. Shared between threads freely.
#[derive(Debug)]
pub struct CacheFile {
    path: PathBuf,
    disk: Disk,
    contents: Contents,
    checks: Vec<Vec<u32>>,
    places: Vec<Range<u64>>,
    header: u64,
}

impl CacheFile {
    /// Opens a file and checks everything but the sections.
    pub fn open(path: &Path) -> Result<CacheFile, CacheError> {
        let disk = Disk::open(path).map_err(|cause| CacheError::io("read", path, cause))?;
        let (contents, checks, header) = header::read(path, disk.file())?;
        let places = contents.places(header);
        let cache = CacheFile { path: path.into(), disk, contents, checks, places, header };
        let (end, length) = (cache.end(), cache.length()?);
        if length != end.0 {
            let what = format!("it is {length} bytes long instead of {}", end.0);
            return Err(cache.damaged(what));
        }
        cache.expect_zeros(cache.gaps()[0].clone())?;
        Ok(cache)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Bytes of the whole file.
    pub fn end(&self) -> Bytes {
        Bytes(self.places.last().map_or(self.header, |place| place.end))
    }

    /// Where in this file each of the wanted sections is; they may be some of its layers only.
    pub fn find(&self, wanted: &Contents) -> Result<Vec<usize>, CacheError> {
        let file = || self.path.clone();
        if self.contents.fingerprint != wanted.fingerprint {
            return Err(CacheError::OtherModel { file: file() });
        }
        for (have, want) in
            [(&self.contents.layout, &wanted.layout), (&self.contents.quantiser, &wanted.quantiser)]
        {
            if have != want {
                let what = format!("it was made by {have} and not by {want}");
                return Err(CacheError::OtherContents { file: file(), what });
            }
        }
        let mut all = self.contents.sections.iter().enumerate();
        let find = |section: &Section| match all.find(|(_, have)| *have == section) {
            Some((index, _)) => Ok(index),
            None => {
                let what = format!("there is no {} in {}", section.name, section.format);
                Err(CacheError::OtherContents { file: file(), what })
            }
        };
        wanted.sections.iter().map(find).collect()
    }

    /// Reads pieces of a section, which begin at `first` and are whole ones or the last, and compares
    /// them with their checksums.
    pub fn read(&self, section: usize, first: u64, bytes: &mut [u8]) -> Result<(), CacheError> {
        let (place, about) = (&self.places[section], &self.contents.sections[section]);
        let (piece, end) = (about.piece(), first + bytes.len() as u64);
        assert!(
            first.is_multiple_of(piece) && (end.is_multiple_of(piece) || end == about.bytes),
            "{} bytes from {first} are no pieces",
            bytes.len()
        );
        let mut checks = self.checks[section][(first / piece) as usize..].iter();
        let (mut hasher, mut missing, mut sound) = (Hasher::new(), piece, true);
        self.disk
            .read(place.start + first, bytes, |mut part| {
                while part.len() as u64 >= missing {
                    let (of_piece, rest) = part.split_at(missing as usize);
                    hasher.update(of_piece);
                    sound &= checks.next() == Some(&std::mem::take(&mut hasher).finalize());
                    (part, missing) = (rest, piece);
                }
                hasher.update(part);
                missing -= part.len() as u64;
            })
            .map_err(|cause| CacheError::io("read", &self.path, cause))?;
        // The last piece of a section may be shorter than the others.
        if !sound || missing < piece && checks.next() != Some(&hasher.finalize()) {
            return Err(self.damaged(format!("{}, near byte {}", about.name, place.start + first)));
        }
        Ok(())
    }

    /// Says that what was read is not wanted again soon, so that the file cache need not keep it.
    pub fn forget(&self, section: usize, first: u64, bytes: u64) {
        self.disk.forget(self.places[section].start + first, bytes);
    }

    /// Reads and checks every byte on `threads` threads; `progress` hears how many more were read.
    pub fn verify(
        &self,
        threads: usize,
        progress: impl Fn(Bytes) + Sync,
    ) -> Result<(), CacheError> {
        for gap in self.gaps() {
            self.expect_zeros(gap)?;
        }
        let stretches: Vec<(usize, u64, usize)> = (0..)
            .zip(&self.contents.sections)
            .flat_map(|(section, about)| {
                let (bytes, each) = (about.bytes, about.stretch());
                let stretch =
                    move |first: u64| (section, first, (bytes - first).min(each) as usize);
                (0..bytes).step_by(each as usize).map(stretch)
            })
            .collect();
        let longest = stretches.iter().map(|(.., bytes)| *bytes).max().unwrap_or(0);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut room = Vec::new();
            let bytes = from_a_page(&mut room, longest);
            while let Some(&(section, first, len)) =
                stretches.get(next.fetch_add(1, Ordering::Relaxed))
            {
                self.read(section, first, &mut bytes[..len])?;
                progress(Bytes(len as u64));
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            let results = workers.into_iter().map(|worker| worker.join().expect("no panic"));
            results.collect::<Vec<_>>().into_iter().collect()
        })
    }

    /// Bytes a second that the disk gives of it, measured in a moment; nothing if it is too short to tell.
    pub fn rate(&self) -> Option<f64> {
        rate::measure(&self.disk, self.end().0)
    }

    /// What lies before, between and behind the sections.
    fn gaps(&self) -> Vec<Range<u64>> {
        let ends = std::iter::once(self.header).chain(self.places.iter().map(|place| place.end));
        let starts = self.places.iter().map(|place| place.start).chain([self.end().0]);
        ends.zip(starts).map(|(end, start)| end..start).collect()
    }

    fn expect_zeros(&self, gap: Range<u64>) -> Result<(), CacheError> {
        let mut bytes = vec![1; (gap.end - gap.start) as usize];
        self.disk
            .file()
            .read_exact_at(&mut bytes, gap.start)
            .map_err(|cause| CacheError::io("read", &self.path, cause))?;
        match bytes.iter().position(|&byte| byte != 0) {
            Some(at) => Err(self.damaged(format!("byte {} is not zero", gap.start + at as u64))),
            None => Ok(()),
        }
    }

    fn length(&self) -> Result<u64, CacheError> {
        let about = self.disk.file().metadata();
        Ok(about.map_err(|cause| CacheError::io("read", &self.path, cause))?.len())
    }

    fn damaged(&self, what: String) -> CacheError {
        CacheError::Damaged { file: self.path.clone(), what }
    }
}
