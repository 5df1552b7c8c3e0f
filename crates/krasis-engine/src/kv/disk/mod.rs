//! Pages and states in files, beside the engine's thread, which never waits for a disk: one thread
//! writes and one reads, and both report.

mod reader;
mod segment;
mod writer;

pub use segment::{Item, Listed, Spot};

use super::options::PrefixDisk;
use super::prefixes::Shape;
use super::tree::{Kind, Node};
use crate::options::Options;
use krasis_checkpoint::cache::{CacheError, Lock, Taken, digest};
use krasis_checkpoint::quantize::QUANTISER;
use krasis_core::Bytes;
use krasis_core::quant::LAYOUT;
use reader::Fetch;
use std::collections::VecDeque;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use writer::{Job, Writer};

/// Bytes that are written together, unless a single state is larger.
pub const SEGMENT_BYTES: u64 = 16 << 20;

/// Segments on their way to the disk: what they take of the host's memory is planned.
pub const WRITES_MAX: usize = 3;

/// What they and what is read takes of it at most, of models whose states are smaller than segments.
pub const HOST_BYTES: Bytes = Bytes((WRITES_MAX as u64 + 2) * SEGMENT_BYTES);

/// Reports that the engine's thread has not read yet; a reader with more of them waits.
const REPORTS: usize = 16;

/// Says what pages and states were computed with: with anything else they are noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature(pub u64);

impl Signature {
    /// Of a model's weights, whatever is told apart below them, and how they are computed with.
    pub fn of(fingerprint: u64, options: &Options, shape: &Shape) -> Signature {
        let Options { device, expert_bits, group, attention, shared_expert, dense_mlp, .. } =
            options;
        let Options { lm_head, kv, .. } = options;
        let Shape { page, page_bytes, state_bytes, .. } = shape;
        Signature(digest(&format!(
            "{} {fingerprint:016x} {device:?} {expert_bits:?} {group} {attention:?} \
             {shared_expert:?} {dense_mlp:?} {lm_head:?} {kv:?} {QUANTISER} {LAYOUT} {page} \
             {page_bytes:?} {state_bytes:?}",
            env!("CARGO_PKG_VERSION")
        )))
    }
}

/// What can be wrong with the folder or a file. None of it is fatal: everything can be computed again.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
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
    /// It was changed after it was written.
    #[error("{file} is damaged: {what}")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where.
        what: String,
    },
    /// Of another program or model.
    #[error("{file} was written by another version of Krasis, or for another model")]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// Two processes of one model.
    #[error(
        "{dir} is in use by {}: give each of them a --prefix-cache-dir of its own",
        process.map_or("another process".into(), |process| format!("process {process}"))
    )]
    Taken {
        /// The folder.
        dir: PathBuf,
        /// Who has it, if it told.
        process: Option<u32>,
    },
    /// Its lock.
    #[error(transparent)]
    Lock(#[from] CacheError),
}

impl DiskError {
    fn io(doing: &'static str, file: &Path, cause: std::io::Error) -> DiskError {
        DiskError::Io { doing, file: file.into(), cause }
    }
}

/// What the threads tell.
pub enum Report {
    /// These lie there now.
    Written(Vec<(Node, Kind, Spot)>),
    /// These do not.
    Unwritten(Vec<(Node, Kind)>),
    /// All of a segment had to go.
    Gone(u64),
    /// Nothing is written any more.
    Closed,
    /// Something that was asked for.
    Piece(Piece),
}

/// One content that was read.
pub struct Piece {
    /// For whom: what [`Disk::fetch`] said.
    pub fetch: u64,
    /// Its place in what was asked for.
    pub index: usize,
    /// Itself; nothing if it is damaged or gone, which was said then.
    pub content: Option<Vec<u8>>,
    /// What reading took.
    pub time: Duration,
}

/// A fetch that somebody waits for; the reader ends it when this is dropped.
#[derive(Debug)]
pub struct Asked {
    /// Its number.
    pub fetch: u64,
    _wanted: Arc<()>,
}

/// The threads, seen from the engine's.
pub struct Disk {
    jobs: Option<SyncSender<Job>>,
    fetches: Option<Sender<Fetch>>,
    reports: Receiver<Report>,
    /// Reports that came while they were waited for.
    heard: VecDeque<Report>,
    fetched: u64,
    /// Segments on their way.
    writing: usize,
    /// The writer has given up.
    closed: bool,
    threads: Vec<JoinHandle<()>>,
    _lock: Lock,
}

