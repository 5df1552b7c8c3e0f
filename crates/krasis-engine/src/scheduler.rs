//! Who runs next: mixes decoding sequences with pieces of prompts, within rows and KV pages.
//!
//! A sequence claims the pages of its prompt when it is admitted and grows page by page. If memory
//! ends, the last in order goes back to the queue and is computed again later; since results do
//! not depend on how tokens are grouped into steps, nobody can tell.
//!
//! The order is that of priorities, and of arrival among equals: in the queue, in the share of a step's
//! rows that prompts get, and, from its end, in giving memory back.

use crate::batch::{Batch, Wanted};
use crate::census::Census;
use crate::kv::{Arrival, Claim, Past, Prefixes};
use crate::request::Finish;
use crate::sample::{self, History, Known};
use crate::sequence::Sequence;
use krasis_ops::PROMPT_ROWS;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Rows of prompts in a step from which its time tells how fast prompts are computed.
const ROWS_OF_A_RATE: usize = 64;

/// Sequences that wait and run, and the memory that they share.
pub struct Scheduler {
    /// In order.
    waiting: VecDeque<Sequence>,
    /// In order.
    running: Vec<Sequence>,
    /// Those that run as well, but not in the step at work. In order.
    aside: Vec<Sequence>,
    prefixes: Prefixes,
    limits: Limits,
    census: Arc<Census>,
}

/// How much there may be of what.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of a sequence's page list.
    pub pages_max: u32,
    /// Prompt tokens of a step.
    pub pass_tokens: u32,
    /// Tokens of a sequence.
    pub context_max: u32,
}

impl Scheduler {
    /// Shares out the memory of `prefixes`; what happens is counted in `census`.
    pub fn new(prefixes: Prefixes, limits: Limits, census: Arc<Census>) -> Scheduler {
        census.pages.store(prefixes.available() as u64, Ordering::Relaxed);
        census.pages_available.store(prefixes.available() as u64, Ordering::Relaxed);
        Scheduler {
            waiting: VecDeque::new(),
            running: Vec::new(),
            aside: Vec::new(),
            prefixes,
            limits: Limits { pass_tokens: limits.pass_tokens.max(1), ..limits },
            census,
        }
    }

    /// Tells the census how things are between two steps.
    pub fn count(&self) {
        let Census { waiting, running, pages_available, .. } = &*self.census;
        waiting.store(self.waiting.len() as u64, Ordering::Relaxed);
        running.store((self.running.len() + self.aside.len()) as u64, Ordering::Relaxed);
        pages_available.store(self.prefixes.available() as u64, Ordering::Relaxed);
    }

    /// Queues a request, or one that has to begin again.
    pub fn add(&mut self, sequence: Sequence) {
        let at = self.waiting.partition_point(|other| other.order < sequence.order);
        self.waiting.insert(at, sequence);
    }

    /// Whether there is anything to do.
    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    /// Puts the next step into `batch`; false if there is nothing to compute.
    pub fn next_batch(&mut self, past: &mut dyn Past, batch: &mut Batch) -> bool {
        self.drop_cancelled();
        self.do_errands(past);
        self.admit(past);
        self.grow(past);
        self.fill(batch);
        !batch.input.tokens.is_empty()
    }

    /// Leaves a step to those that read prompts, if there are such: others are put aside, to go on beside
    /// it until [`Scheduler::rejoin`].
    pub fn part(&mut self, batch: &mut Batch) -> bool {
        if !batch.reads() {
            return false;
        }
        let running = self.running.drain(..);
        (self.running, self.aside) = running.partition(|sequence| sequence.pending() > 1);
        self.fill(batch);
        true
    }

    /// Those that were put aside run, and those that ran are aside.
    pub fn change_sides(&mut self) {
        std::mem::swap(&mut self.running, &mut self.aside);
    }

    /// The step is over, and nobody is aside any more.
    pub fn rejoin(&mut self) {
        if !self.aside.is_empty() {
            self.running.append(&mut self.aside);
            self.running.sort_by_key(|sequence| sequence.order);
        }
    }

    /// Whether nobody wants what the step at work computes.
    pub fn is_given_up(&self) -> bool {
        self.running.iter().all(Sequence::is_cancelled)
    }

