//! Logits to a token.
//!
//! Tokens are thought to lie end to end, the most likely first, each as long as it is likely, and a
//! random point among those that are kept is the choice. So the largest logits of a row, with the sum
//! of all weights, mostly are enough to choose as from the whole row. They are if
//!
//! - no bias or penalty raises a logit, and those that are looked at still come before all others;
//! - what `top_k`, `top_p` and `min_p` keep ends among them, or nothing limits and the point falls there;
//! - that does not depend on the last digits of the sum of weights.
//!
//! Otherwise whoever chooses is told nothing, and comes back with the whole row.
//!
//! Under a grammar, tokens that are not allowed are as if they were not there. Of the weight behind the
//! largest logits any part may be that of allowed tokens, so the sum of all weights lies between two
//! bounds, and the point may be any of those that belong to them.

use crate::constraint::Mask;
use crate::request::{Logprob, Sampling};
use krasis_core::random::SplitMix64;
use krasis_cpu::vector::largest;
use std::borrow::Cow;
use std::collections::HashMap;

/// What sampling needs to know of a sequence.
pub struct History<'a> {
    /// Tokens of the prompt.
    pub prompt: &'a [u32],
    /// Tokens generated so far.
    pub answer: &'a [u32],
}

/// What is known of a row's logits.
#[derive(Clone, Copy)]
pub enum Known<'a> {
    /// All of them.
    Row(&'a [f32]),
    /// The largest.
    Largest(Largest<'a>),
}

/// The largest logits of a row: a row of [`krasis_ops::largest`].
#[derive(Clone, Copy)]
pub struct Largest<'a> {
    values: &'a [f32],
    /// The tokens that they belong to, as numbers.
    tokens: &'a [f32],
    /// Σ exp(scale · (logit - largest)) over all tokens, or 0.
    total: f32,
    scale: f32,
    vocab: u32,
}

impl Known<'_> {
    /// Size of the vocabulary.
    pub fn vocab(&self) -> u32 {
        match self {
            Known::Row(row) => row.len() as u32,
            Known::Largest(largest) => largest.vocab,
        }
    }
}

impl Largest<'_> {
    /// From a row as the operation writes it.
    pub fn of(row: &[f32], scale: f32, vocab: u32) -> Largest<'_> {
        let (values, rest) = row.split_at(row.len() / 2);
        let (tokens, total) = rest.split_at(values.len());
        Largest { values, tokens, total: total[0], scale, vocab }
    }

    /// Whether no token is missing that could be chosen.
    fn is_whole(&self) -> bool {
        self.values.len() == self.vocab as usize || self.last().1 == f32::NEG_INFINITY
    }

    /// The token that all missing ones come behind.
    fn last(&self) -> (u32, f32) {
        let last = self.values.len() - 1;
        (self.tokens[last] as u32, self.values[last])
    }

    /// The weight of all allowed tokens, of which `front` has the largest, relative to its first.
    fn rest(&self, front: &[(u32, f32)], mask: Option<&Mask>) -> Rest {
        let total = f64::from(self.total);
        let (low, high) = (total * (1.0 - TOTAL_ERROR), total * (1.0 + TOTAL_ERROR));
        let (Some(mask), Some(&(_, best))) = (mask, front.first()) else {
            return Rest::Total([low, high]);
        };
        let largest = self.values[0] * self.scale;
        let known: f64 = self.pairs().map(|(_, x)| weight(x * self.scale, largest)).sum();
        let allowed = self.pairs().filter(|(token, _)| mask.allows(*token));
        let allowed: f64 = allowed.map(|(_, x)| weight(x * self.scale, best)).sum();
        let missing = (high - known * (1.0 - TOTAL_ERROR)).max(0.0) / weight(best, largest);
        Rest::Total([allowed * (1.0 - TOTAL_ERROR), allowed * (1.0 + TOTAL_ERROR) + missing])
    }

    fn pairs(&self) -> impl Iterator<Item = (u32, f32)> {
        self.tokens.iter().map(|token| *token as u32).zip(self.values.iter().copied())
    }
}

