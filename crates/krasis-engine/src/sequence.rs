//! One request while it runs.

use crate::constraint::{Bounds, Mask, Next};
use crate::handle::{Place, Sink, Submission};
use crate::kv::Held;
use crate::request::{Event, Finish, Logprob, Request, Usage};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A request, its tokens, and how far they are computed.
pub struct Sequence {
    /// What was asked for.
    pub request: Request,
    /// Before whom it goes: its priority, then its number.
    pub order: (i64, u64),
    /// Of its random choices.
    pub seed: u64,
    /// Prompt and answer.
    pub tokens: Vec<u32>,
    /// Tokens whose past is stored: the first row of the next step has this position.
    pub computed: usize,
    /// Its memory, while it runs.
    pub held: Option<Held>,
    /// Of the prompt, as far as computed.
    pub prompt_logprobs: Vec<Logprob>,
    /// Chosen in this step, appended when the step is committed.
    pub next: Option<(u32, Option<Logprob>)>,
    /// What the next token may be, of an answer that is not free.
    bounds: Option<Bounds>,
    /// Why no token can be chosen.
    stuck: Option<Stuck>,
    prompt_reported: bool,
    /// Tokens that it found when it began.
    cached: Option<usize>,
    sink: Sink,
    cancelled: Arc<AtomicBool>,
    /// Until it runs.
    place: Option<Place>,
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
}

/// Why an answer ends without another token.
enum Stuck {
    /// Its grammar is complete.
    Complete,
    /// Its grammar cannot go on; a sentence.
    Refused(String),
}

impl Sequence {
    /// A request that has not run yet, by its number; `seed` is used if it names none.
    pub fn new(submission: Submission, number: u64, seed: u64) -> Sequence {
        let Submission { request, sink, cancelled, submitted, place } = submission;
        Sequence {
            order: (request.priority, number),
            seed: request.sampling.seed.unwrap_or(seed),
            tokens: request.prompt.clone(),
            computed: 0,
            held: None,
            prompt_logprobs: Vec::new(),
            next: None,
            bounds: request.grammar.as_deref().map(Bounds::new),
            stuck: None,
            prompt_reported: false,
            cached: None,
            sink,
            cancelled,
            place: Some(place),
            submitted,
            admitted: None,
            first_token: None,
            request,
        }
    }

    /// Takes memory.
    pub fn admit(&mut self, held: Held) {
        self.held = Some(held);
        self.place = None;
        self.admitted.get_or_insert_with(Instant::now);
    }

    /// The first `covered` tokens are there already. Whoever begins again finds what he has computed
    /// himself, which does not count.
    pub fn begin(&mut self, covered: usize) {
        self.computed = covered;
        self.cached.get_or_insert(covered);
    }

    /// Whether the caller has lost interest.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Tokens that wait to be computed.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// What has been generated.
    pub fn answer(&self) -> &[u32] {
        &self.tokens[self.request.prompt.len()..]
    }

    /// Whether the logits at `position` are wanted for the log-probability of the next prompt token.
    pub fn wants_prompt_logprob(&self, position: usize) -> bool {
        self.request.prompt_logprobs.is_some()
            && position + 1 < self.request.prompt.len()
            && position >= self.prompt_logprobs.len()
    }

    /// Whether a token is to be chosen from the logits at `position`.
    pub fn wants_token(&self, position: usize) -> bool {
        position + 1 == self.tokens.len() && self.request.tokens_max > 0
    }

    /// Finds out what the next token may be, in a vocabulary; false if there can be none, which
    /// [`Sequence::advance`] then tells.
    pub fn can_go_on(&mut self, vocab: u32) -> bool {
        let Some(bounds) = &mut self.bounds else { return true };
        self.stuck = match bounds.next(vocab, &self.request.stop_tokens) {
            Ok(Next::Complete) => Some(Stuck::Complete),
            Ok(_) => None,
            Err(message) => Some(Stuck::Refused(message)),
        };
        self.stuck.is_none()
    }

    /// Those of which the next token must be one, if not all are allowed.
    pub fn mask(&self) -> Option<&Mask> {
        self.bounds.as_ref()?.mask()
    }

    /// `rows` more tokens are computed: reports what came of it, and tells whether that was all.
    pub fn advance(&mut self, rows: usize, context_max: usize) -> Option<Finish> {
        self.computed += rows;
        if self.computed < self.request.prompt.len() {
            return None;
        }
        if self.request.prompt_logprobs.is_some() && !self.prompt_reported {
            self.prompt_reported = true;
            let logprobs = self.prompt_logprobs.clone();
            (self.sink)(Event::Prompt { logprobs });
        }
        if self.request.tokens_max == 0 {
            return Some(Finish::Length);
        }
        match self.stuck {
            Some(Stuck::Complete) => return Some(Finish::Stop),
            Some(Stuck::Refused(_)) => return Some(Finish::Cancelled),
            None => {}
        }
        let (id, logprob) = self.next.take()?;
        self.first_token.get_or_insert_with(Instant::now);
        self.tokens.push(id);
        (self.sink)(Event::Token { id, logprob });
        if self.request.stop_tokens.contains(&id) {
            return Some(Finish::Stop);
        }
        if let Some(bounds) = &mut self.bounds {
            bounds.accept(id);
            if bounds.is_finished() {
                return Some(Finish::Stop);
            }
        }
        let full = self.answer().len() >= self.request.tokens_max as usize
            || self.tokens.len() >= context_max;
        full.then_some(Finish::Length)
    }

    /// The last word where a step failed.
    pub fn fail(mut self, message: &str) {
        (self.sink)(Event::Failed { message: message.to_owned() });
    }

    /// The last word.
    pub fn finish(mut self, finish: Finish) {
        if let Some(Stuck::Refused(message)) = self.stuck {
            return (self.sink)(Event::Refused { message });
        }
        let now = Instant::now();
        let first_token = self.first_token.unwrap_or(now);
        let admitted = self.admitted.unwrap_or(now);
        let usage = Usage {
            prompt_tokens: self.request.prompt.len() as u32,
            cached_tokens: self.cached.unwrap_or(0) as u32,
            completion_tokens: self.answer().len() as u32,
            queued: admitted - self.submitted,
            prefill: first_token - admitted,
            decode: now - first_token,
        };
        (self.sink)(Event::Done { finish, usage });
    }
}