    /// The same as [`Scheduler::next_batch`] beside a step that is at work: nobody begins.
    pub fn next_beside(&mut self, past: &mut dyn Past, batch: &mut Batch) -> bool {
        self.drop_cancelled();
        self.grow(past);
        self.fill(batch);
        !batch.input.tokens.is_empty()
    }

    /// What sequences wait for and what the disk is to get, as far as that keeps nobody waiting.
    pub fn do_errands(&mut self, past: &mut dyn Past) {
        while let Some(piece) = self.prefixes.next_piece() {
            let awaits = |s: &Sequence| s.held.as_ref().and_then(|held| held.awaits());
            let Some(index) = self.running.iter().position(|s| awaits(s) == Some(piece.fetch))
            else {
                continue;
            };
            let sequence = &mut self.running[index];
            let held = sequence.held.as_mut().expect("running sequences hold memory");
            match self.prefixes.arrive(past, held, piece.index, piece.content.as_deref()) {
                Arrival::More => {}
                Arrival::Done(covered) => sequence.begin(covered),
                Arrival::Missing => {
                    let mut sequence = self.running.remove(index);
                    self.release(&mut sequence);
                    self.add(sequence);
                }
            }
        }
        self.prefixes.save(past);
    }

    /// Whether the disk has something to do or to tell.
    pub fn has_errands(&self) -> bool {
        self.prefixes.has_errands()
    }

    /// Waits for the disk, but not for long.
    pub fn wait(&mut self, most: Duration) {
        self.prefixes.wait(most);
    }

    /// Whether somebody runs who waits for the disk.
    pub fn is_loading(&self) -> bool {
        let waits = |s: &Sequence| s.held.as_ref().is_some_and(|held| held.awaits().is_some());
        self.running.iter().any(waits)
    }

    /// So many rows of prompts were computed in so much time.
    pub fn computed(&mut self, batch: &Batch, time: Duration) {
        let prompts = batch.parts.iter().filter(|&&rows| rows > 1).sum::<usize>();
        if prompts >= ROWS_OF_A_RATE {
            self.prefixes.computed(prompts, time.as_secs_f64());
        }
    }

    /// The last step is done.
    pub fn close(&mut self, past: &mut dyn Past) {
        self.prefixes.close(past);
    }

    /// Hands over what is known of the logits of `batch.chosen.rows[index]`; false if that is not
    /// enough.
    pub fn hear(&mut self, batch: &Batch, index: usize, known: Known) -> bool {
        let Wanted { sequence, position } = batch.wanted[index];
        let s = &mut self.running[sequence];
        if s.wants_prompt_logprob(position) {
            // These may be of any token, and are heard in order.
            let Known::Row(_) = known else { return false };
            let alternatives = s.request.prompt_logprobs.unwrap_or(0);
            let logprob = sample::logprob(known, s.tokens[position + 1], alternatives);
            s.prompt_logprobs.extend(logprob);
            return true;
        }
        if !s.can_go_on(known.vocab()) {
            return true;
        }
        let history = History { prompt: &s.request.prompt, answer: s.answer() };
        let Some(token) = sample::choose(known, &s.request.sampling, s.seed, history, s.mask())
        else {
            return false;
        };
        let logprob = s.request.logprobs.map(|n| sample::logprob(known, token, n));
        if let Some(None) = logprob {
            return false;
        }
        s.next = Some((token, logprob.flatten()));
        true
    }

    /// The step is done: the one place where sequences advance.
    pub fn commit(&mut self, past: &mut dyn Past, batch: &Batch) {
        let mut finished = Vec::new();
        for (index, (sequence, &rows)) in self.running.iter_mut().zip(&batch.parts).enumerate() {
            if rows == 0 {
                continue;
            }
            let outcome = sequence.advance(rows, self.limits.context_max as usize);
            let held = sequence.held.as_mut().expect("running sequences hold memory");
            let computed = &sequence.tokens[..sequence.computed];
            self.prefixes.computed_up_to(past, held, computed);
            finished.extend(outcome.map(|finish| (index, finish)));
        }
        // From the back, so that indices stay valid.
        for (index, finish) in finished.into_iter().rev() {
            let mut sequence = self.running.remove(index);
            self.release(&mut sequence);
            sequence.finish(finish);
        }
    }

