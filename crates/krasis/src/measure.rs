//! Speed, measured from outside: whole requests, their tokens and their time.

use crate::exit::Failure;
use crate::submit::{self, Answer};
use krasis_core::random::SplitMix64;
use krasis_engine::{Handle, Request, Sampling};

/// Prompts that are never the same twice: a known beginning would not be read again.
pub struct Prompts {
    vocab: u32,
    random: SplitMix64,
    /// What is written in the model's language, if there is any; else tokens are random.
    text: Vec<u32>,
}

impl Prompts {
    /// Of a model with so many tokens, and what they are taken from.
    pub fn new(vocab: u32, text: Vec<u32>) -> Prompts {
        Prompts { vocab, random: SplitMix64(1), text }
    }

    fn below(&mut self, n: usize) -> usize {
        (self.random.bits() % n.max(1) as u64) as usize
    }

    /// The next one.
    pub fn next(&mut self, tokens: u32) -> Vec<u32> {
        let vocab = self.vocab as usize;
        if self.text.is_empty() {
            return (0..tokens).map(|_| self.below(vocab) as u32).collect();
        }
        let (first, from) = (self.below(vocab) as u32, self.below(self.text.len()));
        let text = self.text.iter().cycle().skip(from).copied();
        [first].into_iter().chain(text).take(tokens as usize).collect()
    }
}

/// How often something is done.
#[derive(Clone, Copy)]
pub struct Runs {
    /// Sequences at a time.
    pub batch: u32,
    /// Runs that count.
    pub count: u32,
}

/// All runs but the first, which only warms up, in order of their results: `result` of each answer, summed
/// over the sequences of a run. `enough` looks at the first result and may end it there.
pub fn measure(
    handle: &Handle,
    runs: Runs,
    prompts: &mut Prompts,
    (tokens, answer): (u32, u32),
    result: impl Fn(&Answer) -> f64,
    enough: impl Fn(f64) -> bool,
) -> Result<Vec<f64>, Failure> {
    let mut results = Vec::new();
    for run in 0..=runs.count {
        let request = |sequence| Request {
            prompt: prompts.next(tokens),
            // At a temperature of 0 random weights write one token over and over, and ask for the
            // same experts each time.
            sampling: Sampling {
                temperature: 1.0,
                top_k: 50,
                seed: Some(u64::from(run * runs.batch + sequence)),
                ..Sampling::GREEDY
            },
            tokens_max: answer,
            stop_tokens: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            grammar: None,
            priority: 0,
        };
        let requests = (0..runs.batch).map(request).collect();
        let answers = submit::all(handle, requests, |_| {})?;
        let of_run: f64 = answers.iter().map(&result).sum();
        if run == 0 && enough(of_run) {
            return Ok(vec![of_run]);
        }
        if run > 0 {
            results.push(of_run);
        }
    }
    results.sort_by(f64::total_cmp);
    Ok(results)
}

/// The one in the middle; nothing of nothing.
pub fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}
