//! Logits to a token.

use crate::request::{Logprob, Sampling};
use krasis_core::random::SplitMix64;
use krasis_cpu::vector::largest;
use std::borrow::Cow;

/// What sampling needs to know of a sequence.
pub struct History<'a> {
    /// Tokens of the prompt.
    pub prompt: &'a [u32],
    /// Tokens generated so far.
    pub answer: &'a [u32],
}

/// Chooses the next token. The same seed, history and logits give the same token, whatever else
/// runs: randomness is a function of the seed and the position, not of a generator's past.
pub fn choose(logits: &[f32], how: &Sampling, seed: u64, history: History) -> u32 {
    let mut logits = Cow::Borrowed(logits);
    if how.changes_logits() {
        penalise(logits.to_mut(), how, &history);
    }
    if how.temperature == 0.0 {
        return best(&logits);
    }
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|x| x / how.temperature)).collect();
    all.retain(|(_, logit)| *logit > f32::NEG_INFINITY);
    if (1..all.len()).contains(&(how.top_k as usize)) {
        all.select_nth_unstable_by(how.top_k as usize - 1, descending);
        all.truncate(how.top_k as usize);
    }
    let largest = all.iter().fold(f32::NEG_INFINITY, |a, &(_, b)| if b > a { b } else { a });
    // Weights relative to the best token, whose weight is 1.
    all.iter_mut().for_each(|(_, x)| *x = (*x - largest).exp());
    if how.top_p < 1.0 {
        let total: f32 = all.iter().map(|(_, weight)| weight).sum();
        let kept = most_likely(&mut all, how.top_p * total);
        all.truncate(kept);
    }
    // The best token always stays: no `min_p` is larger than its weight.
    all.retain(|(_, weight)| *weight >= how.min_p);
    let total: f32 = all.iter().map(|(_, weight)| weight).sum();
    let mut point = uniform(seed, history.answer.len() as u64) * total;
    for &(token, weight) in &all {
        point -= weight;
        if point < 0.0 {
            return token;
        }
    }
    best(&logits)
}

/// By weight, and the lower token first among equals.
fn descending(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Brings the most likely tokens to the front, as many as together weigh `wanted`, at least one, and
/// says how many they are. Few tokens have most of the weight, so only the front is ever sorted.
fn most_likely(all: &mut [(u32, f32)], wanted: f32) -> usize {
    let (mut sorted, mut reached) = (0, 0.0);
    while sorted < all.len() {
        let end = (4 * sorted).max(64).min(all.len());
        let rest = &mut all[sorted..];
        if end - sorted < rest.len() {
            rest.select_nth_unstable_by(end - sorted, descending);
        }
        rest[..end - sorted].sort_unstable_by(descending);
        for (count, (_, weight)) in (sorted + 1..).zip(&rest[..end - sorted]) {
            reached += weight;
            if reached >= wanted {
                return count;
            }
        }
        sorted = end;
    }
    sorted
}

/// Log-probability of `token` under the model, and the `alternatives` most likely tokens.
pub fn logprob(logits: &[f32], token: u32, alternatives: u32) -> Logprob {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    let of = |token: u32| (f64::from(logits[token as usize] - largest) - total.ln()) as f32;
    let mut top: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    let kept = (alternatives as usize).min(top.len());
    if kept > 0 && kept < top.len() {
        top.select_nth_unstable_by(kept - 1, descending);
    }
    top.truncate(kept);
    top.sort_by(descending);
    Logprob {
        token,
        logprob: of(token),
        top: top.into_iter().map(|(token, _)| (token, of(token))).collect(),
    }
}

/// The largest, the first of equals; a logit that is no number is never chosen.
fn best(logits: &[f32]) -> u32 {
    largest(logits).unwrap_or(0) as u32
}

fn penalise(logits: &mut [f32], how: &Sampling, history: &History) {
    for &(token, bias) in &how.logit_bias {
        logits[token as usize] += bias;
    }
    if how.repetition_penalty != 1.0 {
        for token in distinct(history.prompt.iter().chain(history.answer)).into_keys() {
            let logit = &mut logits[token as usize];
            *logit = if *logit > 0.0 {
                *logit / how.repetition_penalty
            } else {
                *logit * how.repetition_penalty
            };
        }
    }
    if how.presence_penalty != 0.0 || how.frequency_penalty != 0.0 {
        for (token, times) in distinct(history.answer.iter()) {
            logits[token as usize] -= how.presence_penalty + how.frequency_penalty * times as f32;
        }
    }
}

/// Tokens and how often they occur.
fn distinct<'a>(tokens: impl Iterator<Item = &'a u32>) -> std::collections::HashMap<u32, u32> {
    let mut counts = std::collections::HashMap::new();
    tokens.for_each(|token| *counts.entry(*token).or_insert(0) += 1);
    counts
}