    /// The step failed: those who were in it are told why, and nothing of it stays.
    pub fn fail(&mut self, batch: &Batch, message: &str) {
        for index in (0..batch.parts.len()).rev().filter(|&index| batch.parts[index] > 0) {
            let mut sequence = self.running.remove(index);
            self.release(&mut sequence);
            sequence.fail(message);
        }
    }

    fn drop_cancelled(&mut self) {
        if !self.waiting.iter().chain(&self.running).any(Sequence::is_cancelled) {
            return;
        }
        let (gone, waiting): (VecDeque<_>, _) =
            self.waiting.drain(..).partition(Sequence::is_cancelled);
        self.waiting = waiting;
        let (gone_running, running): (Vec<_>, _) =
            self.running.drain(..).partition(Sequence::is_cancelled);
        self.running = running;
        for mut sequence in gone.into_iter().chain(gone_running) {
            self.release(&mut sequence);
            sequence.finish(Finish::Cancelled);
        }
    }

    /// Lets waiting sequences run, as far as memory goes.
    pub fn admit(&mut self, past: &mut dyn Past) {
        while let Some(sequence) = self.waiting.front() {
            // Who wants the prompt's log-probabilities wants it computed.
            let reused =
                if sequence.request.prompt_logprobs.is_some() { &[][..] } else { &sequence.tokens };
            // Leaves each running sequence a page to grow into, or they would push it out again.
            let (tokens, spare) = (sequence.tokens.len(), self.running.len());
            let Some(claim) = self.prefixes.claim(past, reused, tokens, spare) else { return };
            let Claim { mut held, covered } = claim;
            let mut sequence = self.waiting.pop_front().expect("it was looked at");
            // All the room it may need: a decode step allocates nothing.
            let answer = sequence.request.tokens_max.min(self.limits.context_max) as usize;
            let tokens = sequence.request.prompt.len() + answer;
            sequence.tokens.reserve(tokens.saturating_sub(sequence.tokens.len()));
            held.pages.reserve((self.limits.pages_max as usize).saturating_sub(held.pages.len()));
            let awaits = held.awaits().is_some();
            sequence.admit(held);
            if !awaits {
                sequence.begin(covered);
            }
            let at = self.running.partition_point(|other| other.order < sequence.order);
            self.running.insert(at, sequence);
        }
    }

    /// Gives every decoding sequence the page for its next token.
    fn grow(&mut self, past: &mut dyn Past) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            let held = sequence.held.as_mut().expect("running sequences hold memory");
            if self.prefixes.extend(past, held, sequence.tokens.len()) {
                index += 1;
                continue;
            }
            let mut last = self.running.pop().expect("one is running");
            self.release(&mut last);
            self.add(last);
            self.census.preemptions.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn fill(&self, batch: &mut Batch) {
        batch.clear();
        let mut budget = self.limits.pass_tokens as usize;
        for s in &self.running {
            // Decoding is never kept waiting by prompts.
            let rows = if s.pending() == 1 { 1 } else { self.piece(s, budget) };
            if s.pending() > 1 {
                budget -= rows;
            }
            batch.parts.push(rows);
        }
        // Prompts come last: what they have in common is computed together.
        for prompts in [false, true] {
            for (index, s) in self.running.iter().enumerate() {
                let rows = batch.parts[index];
                if rows > 0 && (rows >= PROMPT_ROWS as usize) == prompts {
                    batch.push(index, s, rows, self.limits.pages_max as usize);
                }
            }
        }
        batch.input.first_row.push(batch.input.tokens.len() as u32);
    }

    /// Rows of a prompt in a step that has room for `budget`.
    fn piece(&self, s: &Sequence, budget: usize) -> usize {
        let held = s.held.as_ref().expect("running sequences hold memory");
        if held.awaits().is_some() {
            return 0;
        }
        let from = s.computed;
        let to = from + s.pending().min(budget);
        let end = self.prefixes.step_end(held, from, to);
        let whole = budget == self.limits.pass_tokens as usize;
        // What is left by others may be too little to end well; a whole step never is.
        if end > from || !whole { end.saturating_sub(from) } else { to - from }
    }

    fn release(&mut self, sequence: &mut Sequence) {
        if let Some(held) = sequence.held.take() {
            self.prefixes.release(held);
            sequence.computed = 0;
        }
    }
}
