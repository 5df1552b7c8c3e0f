//! Answers under a grammar through a whole engine. The grammar here counts: the n-th token must leave
//! n when divided by a number.

mod common;

use common::{Answer, Golden, answer, engine, greedy, submit};
use krasis_engine::{Allowed, Constraint, Event, Finish, Grammar, Options, Request, Sampling};
use std::sync::Arc;
use std::sync::mpsc::channel;

#[derive(Clone, Debug)]
struct Counting {
    modulus: u32,
    /// The answer may end behind a multiple of so many tokens.
    round: usize,
    /// And must end behind these.
    most: usize,
    /// It cannot go on behind these.
    broken: usize,
}

const COUNTING: Counting = Counting { modulus: 5, round: 8, most: 140, broken: usize::MAX };

struct Count {
    rules: Counting,
    accepted: usize,
    words: Vec<u32>,
}

impl Grammar for Counting {
    fn begin(&self) -> Box<dyn Constraint> {
        Box::new(Count { rules: self.clone(), accepted: 0, words: Vec::new() })
    }
}

impl Constraint for Count {
    fn allowed(&mut self) -> Result<Allowed<'_>, String> {
        let Counting { modulus, round, broken, .. } = self.rules;
        if self.accepted == broken {
            return Err("there is no next number".into());
        }
        self.words = vec![0; 64];
        for token in (0..2048).filter(|token| token % modulus == self.accepted as u32 % modulus) {
            self.words[token as usize / 32] |= 1 << (token % 32);
        }
        Ok(Allowed {
            tokens: Some(&self.words),
            may_end: self.accepted > 0 && self.accepted.is_multiple_of(round),
        })
    }

    fn accept(&mut self, token: u32) {
        assert_eq!(token % self.rules.modulus, self.accepted as u32 % self.rules.modulus);
        self.accepted += 1;
    }

    fn is_finished(&self) -> bool {
        self.accepted == self.rules.most
    }
}

fn under(grammar: Counting, request: Request) -> Request {
    Request { grammar: Some(Arc::new(grammar)), ..request }
}

/// As in `invariance.rs`: eight sequences push each other out of memory again and again.
#[test]
fn a_grammar_goes_on_where_it_was_when_a_sequence_comes_back() {
    for fixture in ["qwen3_moe", "qwen3_next"] {
        let golden = Golden::of(fixture);
        let request = |i: usize| {
            let temperature = if i.is_multiple_of(2) { 0.0 } else { 0.9 };
            let sampling = Sampling { temperature, seed: Some(3), ..Sampling::GREEDY };
            let free = greedy(&golden.tokens[i * 10..i * 10 + 20], 140);
            under(COUNTING, Request { sampling, ..free })
        };
        let alone: Vec<Answer> = {
            let handle = engine(fixture, &common::defaults());
            (0..8).map(|i| answer(&handle, request(i))).collect()
        };
        let options = Options { context_max: Some(160), ..common::defaults() };
        let handle = common::engine_with_pages(fixture, &options, 31);
        let pending: Vec<_> = (0..8).map(|i| submit(&handle, request(i))).collect();
        for (pending, alone) in pending.into_iter().zip(alone) {
            let got = pending.wait();
            assert_eq!(got.tokens, alone.tokens, "{fixture}");
            assert_eq!((got.tokens.len(), got.finish), (140, Finish::Stop));
            let kept = |(n, token): (usize, &u32)| *token % 5 == n as u32 % 5;
            assert!(got.tokens.iter().enumerate().all(kept));
        }
        assert!(handle.census.preemptions.load(std::sync::atomic::Ordering::Relaxed) > 0);
    }
}

#[test]
fn the_most_likely_allowed_token_is_taken() {
    let golden = Golden::of("qwen3_moe");
    let handle = engine("qwen3_moe", &common::defaults());
    let prompt = &golden.greedy_prompt;
    // What is allowed follows from the distribution of a free answer's first token.
    let free = answer(&handle, Request { tokens_max: 1, ..greedy(prompt, 1) }).tokens[0];
    for modulus in [2, 3, 7, 400] {
        let rules = Counting { modulus, ..COUNTING };
        let request = Request { logprobs: Some(20), ..under(rules, greedy(prompt, 1)) };
        let (send, events) = channel();
        let ticket = handle.submit(request, Box::new(move |event| drop(send.send(event)))).unwrap();
        let Event::Token { id, logprob: Some(logprob) } = events.recv().unwrap() else { panic!() };
        drop(ticket);
        assert_eq!(id % modulus, 0);
        assert_eq!(logprob.token, id);
        assert_eq!(logprob.top[0].0, free, "log-probabilities are the model's own");
        let better = logprob.top.iter().filter(|(_, x)| *x > logprob.logprob);
        assert!(better.clone().all(|(token, _)| token % modulus != 0), "{id} of {:?}", logprob.top);
    }
}

#[test]
fn answers_end_where_the_grammar_may() {
    let golden = Golden::of("qwen3_moe");
    let handle = engine("qwen3_moe", &common::defaults());
    // Tokens that the grammar has in every fifth place as well.
    let stop_tokens: Vec<u32> = (0..2048).filter(|token| token % 10 == 4).collect();
    let run = |rules: Counting, tokens_max| {
        let request = Request {
            stop_tokens: stop_tokens.clone(),
            ..greedy(&golden.greedy_prompt, tokens_max)
        };
        let got = answer(&handle, under(rules, request));
        (got.tokens, got.finish)
    };
    let (tokens, finish) = run(Counting { round: 1000, ..COUNTING }, 20);
    assert_eq!((tokens.len(), finish), (20, Finish::Length));
    let (tokens, finish) = run(Counting { most: 3, ..COUNTING }, 100);
    assert_eq!((tokens.len(), finish), (3, Finish::Stop));
    let (tokens, finish) = run(Counting { round: 3, ..COUNTING }, 100);
    assert_eq!(finish, Finish::Stop);
    assert!(tokens.last().unwrap() % 10 == 4 && (tokens.len() - 1).is_multiple_of(3), "{tokens:?}");
    assert!(tokens[..tokens.len() - 1].iter().all(|token| !stop_tokens.contains(token)));
}

#[test]
fn what_cannot_go_on_is_refused() {
    let golden = Golden::of("qwen3_moe");
    let handle = engine("qwen3_moe", &common::defaults());
    for broken in [0, 3] {
        let request = under(Counting { broken, ..COUNTING }, greedy(&golden.greedy_prompt, 24));
        let (send, events) = channel();
        let _ticket =
            handle.submit(request, Box::new(move |event| drop(send.send(event)))).unwrap();
        let events: Vec<Event> = events.iter().collect();
        assert_eq!(events.len(), broken + 1, "{events:?}");
        let message = "there is no next number".to_owned();
        assert_eq!(events[broken], Event::Refused { message });
    }
    // Others go on.
    assert_eq!(answer(&handle, greedy(&golden.greedy_prompt, 24)).tokens, golden.greedy);
}