impl Disk {
    /// Opens the folder for one process of a model, and says what is there.
    pub fn open(
        options: &PrefixDisk,
        signature: Signature,
        page: usize,
    ) -> Result<(Disk, Vec<Listed>), DiskError> {
        let dir = &options.dir;
        let cannot = |doing, cause| DiskError::io(doing, dir, cause);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|cause| cannot("create", cause))?;
        let lock = match Lock::take(&dir.join(format!("{:016x}", signature.0)))? {
            Taken::Ours(lock) => lock,
            Taken::Theirs { process } => {
                return Err(DiskError::Taken { dir: dir.clone(), process });
            }
        };
        let (send, reports) = sync_channel(REPORTS);
        let (jobs, work) = sync_channel(WRITES_MAX + 1);
        let (fetches, wishes) = channel();
        let (writer, listed) = Writer::open(options, signature, page, send.clone())?;
        let there = dir.clone();
        let start = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(body);
            thread.map_err(|cause| cannot("start the threads of", cause))
        };
        let threads = vec![
            start("krasis-prefix-write", Box::new(move || writer.work(&work)))?,
            start(
                "krasis-prefix-read",
                Box::new(move || reader::work(&there, signature, &wishes, &send)),
            )?,
        ];
        let disk = Disk {
            jobs: Some(jobs),
            fetches: Some(fetches),
            reports,
            heard: VecDeque::new(),
            fetched: 0,
            writing: 0,
            closed: false,
            threads,
            _lock: lock,
        };
        Ok((disk, listed))
    }

    /// Whether another segment could be written now.
    pub fn has_room(&self) -> bool {
        self.writing < WRITES_MAX && !self.closed
    }

    /// Whether anything is on its way there.
    pub fn is_writing(&self) -> bool {
        self.writing > 0
    }

    /// Whether it takes anything at all.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Has a segment written, behind those that lead to it, which are used by that.
    pub fn write(&mut self, items: Vec<Item>, above: Vec<u64>) {
        assert!(self.has_room(), "somebody asked before");
        let jobs = self.jobs.as_ref().expect("it is open");
        match jobs.try_send(Job::Write { items, above }) {
            Ok(()) => self.writing += 1,
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                let Job::Write { items, .. } = job else { return };
                let items = items.iter().map(|item| (item.node, item.kind)).collect();
                self.writing += 1;
                self.heard.push_back(Report::Unwritten(items));
            }
        }
    }

    /// These segments, from the end of a prefix to its beginning, are of use.
    pub fn touch(&self, segments: Vec<u64>) {
        if let Some(jobs) = self.jobs.as_ref().filter(|_| !segments.is_empty()) {
            // A busy writer forgets it, and they look older than they are.
            let _ = jobs.try_send(Job::Touch(segments));
        }
    }

    /// Asks for contents, which are reported one by one in this order.
    pub fn fetch(&mut self, spots: Vec<Spot>) -> Asked {
        self.fetched += 1;
        let wanted = Arc::new(());
        let fetch =
            Fetch { fetch: self.fetched, wanted: Arc::downgrade(&wanted) as Weak<()>, spots };
        if let Some(fetches) = &self.fetches
            && fetches.send(fetch).is_err()
        {
            let nothing =
                Piece { fetch: self.fetched, index: 0, content: None, time: Duration::ZERO };
            self.heard.push_back(Report::Piece(nothing));
        }
        Asked { fetch: self.fetched, _wanted: wanted }
    }

    /// The next report, if there is one.
    pub fn report(&mut self) -> Option<Report> {
        let report = self.heard.pop_front().or_else(|| self.reports.try_recv().ok())?;
        match report {
            Report::Written(_) | Report::Unwritten(_) => self.writing -= 1,
            Report::Closed => self.closed = true,
            Report::Gone(_) | Report::Piece(_) => {}
        }
        Some(report)
    }

    /// Waits for a report, but not for long.
    pub fn wait(&mut self, most: Duration) {
        if self.heard.is_empty()
            && let Ok(report) = self.reports.recv_timeout(most)
        {
            self.heard.push_back(report);
        }
    }
}

/// Waits for what is being written.
impl Drop for Disk {
    fn drop(&mut self) {
        self.jobs = None;
        self.fetches = None;
        // Nobody listens any more, so nobody waits to be heard.
        self.reports = channel().1;
        for thread in self.threads.drain(..) {
            // What it panicked with was printed.
            let _ = thread.join();
        }
    }
}
