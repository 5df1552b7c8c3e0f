//! Threads that read experts from the disk. They mostly wait: a disk is fast if it has several requests
//! at a time.

use super::volume::{Part, Volume};
use krasis_checkpoint::cache::CacheError;
use krasis_ops::Room;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Requests that a disk has at a time.
const THREADS: usize = 8;

/// How often it is looked whether all of them are there.
const LOOK: Duration = Duration::from_secs(1);

/// A part of an expert, where it is to go.
pub(super) struct Errand {
    /// The slot that the expert comes to, and which of the slot's places this is.
    pub slot: u32,
    pub place: usize,
    pub part: Part,
    pub room: Room,
}

/// What became of an errand.
pub(super) struct Done {
    pub slot: u32,
    pub place: usize,
    pub room: Room,
    pub result: Result<(), CacheError>,
}

/// The threads. What they are given is bounded by the slots that there are.
pub(super) struct Readers {
    queue: Arc<Queue>,
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    errands: Mutex<Errands>,
    more: Condvar,
}

/// When an errand is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Somebody waits.
    Now,
    /// When nobody waits.
    Later,
}

#[derive(Default)]
struct Errands {
    now: VecDeque<Errand>,
    later: VecDeque<Errand>,
    closed: bool,
}

impl Readers {
    pub fn start(volume: &Arc<Volume>) -> std::io::Result<Readers> {
        let (queue, (send, done)) = (Arc::<Queue>::default(), channel());
        let mut readers = Readers { queue, done, threads: Vec::new() };
        for number in 0..THREADS {
            let (queue, send) = (readers.queue.clone(), send.clone());
            let volume = volume.clone();
            let thread = std::thread::Builder::new().name(format!("krasis-reader-{number}"));
            readers.threads.push(thread.spawn(move || queue.work(&volume, &send))?);
        }
        Ok(readers)
    }

    /// Puts errands in line.
    pub fn send(&self, turn: Turn, errands: impl Iterator<Item = Errand>) {
        let mut queue = self.queue.lock();
        let line = match turn {
            Turn::Now => &mut queue.now,
            Turn::Later => &mut queue.later,
        };
        line.extend(errands);
        drop(queue);
        self.queue.more.notify_all();
    }

    /// What has come already.
    pub fn poll(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }

    /// What comes next, of errands that are on their way. A slow disk is waited for, a reader that has
    /// panicked is not: what it had in hand never comes.
    pub fn wait(&self) -> Done {
        loop {
            match self.done.recv_timeout(LOOK) {
                Ok(done) => return done,
                Err(_) => assert!(
                    !self.threads.iter().any(JoinHandle::is_finished),
                    "a thread that reads experts has ended"
                ),
            }
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.more.notify_all();
        // A reader that panicked has said so.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Errands> {
        // Nothing panics while it is held.
        self.errands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Errand> {
        let wait = |e: &mut Errands| e.now.is_empty() && e.later.is_empty() && !e.closed;
        let errands = self.more.wait_while(self.lock(), wait);
        let mut errands = errands.unwrap_or_else(PoisonError::into_inner);
        if errands.closed {
            return None;
        }
        errands.now.pop_front().or_else(|| errands.later.pop_front())
    }

    fn work(&self, volume: &Volume, done: &Sender<Done>) {
        while let Some(Errand { slot, place, part, mut room }) = self.next() {
            let result = volume.read(part, room.bytes());
            if done.send(Done { slot, place, room, result }).is_err() {
                return;
            }
        }
    }
}