/// In [0, 1), from a seed and a position.
fn uniform(seed: u64, position: u64) -> f32 {
    SplitMix64(seed.wrapping_add(position.wrapping_mul(STEP))).uniform()
}

/// An odd number, so that positions of one seed do not meet those of the next.
const STEP: u64 = 0xd134_2543_de82_ef95;

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: History = History { prompt: &[], answer: &[] };

    fn shares(how: &Sampling, logits: &[f32]) -> Vec<f32> {
        let mut counts = vec![0; logits.len()];
        (0..4000).for_each(|seed| counts[choose(logits, how, seed, NONE) as usize] += 1);
        counts.into_iter().map(|n| n as f32 / 4000.0).collect()
    }

    fn near(got: &[f32], wanted: &[f32]) {
        assert!(
            got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 0.04),
            "{got:?} for {wanted:?}"
        );
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let logits = [0.7f32, 0.2, 0.1].map(f32::ln);
        let how = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        near(&shares(&how, &logits), &[0.7, 0.2, 0.1]);
        near(
            &shares(&Sampling { temperature: 0.5, ..how.clone() }, &logits),
            &[0.907, 0.074, 0.019],
        );
        near(&shares(&Sampling { top_k: 2, ..how.clone() }, &logits), &[0.778, 0.222, 0.0]);
        // 0.7 does not reach 0.75, so the second token is kept as well.
        near(&shares(&Sampling { top_p: 0.75, ..how.clone() }, &logits), &[0.778, 0.222, 0.0]);
        near(&shares(&Sampling { top_p: 0.0, ..how.clone() }, &logits), &[1.0, 0.0, 0.0]);
        near(&shares(&Sampling { min_p: 0.2, ..how }, &logits), &[0.778, 0.222, 0.0]);
    }

    #[test]
    fn the_most_likely_tokens_are_those_of_a_full_sort() {
        let weight = |i: u32| (uniform(7, u64::from(i)) * 8.0).exp().floor();
        let all: Vec<(u32, f32)> = (0..5000).map(|i| (i, weight(i))).collect();
        let mut sorted = all.clone();
        sorted.sort_by(descending);
        let total: f32 = all.iter().map(|(_, weight)| weight).sum();
        for share in [0.0, 1e-4, 0.1, 0.5, 0.9, 0.999, 1.0, 2.0] {
            let mut some = all.clone();
            let kept = most_likely(&mut some, share * total);
            assert_eq!(some[..kept], sorted[..kept], "{share}");
            let weighs = |n: usize| sorted[..n].iter().map(|(_, weight)| weight).sum::<f32>();
            assert!(kept == 5000 || weighs(kept) >= share * total, "{share}");
            assert!(kept == 1 || weighs(kept - 1) < share * total, "{share}");
        }
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let logits = [2.0, 1.9, -1.0];
        let choice = |how: Sampling, prompt: &[u32], answer: &[u32]| {
            choose(&logits, &how, 0, History { prompt, answer })
        };
        assert_eq!(choice(Sampling::GREEDY, &[0], &[0]), 0);
        let repetition = Sampling { repetition_penalty: 1.2, ..Sampling::GREEDY };
        assert_eq!(choice(repetition, &[0], &[]), 1);
        let presence = Sampling { presence_penalty: 0.2, ..Sampling::GREEDY };
        assert_eq!(choice(presence.clone(), &[0], &[]), 0, "prompt tokens do not count");
        assert_eq!(choice(presence, &[], &[0]), 1);
        let frequency = Sampling { frequency_penalty: 0.06, ..Sampling::GREEDY };
        assert_eq!(choice(frequency.clone(), &[], &[0]), 0);
        assert_eq!(choice(frequency, &[], &[0, 0]), 1);
        let bias = Sampling { logit_bias: vec![(2, 100.0)], ..Sampling::GREEDY };
        assert_eq!(choice(bias, &[], &[]), 2);
    }

    #[test]
    fn logprobs_are_normalised_and_sorted() {
        let logits = [0.5f32, 0.25, 0.25].map(f32::ln);
        let got = logprob(&logits, 2, 2);
        assert!((got.logprob - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(got.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(logprob(&logits, 0, 1).top[0].1, logprob(&logits, 0, 0).logprob);
    }
}