/// What the logits of a request are multiplied with where weights are added up; 0 if no sum is needed.
pub fn weight_scale(how: &Sampling, logprobs: Option<u32>) -> f32 {
    match (how.temperature, logprobs) {
        (0.0, None) => 0.0,
        (0.0, Some(_)) => 1.0,
        (temperature, _) => 1.0 / temperature,
    }
}

/// The sum of all weights lies within this part of what a device has added up in f32.
const TOTAL_ERROR: f64 = 1e-4;

/// Chooses the next token, or says that the whole row is needed. The same seed, history and logits
/// give the same token, whatever else runs and however much is known: randomness is a function of the
/// seed and the position, not of a generator's past. With a mask, it is one of its tokens.
pub fn choose(
    known: Known,
    how: &Sampling,
    seed: u64,
    history: History,
    mask: Option<&Mask>,
) -> Option<u32> {
    if let Some(mask) = mask.filter(|mask| mask.tokens() == 1) {
        return Some(mask.first());
    }
    match known {
        Known::Row(logits) => Some(choose_of_row(logits, how, seed, history, mask)),
        Known::Largest(largest) => choose_of_largest(&largest, how, seed, history, mask),
    }
}

fn choose_of_row(
    logits: &[f32],
    how: &Sampling,
    seed: u64,
    history: History,
    mask: Option<&Mask>,
) -> u32 {
    let mut logits = Cow::Borrowed(logits);
    if let Some(mask) = mask {
        for (token, logit) in (0..).zip(logits.to_mut()) {
            if !mask.allows(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    if how.changes_logits() {
        let logits = logits.to_mut();
        change(how, &history, |token, new| logits[token as usize] = new(logits[token as usize]));
    }
    if how.temperature == 0.0 {
        return best(&logits, mask);
    }
    let mut all = possible((0..).zip(logits.iter().copied()), how.temperature);
    if (1..all.len()).contains(&(how.top_k as usize)) {
        all.select_nth_unstable_by(how.top_k as usize - 1, descending);
        all.truncate(how.top_k as usize);
    }
    let largest = all.iter().fold(f32::NEG_INFINITY, |a, &(_, b)| if b > a { b } else { a });
    let total = all.iter().map(|(_, x)| weight(*x, largest, how.temperature)).sum();
    // Few tokens have most of the weight, so only the front is ever sorted.
    let (mut sorted, point) = (0, uniform(seed, history.answer.len() as u64));
    while sorted < all.len() {
        let end = (4 * sorted).max(64).min(all.len());
        let rest = &mut all[sorted..];
        if end - sorted < rest.len() {
            rest.select_nth_unstable_by(end - sorted, descending);
        }
        rest[..end - sorted].sort_unstable_by(descending);
        let rest = if end == all.len() { Rest::Nothing } else { Rest::Total([total; 2]) };
        if let Some(token) = draw(&all[..end], rest, how, point) {
            return token;
        }
        sorted = end;
    }
    best(&logits, mask)
}

fn choose_of_largest(
    known: &Largest,
    how: &Sampling,
    seed: u64,
    history: History,
    mask: Option<&Mask>,
) -> Option<u32> {
    let allowed = |token: &u32| mask.is_none_or(|mask| mask.allows(*token));
    if !how.changes_logits() && how.temperature == 0.0 {
        return known
            .pairs()
            .find(|(token, _)| allowed(token))
            .filter(|(_, x)| *x > f32::NEG_INFINITY)
            .map(|(token, _)| token);
    }
    if how.raises_logits() {
        return None;
    }
    let mut front: Vec<(u32, f32)> = known.pairs().filter(|(token, _)| allowed(token)).collect();
    let known_allowed = front.len();
    if how.changes_logits() {
        let places: HashMap<u32, usize> =
            front.iter().enumerate().map(|(place, (token, _))| (*token, place)).collect();
        change(how, &history, |token, new| {
            if let Some(&place) = places.get(&token) {
                front[place].1 = new(front[place].1);
            }
        });
    }
    let temperature = if how.temperature == 0.0 { 1.0 } else { how.temperature };
    let mut front = possible(front.into_iter(), temperature);
    front.sort_unstable_by(descending);
    let mut whole = known.is_whole() || mask.is_some_and(|mask| mask.tokens() == known_allowed);
    if !whole {
        // Missing tokens come behind the last one, and penalties only put them further back.
        let last = known.last();
        front.truncate(front.partition_point(|x| descending(x, &last).is_le()));
    }
    if how.temperature == 0.0 {
        return front.first().map(|(token, _)| *token);
    }
    let top_k = how.top_k as usize;
    if (1..=front.len()).contains(&top_k) {
        front.truncate(top_k);
        whole = true;
    } else if !whole && top_k > 0 && how.top_k < known.vocab {
        return None;
    }
    let rest = if whole {
        Rest::Nothing
    } else if how.changes_logits() || known.scale != 1.0 / how.temperature {
        return None;
    } else {
        known.rest(&front, mask)
    };
    draw(&front, rest, how, uniform(seed, history.answer.len() as u64))
}

/// Logits without tokens that cannot come at this temperature. Zeros of both signs are equals. The
/// temperature itself waits for the weights: rounding would make equals of tokens that are none, and
/// change their order.
fn possible(logits: impl Iterator<Item = (u32, f32)>, temperature: f32) -> Vec<(u32, f32)> {
    logits
        .map(|(token, x)| (token, x + 0.0))
        .filter(|(_, x)| x / temperature > f32::NEG_INFINITY)
        .collect()
}

/// Relative to the best token, whose weight is 1.
fn weight(x: f32, largest: f32, temperature: f32) -> f64 {
    f64::from((x / temperature - largest / temperature).exp())
}

/// What comes behind the tokens that are looked at.
enum Rest {
    Nothing,
    /// More tokens: the weight of all together lies between these.
    Total([f64; 2]),
}

/// The token at `point` of those that are kept, of which `front` is the most likely, in order. Nothing
/// if it may be another one.
fn draw(front: &[(u32, f32)], rest: Rest, how: &Sampling, point: f32) -> Option<u32> {
    let largest = front.first()?.1;
    let weights = front.iter().map(|(_, x)| weight(*x, largest, how.temperature));
    let [low, high] = match rest {
        Rest::Nothing => [weights.clone().sum(); 2],
        Rest::Total(total) => total,
    };
    let mut reached = 0.0;
    let mut ends = None;
    for (i, weight) in weights.clone().enumerate() {
        // The best token always stays: no `min_p` is larger than its weight.
        if i > 0 && weight < f64::from(how.min_p) {
            ends = Some(i);
            break;
        }
        reached += weight;
        if how.top_p < 1.0 && reached >= f64::from(how.top_p) * low {
            ends = Some(i + 1);
            if reached < f64::from(how.top_p) * high {
                return None;
            }
            break;
        }
    }
    let (kept, [low, high]) = match (ends, &rest) {
        (Some(kept), _) => (kept, [reached; 2]),
        (None, Rest::Nothing) => (front.len(), [reached; 2]),
        (None, Rest::Total(_)) if how.top_p < 1.0 || how.min_p > 0.0 => return None,
        (None, Rest::Total(total)) => (front.len(), *total),
    };
    let (least, most) = (f64::from(point) * low, f64::from(point) * high);
    let mut reached = 0.0;
    for (&(token, _), weight) in front.iter().zip(weights).take(kept) {
        reached += weight;
        if reached > most {
            return Some(token);
        }
        if reached > least {
            return None;
        }
    }
    // Weights that are no numbers reach nothing.
    (ends.is_some() || matches!(rest, Rest::Nothing)).then_some(front[0].0)
}

/// By size, and the lower token first among equals.
fn descending(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Log-probability of `token` under the model, and the `alternatives` most likely tokens, or nothing
/// if that takes the whole row.
pub fn logprob(known: Known, token: u32, alternatives: u32) -> Option<Logprob> {
    match known {
        Known::Row(logits) => Some(logprob_of_row(logits, token, alternatives)),
        Known::Largest(largest) => logprob_of_largest(&largest, token, alternatives),
    }
}

fn logprob_of_largest(known: &Largest, token: u32, alternatives: u32) -> Option<Logprob> {
    let alternatives = alternatives.min(known.vocab) as usize;
    if known.scale != 1.0 || known.total <= 0.0 || alternatives > known.values.len() {
        return None;
    }
    let of = |x: f32| (f64::from(x - known.values[0]) - f64::from(known.total).ln()) as f32;
    let (_, own) = known.pairs().find(|(other, _)| *other == token)?;
    let top = known.pairs().take(alternatives).map(|(token, x)| (token, of(x))).collect();
    Some(Logprob { token, logprob: of(own), top })
}

fn logprob_of_row(logits: &[f32], token: u32, alternatives: u32) -> Logprob {
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

/// The largest, the first of equals; a logit that is no number is never chosen, unless all are none.
fn best(logits: &[f32], mask: Option<&Mask>) -> u32 {
    match largest(logits).map(|token| token as u32) {
        Some(token) if mask.is_none_or(|mask| mask.allows(token)) => token,
        _ => mask.map_or(0, Mask::first),
    }
}

/// Applies biases and penalties: `at(token, new)` replaces a token's logit by `new` of it.
fn change(how: &Sampling, history: &History, mut at: impl FnMut(u32, &dyn Fn(f32) -> f32)) {
    for &(token, bias) in &how.logit_bias {
        at(token, &|logit| logit + bias);
    }
    let repetition = how.repetition_penalty;
    if repetition != 1.0 {
        for token in distinct(history.prompt.iter().chain(history.answer)).into_keys() {
            at(token, &|x| if x > 0.0 { x / repetition } else { x * repetition });
        }
    }
    if how.presence_penalty != 0.0 || how.frequency_penalty != 0.0 {
        for (token, times) in distinct(history.answer.iter()) {
            at(token, &|x| x - (how.presence_penalty + how.frequency_penalty * times as f32));
        }
    }
}

/// Tokens and how often they occur.
fn distinct<'a>(tokens: impl Iterator<Item = &'a u32>) -> HashMap<u32, u32> {
    let mut counts = HashMap::new();
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
        (0..4000).for_each(|seed| {
            counts[choose(Known::Row(logits), how, seed, NONE, None).unwrap() as usize] += 1
        });
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

    /// The largest of a row as the operation finds them.
    fn largest_of(logits: &[f32], scale: f32, k: usize) -> Vec<f32> {
        let number = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { x + 0.0 };
        let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|x| number(*x))).collect();
        all.sort_by(descending);
        let weights = all.iter().map(|(_, x)| (scale * (x - all[0].1)).exp());
        let total: f32 = if scale == 0.0 { 0.0 } else { weights.sum() };
        let values = all[..k].iter().map(|(_, x)| *x);
        values.chain(all[..k].iter().map(|(token, _)| *token as f32)).chain([total]).collect()
    }

    /// Rows of many shapes: steep and flat ones, ties, zeros of both signs, what is no number.
    fn random_row(random: &mut SplitMix64, vocab: u32) -> Vec<f32> {
        let (steepness, grain) =
            (random.uniform() * 30.0, [0.0, 0.25, 2.0][random.bits() as usize % 3]);
        let mut number = || {
            let u = random.uniform() * 2.0 - 1.0;
            let x = steepness * u * u * u;
            match random.bits() % 400 {
                0 => f32::NAN,
                1 => f32::NEG_INFINITY,
                _ if grain > 0.0 => (x / grain).round() * grain,
                _ => x,
            }
        };
        (0..vocab).map(|_| number()).collect()
    }

    /// Every other case is free; of the others, some allow nearly all tokens, some a few.
    fn random_mask(random: &mut SplitMix64, vocab: u32, case: u64) -> Option<Mask> {
        if case.is_multiple_of(2) {
            return None;
        }
        let share = [0.999, 0.5, 0.1, 0.01][random.bits() as usize % 4];
        let mut words = vec![0; vocab.div_ceil(32) as usize];
        for token in (0..vocab).filter(|_| random.uniform() < share).collect::<Vec<_>>() {
            words[token as usize / 32] |= 1 << (token % 32);
        }
        Mask::new(words)
    }

    #[test]
    fn under_a_mask_the_others_are_as_if_they_were_not_there() {
        let logits = [0.7f32, 0.2, 0.1].map(f32::ln);
        let how = Sampling { temperature: 1.0, top_p: 0.6, ..Sampling::GREEDY };
        let mask = Mask::new(vec![0b110]);
        let choose = |how: &Sampling, logits: &[f32], seed| {
            choose(Known::Row(logits), how, seed, NONE, mask.as_ref())
        };
        assert_eq!(choose(&Sampling::GREEDY, &logits, 0), Some(1));
        // Two thirds of what is allowed reach top_p, which 0.2 of all would not.
        assert!((0..500).all(|seed| choose(&how, &logits, seed) == Some(1)));
        let how = Sampling { top_p: 1.0, ..how };
        let ones = (0..4000).filter(|seed| choose(&how, &logits, *seed) == Some(1)).count();
        assert!((ones as f32 / 4000.0 - 2.0 / 3.0).abs() < 0.04, "{ones}");
        for how in [Sampling::GREEDY, how] {
            assert_eq!(
                choose(&how, &[f32::NAN; 3], 0),
                Some(1),
                "an allowed one, if none is a number"
            );
        }
    }

    #[test]
    fn the_largest_logits_choose_as_the_whole_row_does() {
        let mut random = SplitMix64(5);
        let mut one = |of: &[f32]| of[random.bits() as usize % of.len()];
        let (mut enough, mut rows) = ([0, 0], SplitMix64(6));
        for case in 0..12_000u64 {
            let vocab = one(&[64.0, 65.0, 300.0, 2000.0]) as u32;
            let penalties = case % 3 == 0;
            let penalty = |x: f32| if penalties { x } else { 0.0 };
            let how = Sampling {
                logit_bias: if case % 7 == 0 {
                    vec![(3, one(&[-2.0, 2.0])), (9, -1.0)]
                } else {
                    vec![]
                },
                repetition_penalty: 1.0 + penalty(one(&[0.0, 0.3, -0.2])),
                presence_penalty: penalty(one(&[0.0, 0.5, -0.5])),
                frequency_penalty: penalty(one(&[0.0, 0.1])),
                temperature: one(&[0.0, 0.3, 0.7, 1.0, 2.0]),
                top_k: one(&[0.0, 0.0, 1.0, 20.0, 50.0, 64.0, 100.0, 5000.0]) as u32,
                top_p: one(&[0.0, 0.3, 0.8, 0.95, 0.999, 1.0, 1.0]),
                min_p: one(&[0.0, 0.0, 1e-6, 0.05, 1.0]),
                seed: None,
            };
            let row = random_row(&mut rows, vocab);
            let answer: Vec<u32> =
                (0..case % 40).map(|_| (rows.bits() % u64::from(vocab)) as u32).collect();
            let history = || History { prompt: &[1, 2, 3], answer: &answer };
            let largest = largest_of(&row, weight_scale(&how, None), 64);
            let known = Known::Largest(Largest::of(&largest, weight_scale(&how, None), vocab));
            let mask = random_mask(&mut rows, vocab, case);
            if let Some(token) = choose(known, &how, case, history(), mask.as_ref()) {
                enough[usize::from(mask.is_some())] += 1;
                let wanted = choose(Known::Row(&row), &how, case, history(), mask.as_ref());
                assert_eq!(Some(token), wanted, "case {case} of {vocab}: {how:?}");
                assert!(mask.is_none_or(|mask| mask.allows(token)), "case {case}");
            }
        }
        assert!(enough[0] > 3000 && enough[1] > 2000, "{enough:?} of 6000 each were enough");
    }

    /// What chat programs ask for, over rows as steep as those of language models.
    #[test]
    fn common_settings_need_no_whole_row() {
        let steep: Vec<f32> = (0..5000).map(|i| -3.0 * ((i * 37 % 5000) as f32).ln_1p()).collect();
        let plain = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        for how in [
            Sampling::GREEDY,
            Sampling { presence_penalty: 0.5, frequency_penalty: 0.1, ..Sampling::GREEDY },
            Sampling { temperature: 0.7, top_k: 20, top_p: 0.8, ..plain.clone() },
            Sampling { temperature: 0.7, top_k: 20, repetition_penalty: 1.05, ..plain.clone() },
            Sampling { temperature: 0.6, top_p: 0.95, ..plain.clone() },
            Sampling { min_p: 0.1, ..plain.clone() },
            plain,
        ] {
            let scale = weight_scale(&how, None);
            let largest = largest_of(&steep, scale, 64);
            for seed in 0..50 {
                let known = Known::Largest(Largest::of(&largest, scale, 5000));
                let history = || History { prompt: &[0, 1], answer: &[0, 2] };
                let got = choose(known, &how, seed, history(), None);
                let wanted = choose(Known::Row(&steep), &how, seed, history(), None);
                assert!(got.is_some() && got == wanted, "{how:?}");
            }
        }
    }

    /// As logits in BF16 are: the 50th is as large as the 64th, and as tokens that are not among these.
    #[test]
    fn ties_need_no_whole_row_where_top_k_ends_among_the_largest() {
        let coarse: Vec<f32> = (0..3000).map(|i| -((i * 37 % 3000 / 40) as f32) / 8.0).collect();
        let how = Sampling { temperature: 1.0, top_k: 50, ..Sampling::GREEDY };
        for how in [how.clone(), Sampling { temperature: 0.3, presence_penalty: 0.5, ..how }] {
            let largest = largest_of(&coarse, weight_scale(&how, None), 64);
            for seed in 0..50 {
                let scale = weight_scale(&how, None);
                let known = Known::Largest(Largest::of(&largest, scale, 3000));
                let history = || History { prompt: &[], answer: &[0] };
                let got = choose(known, &how, seed, history());
                let wanted = choose(Known::Row(&coarse), &how, seed, history());
                assert_eq!(got, wanted, "{how:?}");
            }
        }
    }

    #[test]
    fn logprobs_of_the_largest_are_those_of_the_row() {
        let row = random_row(&mut SplitMix64(8), 500)
            .into_iter()
            .map(|x| if x > -1e9 { x } else { -9.0 });
        let row: Vec<f32> = row.collect();
        let largest = largest_of(&row, 1.0, 64);
        let known = || Known::Largest(Largest::of(&largest, 1.0, 500));
        let token = largest[64 + 5] as u32;
        let (got, wanted) = (logprob(known(), token, 20).unwrap(), logprob_of_row(&row, token, 20));
        assert!((got.logprob - wanted.logprob).abs() < 1e-5, "{got:?} for {wanted:?}");
        for (got, wanted) in got.top.iter().zip(&wanted.top) {
            assert!(got.0 == wanted.0 && (got.1 - wanted.1).abs() < 1e-5, "{got:?} for {wanted:?}");
        }
        assert_eq!(got.top.len(), 20);
        assert_eq!(logprob(known(), token, 65), None);
        let missing = (0..500).find(|token| !largest[64..128].contains(&(*token as f32))).unwrap();
        assert_eq!(logprob(known(), missing, 0), None);
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let logits = [2.0, 1.9, -1.0];
        let choice = |how: Sampling, prompt: &[u32], answer: &[u32]| {
            choose(Known::Row(&logits), &how, 0, History { prompt, answer }, None).unwrap()
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
        let got = logprob_of_row(&logits, 2, 2);
        assert!((got.logprob - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(got.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1]);
        let of = |alternatives| logprob_of_row(&logits, 0, alternatives);
        assert_eq!(of(1).top[0].1, of(0).logprob);
    }
}
