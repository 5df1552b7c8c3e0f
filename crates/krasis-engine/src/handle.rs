//! The door to the engine's thread: clone it freely, submit from anywhere.

use crate::census::Census;
use crate::request::{Event, InvalidRequest, Request};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Instant;

/// Where a request's events go. Called on the engine's thread, so it must not block; an unbounded
/// channel's `send` is the usual body. Dropped after `Done` or `Failed`.
pub type Sink = Box<dyn FnMut(Event) + Send>;

/// What callers may know about the loaded model without asking the engine's thread.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Size of the vocabulary: logits per token.
    pub vocab: u32,
    /// Tokens that one sequence may hold.
    pub context_max: u32,
}

/// A submitted request. Dropping it cancels the request within one step: a client that
/// disconnects needs no further code.
#[must_use = "dropping a ticket cancels its request"]
#[derive(Debug)]
pub struct Ticket {
    cancelled: Arc<AtomicBool>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// The caller's mistake.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// The queue is full: try again later.
    #[error("{queue} requests are waiting already: try again in a moment")]
    Busy {
        /// Its bound.
        queue: usize,
    },
    /// The engine's thread has ended.
    #[error("the engine has stopped; see the server's log")]
    Stopped,
}

/// A request on its way to the engine's thread.
pub struct Submission {
    /// What to compute.
    pub request: Request,
    /// Where events go.
    pub sink: Sink,
    /// Set when the caller has lost interest.
    pub cancelled: Arc<AtomicBool>,
    /// When it was queued.
    pub submitted: Instant,
    /// Its place in the queue.
    pub place: Place,
}

/// A place in the queue, free again when it is dropped: once the request runs, or is gone.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The door to the engine's thread.
#[derive(Clone)]
pub struct Handle {
    queue: SyncSender<Submission>,
    queue_max: usize,
    /// Places of the queue that are taken, on this side of the engine's thread or behind it.
    taken: Arc<AtomicUsize>,
    /// What is known without asking.
    pub facts: Arc<Facts>,
    /// What the engine's thread counts.
    pub census: Arc<Census>,
}

impl Handle {
    /// A door and the receiving end that the engine's thread (or a test's script) serves.
    pub fn new(facts: Facts, queue_max: usize) -> (Handle, Receiver<Submission>) {
        let (queue, submissions) = sync_channel(queue_max);
        let (facts, census, taken) = (Arc::new(facts), Arc::default(), Arc::default());
        (Handle { queue, queue_max, taken, facts, census }, submissions)
    }

    /// Requests that may wait.
    pub fn queue_max(&self) -> usize {
        self.queue_max
    }

    /// Checks the request and queues it. Never blocks: a full queue is [`SubmitError::Busy`].
    pub fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, SubmitError> {
        self.check(&request)?;
        let place = self.place()?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let submitted = Instant::now();
        let submission =
            Submission { request, sink, cancelled: cancelled.clone(), submitted, place };
        // Counted before the engine can take it, so that the count never falls below zero.
        self.census.queued.fetch_add(1, Ordering::Relaxed);
        let refused = match self.queue.try_send(submission) {
            Ok(()) => return Ok(Ticket { cancelled }),
            Err(TrySendError::Full(_)) => self.busy(),
            Err(TrySendError::Disconnected(_)) => SubmitError::Stopped,
        };
        self.census.queued.fetch_sub(1, Ordering::Relaxed);
        Err(refused)
    }

    fn place(&self) -> Result<Place, SubmitError> {
        let one_more = |taken| (taken < self.queue_max).then_some(taken + 1);
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(Place(self.taken.clone())),
            Err(_) => Err(self.busy()),
        }
    }

    fn busy(&self) -> SubmitError {
        SubmitError::Busy { queue: self.queue_max }
    }

    fn check(&self, request: &Request) -> Result<(), InvalidRequest> {
        let Facts { vocab, context_max } = *self.facts;
        if request.prompt.is_empty() {
            return Err(InvalidRequest::EmptyPrompt);
        }
        if let Some(&token) = request.prompt.iter().find(|&&token| token >= vocab) {
            return Err(InvalidRequest::UnknownToken { field: "prompt", token, vocab });
        }
        let prompt = request.prompt.len() as u32;
        if prompt.saturating_add(request.tokens_max) > context_max {
            let answer = request.tokens_max;
            return Err(InvalidRequest::TooLong { prompt, answer, context: context_max });
        }
        request.sampling.check(vocab)
    }
}
