//! One answer under a grammar, token by token.

use super::error::sentence;
use super::plan::{Plan, Stage, Watch};
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// Tokens that may come next.
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'a> {
    /// A bit per token, the lowest first; `None` for every token.
    pub tokens: Option<&'a [u32]>,
    /// Whether the answer may end here.
    pub may_end: bool,
}

/// How far an answer is.
pub struct Guide {
    plan: Arc<Plan>,
    stage: usize,
    /// Before the first token of the stage.
    fresh: bool,
    /// Under a grammar: its state.
    hand: Option<Hand>,
    /// While watching: the end of what has been written, and what is allowed, if not all.
    tail: Vec<u8>,
    words: Vec<u32>,
    finished: bool,
}

/// Where a grammar's state is.
enum Hand {
    /// On its way through a worker.
    Away(Receiver<Step>),
    Here(Box<Step>),
    /// Lost.
    Broken(String),
}

/// A grammar's state, and what it allows.
struct Step {
    matcher: Matcher,
    allowed: Result<SimpleVob, String>,
    may_end: bool,
}

impl Guide {
    pub(super) fn new(plan: Arc<Plan>) -> Guide {
        let (tail, words) = (Vec::new(), Vec::new());
        let mut guide =
            Guide { plan, stage: 0, fresh: true, hand: None, tail, words, finished: false };
        guide.enter(0);
        guide
    }

    /// What may come next; waits until it is known. An error is a sentence for the user.
    pub fn allowed(&mut self) -> Result<Allowed<'_>, String> {
        let plan = self.plan.clone();
        match &plan.stages[self.stage] {
            Stage::Watch(watch) => {
                self.look_ahead(watch);
                let tokens = (!self.words.is_empty()).then_some(&self.words[..]);
                Ok(Allowed { tokens, may_end: watch.may_end })
            }
            Stage::Within { instead, .. } => {
                let instead = instead.filter(|_| self.fresh);
                let step = self.step()?;
                if let (Ok(allowed), Some((token, _))) = (&mut step.allowed, instead) {
                    allowed.allow_token(token);
                }
                let allowed = step.allowed.as_ref().map_err(Clone::clone)?;
                Ok(Allowed { tokens: Some(allowed.as_slice()), may_end: step.may_end })
            }
        }
    }

    /// The answer goes on with an allowed token.
    pub fn accept(&mut self, token: u32) {
        let plan = self.plan.clone();
        match &plan.stages[self.stage] {
            Stage::Watch(watch) => {
                // Models have rows without a token.
                self.tail.extend(plan.vocabulary.tokens.get(token as usize).into_iter().flatten());
                let ended = |(marker, _): &&(String, usize)| self.tail.ends_with(marker.as_bytes());
                match watch.markers.iter().find(ended) {
                    Some((_, stage)) => self.enter(*stage),
                    None => {
                        let longest = watch.markers.iter().map(|(marker, _)| marker.len()).max();
                        let surplus = self.tail.len().saturating_sub(longest.unwrap_or(0));
                        self.tail.drain(..surplus);
                    }
                }
            }
            Stage::Within { instead: Some((first, stage)), .. }
                if self.fresh && *first == token =>
            {
                self.enter(*stage);
            }
            Stage::Within { then, .. } => self.consume(token, *then),
        }
    }

    /// Whether nothing may follow.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    fn enter(&mut self, stage: usize) {
        (self.stage, self.fresh) = (stage, true);
        self.hand = match &self.plan.stages[stage] {
            Stage::Watch(watch) => {
                self.tail = watch.before.into();
                None
            }
            Stage::Within { .. } => {
                let plan = self.plan.clone();
                // A copy of what is learned about a grammar's lexer takes its time as well.
                let first = move || match &plan.stages[stage] {
                    Stage::Within { grammar, .. } => Step::of(grammar.deep_clone()),
                    Stage::Watch(_) => unreachable!("a stage stays what it is"),
                };
                Some(Hand::Away(self.plan.vocabulary.workers.run(first)))
            }
        };
    }

    /// The grammar takes a token; behind its end is another stage, or nothing.
    fn consume(&mut self, token: u32, then: Option<usize>) {
        self.fresh = false;
        if self.step().is_err() {
            return;
        }
        let Some(Hand::Here(step)) = self.hand.take() else { return };
        let mut matcher = step.matcher;
        self.hand = Some(match matcher.consume_token(token) {
            Err(error) => Hand::Broken(too_complex(error)),
            Ok(()) if matcher.is_stopped() && matcher.stop_reason().is_ok() => match then {
                Some(stage) => return self.enter(stage),
                None => {
                    self.finished = true;
                    Hand::Broken("the answer is complete".into())
                }
            },
            Ok(()) => Hand::Away(self.plan.vocabulary.workers.run(move || Step::of(matcher))),
        });
    }

    /// The grammar's state, once it is here.
    fn step(&mut self) -> Result<&mut Step, String> {
        if let Some(Hand::Away(coming)) = &self.hand {
            self.hand = Some(match coming.recv() {
                Ok(step) => Hand::Here(Box::new(step)),
                Err(_) => Hand::Broken("the grammar's thread failed".into()),
            });
        }
        match &mut self.hand {
            Some(Hand::Here(step)) => Ok(step),
            Some(Hand::Broken(error)) => Err(error.clone()),
            _ => Err("the answer is under no grammar here".into()),
        }
    }

    /// While watching: all tokens but those that would end a marker and go on, so that whatever a
    /// marker opens begins with a token.
    fn look_ahead(&mut self, watch: &Watch) {
        self.words.clear();
        for &(marker, known, token) in &watch.overshoots {
            let marker = watch.markers[marker].0.as_bytes();
            if self.tail.ends_with(&marker[..known]) {
                if self.words.is_empty() {
                    let tokens = self.plan.vocabulary.tokens.len();
                    self.words.resize(tokens.div_ceil(32), u32::MAX);
                }
                self.words[token as usize / 32] &= !(1 << (token % 32));
            }
        }
    }
}

impl Step {
    fn of(mut matcher: Matcher) -> Step {
        let may_end = matcher.is_accepting().unwrap_or(false);
        let allowed = match matcher.compute_mask() {
            Ok(allowed) => Ok(allowed),
            // Nothing may follow, which only shows here where a terminal could have been longer.
            Err(_) if may_end => Ok(SimpleVob::new()),
            Err(error) => Err(too_complex(error)),
        };
        Step { matcher, allowed, may_end }
    }
}

fn too_complex(error: impl std::fmt::Display) -> String {
    format!("the answer cannot go on under its grammar: {}", sentence(error))
}
