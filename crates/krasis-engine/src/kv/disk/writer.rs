//! The thread that writes, and that keeps the folder within its budget.

use super::segment::{self, ENDING, Item, Listed};
use super::{DiskError, Report, Signature};
use crate::kv::options::PrefixDisk;
use krasis_core::Bytes;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::SystemTime;

/// Writes that may fail in turn before there are no more.
const FAILURES_MAX: u32 = 3;

/// What there is to do.
pub enum Job {
    /// Writes a segment; those that lead to it, from its beginning back to that of the prefix, are used.
    Write { items: Vec<Item>, above: Vec<u64> },
    /// Segments are of use, as above.
    Touch(Vec<u64>),
}

/// Everything that happens to files of the folder.
pub struct Writer {
    dir: PathBuf,
    budget: u64,
    signature: Signature,
    /// All files, those of other models too: they share the budget.
    files: HashMap<PathBuf, Known>,
    used: u64,
    clock: u64,
    last: u64,
    failures: u32,
    reports: SyncSender<Report>,
}

struct Known {
    bytes: u64,
    /// When it was of use, in our own time: first come those that were there at the start.
    used: u64,
}

impl Writer {
    /// Looks at what is there; what nobody could use is removed, as far as it is ours.
    pub fn open(
        options: &PrefixDisk,
        signature: Signature,
        page: usize,
        reports: SyncSender<Report>,
    ) -> Result<(Writer, Vec<Listed>), DiskError> {
        let mut writer = Writer {
            dir: options.dir.clone(),
            budget: options.bytes.0,
            signature,
            files: HashMap::new(),
            used: 0,
            clock: 0,
            last: 0,
            failures: 0,
            reports,
        };
        let cannot = |cause| DiskError::io("read", &options.dir, cause);
        let mut found: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
        for entry in options.dir.read_dir().map_err(cannot)? {
            let path = entry.map_err(cannot)?.path();
            let Ok(about) = path.metadata() else { continue };
            if segment::is_unfinished(&path, signature) {
                // Whoever wrote it is dead: the folder is ours.
                let _ = std::fs::remove_file(&path);
            } else if path.extension().is_some_and(|ending| ending == ENDING) {
                let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((used, path, about.len()));
            }
        }
        found.sort();
        let mut all = Vec::new();
        for (_, path, bytes) in found {
            let number = segment::number(&path, signature);
            writer.last = writer.last.max(number.unwrap_or(0));
            let listed = number.map(|number| segment::list(&path, signature, number, page));
            match listed {
                Some(Err(error @ DiskError::Damaged { .. })) => {
                    tracing::warn!("{error}: it is removed, and computed again");
                    let _ = std::fs::remove_file(&path);
                    continue;
                }
                Some(Err(error)) => tracing::warn!("{error}: it is not used"),
                Some(Ok(listed)) => all.extend(listed),
                None => {}
            }
            writer.add(path, bytes);
        }
        let ours: Bytes = all.iter().map(|listed| Bytes(listed.spot.bytes)).sum();
        tracing::info!(
            dir = %options.dir.display(), entries = all.len(), bytes = %ours, budget = %options.bytes,
            "prefixes on disk"
        );
        Ok((writer, all))
    }

    /// Works until nobody can ask any more.
    pub fn work(mut self, jobs: &Receiver<Job>) {
        // The budget may be smaller than last time.
        self.make_room(0);
        for job in jobs {
            match job {
                Job::Touch(segments) => self.touch(&segments),
                Job::Write { items, above } => {
                    let names = items.iter().map(|item| (item.node, item.kind));
                    let names: Vec<_> = names.collect();
                    let report = match self.write(&items) {
                        Some(spots) => {
                            let named = names.into_iter().zip(spots);
                            Report::Written(named.map(|((n, k), spot)| (n, k, spot)).collect())
                        }
                        None => Report::Unwritten(names),
                    };
                    drop(items);
                    self.tell(report);
                    // What leads to a page must not go before it.
                    self.touch(&above);
                }
            }
        }
    }

    /// Writes a segment if there is room for it; says why not the first time.
    fn write(&mut self, items: &[Item]) -> Option<Vec<segment::Spot>> {
        let bytes = segment::bytes_of(items);
        if bytes > self.budget || self.failures >= FAILURES_MAX {
            return None;
        }
        self.make_room(bytes);
        self.last += 1;
        let path = segment::path(&self.dir, self.signature, self.last);
        match segment::write(&self.dir, self.signature, self.last, items) {
            Ok(spots) => {
                self.failures = 0;
                self.add(path, bytes);
                Some(spots)
            }
            Err(cause) => {
                self.failures += 1;
                tracing::warn!("{}", DiskError::io("write", &path, cause));
                if self.failures == FAILURES_MAX {
                    tracing::warn!("no more prefixes are written until the next start");
                    self.tell(Report::Closed);
                }
                None
            }
        }
    }

    fn make_room(&mut self, bytes: u64) {
        while self.used + bytes > self.budget {
            let Some(path) = self.oldest() else { return };
            // Somebody may have removed it before.
            let _ = std::fs::remove_file(&path);
            self.used -= self.files.remove(&path).map_or(0, |known| known.bytes);
            if let Some(number) = segment::number(&path, self.signature) {
                self.tell(Report::Gone(number));
            }
        }
    }

    fn oldest(&self) -> Option<PathBuf> {
        let oldest = self.files.iter().min_by_key(|(_, known)| known.used);
        oldest.map(|(path, _)| path.clone())
    }

    fn add(&mut self, path: PathBuf, bytes: u64) {
        self.clock += 1;
        self.used += bytes;
        self.files.insert(path, Known { bytes, used: self.clock });
    }

    fn touch(&mut self, segments: &[u64]) {
        for &segment in segments {
            let path = segment::path(&self.dir, self.signature, segment);
            if let Some(known) = self.files.get_mut(&path) {
                self.clock += 1;
                known.used = self.clock;
                mark(&path);
            }
        }
    }

    fn tell(&self, report: Report) {
        // An engine that has ended wants to know nothing.
        let _ = self.reports.send(report);
    }
}

/// Says to the next process that a file was of use; if that fails, it looks older than it is.
fn mark(path: &Path) {
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}
