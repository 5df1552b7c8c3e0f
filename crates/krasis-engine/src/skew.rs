//! Routers whose experts are unequally popular, for measuring with weights from nowhere: real
//! models send most tokens to few experts, and what a cache of hot experts is worth depends on it.

use krasis_core::random::SplitMix64;
use krasis_ops::Routing;
use krasis_ops::route::{choose, choose_floats};

/// Tokens of which the bias is learned. The last of them move it by a hundredth of the first.
const TOKENS: u32 = 6_000;

/// A bias under which random tokens choose experts as often as Zipf's law says: the expert of rank
/// `r` (from 1) `r^-skew` times as often as the first, as far as one expert per choice allows. Ranks
/// are dealt to experts by `seed`, differently for every layer.
///
/// Found by stochastic approximation (Robbins and Monro, 1951): an expert that came too often
/// becomes a little less attractive. The router's own logits are taken to be normal, as those of
/// random weights are.
pub fn popularity_bias(how: &Routing, experts: u32, skew: f64, seed: u64) -> Vec<f32> {
    let wanted = shares(how.top_k, experts, skew, seed);
    let mut random = SplitMix64(seed);
    let mut bias = vec![0.0f32; experts as usize];
    let (mut chosen, mut weights) = (vec![0; how.top_k as usize], vec![0.0; how.top_k as usize]);
    let mut own = vec![0.0; choose_floats(how, experts)];
    for token in 0..TOKENS {
        let logits: Vec<f32> = (0..experts).map(|_| normal(&mut random)).collect();
        choose(&logits, Some(&bias), how, &mut own, &mut chosen, &mut weights);
        // Scores of a softmax are around one over the number of experts, those of a sigmoid around a half.
        let size = match how.score {
            krasis_ops::Score::Softmax => 4.0 / experts as f32,
            krasis_ops::Score::Sigmoid => 0.5,
        };
        let step = size / (1.0 + 99.0 * token as f32 / TOKENS as f32);
        bias.iter_mut().zip(&wanted).for_each(|(bias, share)| *bias += step * share);
        chosen.iter().for_each(|&expert| bias[expert as usize] -= step);
    }
    bias
}

/// How often each expert is to be chosen: `top_k` in all, none above one.
fn shares(top_k: u32, experts: u32, skew: f64, seed: u64) -> Vec<f32> {
    let law: Vec<f64> = (1..=experts).map(|rank| f64::from(rank).powf(-skew)).collect();
    let total = |scale: f64| law.iter().map(|p| (p * scale).min(1.0)).sum::<f64>();
    // The scale at which all shares sum to top_k: it lies between two powers of two, then by halves.
    let (mut low, mut high) = (0.0, 1.0);
    while total(high) < f64::from(top_k) && high < 1e30 {
        high *= 2.0;
    }
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if total(middle) < f64::from(top_k) { low = middle } else { high = middle }
    }
    let mut shares: Vec<f32> = law.iter().map(|p| (p * high).min(1.0) as f32).collect();
    let mut random = SplitMix64(!seed);
    // Fisher and Yates.
    for i in (1..shares.len()).rev() {
        shares.swap(i, (random.bits() % (i as u64 + 1)) as usize);
    }
    shares
}

/// Nearly normal, of deviation one: the sum of twelve uniform numbers.
fn normal(random: &mut SplitMix64) -> f32 {
    (0..12).map(|_| random.uniform()).sum::<f32>() - 6.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use krasis_ops::route::{GroupScore, Groups, Score};

    fn check(how: Routing, experts: u32, skew: f64) {
        let (seed, tokens) = (5, 4_000);
        let bias = popularity_bias(&how, experts, skew, seed);
        let mut random = SplitMix64(99);
        let mut counts = vec![0u32; experts as usize];
        let (mut chosen, mut weights) =
            (vec![0; how.top_k as usize], vec![0.0; how.top_k as usize]);
        let mut own = vec![0.0; choose_floats(&how, experts)];
        for _ in 0..tokens {
            let logits: Vec<f32> = (0..experts).map(|_| normal(&mut random)).collect();
            choose(&logits, Some(&bias), &how, &mut own, &mut chosen, &mut weights);
            chosen.iter().for_each(|&expert| counts[expert as usize] += 1);
        }
        // What the most popular fifth gets, by the law and as it came.
        let fifth = experts as usize / 5;
        let mut wanted = shares(how.top_k, experts, skew, seed);
        wanted.sort_by(|a, b| b.total_cmp(a));
        let wanted = wanted[..fifth].iter().sum::<f32>() / how.top_k as f32;
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let got = counts[..fifth].iter().sum::<u32>() as f32 / (tokens * how.top_k) as f32;
        assert!((got - wanted).abs() < 0.05, "{how:?} at {skew}: {got} for {wanted}");
    }

    #[test]
    fn experts_are_as_popular_as_the_law_says() {
        let softmax = Routing { score: Score::Softmax, groups: None, top_k: 8, renormalise: true };
        check(softmax, 128, 0.0);
        check(softmax, 128, 0.8);
        check(Routing { top_k: 10, ..softmax }, 512, 1.0);
        let groups = Some(Groups { count: 8, kept: 4, by: GroupScore::TwoLargest });
        check(Routing { score: Score::Sigmoid, groups, ..softmax }, 64, 0.5);
    }

    #[test]
    fn layers_have_other_favourites() {
        assert_ne!(shares(8, 128, 1.0, 1), shares(8, 128, 1.0, 2));
        let sum: f32 = shares(8, 128, 1.0, 1).iter().sum();
        assert!((sum - 8.0).abs() < 1e-3);
    }
}
