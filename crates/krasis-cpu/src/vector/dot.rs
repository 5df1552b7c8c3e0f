//! Dot products. Each depends on its two rows alone, never on what else is in the batch: this is what
//! makes tokens independent of chunk size and of other sequences.

use super::{LANES, madd};

for_this_machine! {
    /// Σ a·b.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body
}

#[inline(always)]
fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    assert!(a.len() == b.len());
    let mut sums = [0.0; LANES];
    let whole = a.len() / LANES * LANES;
    let mut at = 0;
    while at < whole {
        let (a, b) = (&a[at..at + LANES], &b[at..at + LANES]);
        for lane in 0..LANES {
            sums[lane] = madd::<FMA>(a[lane], b[lane], sums[lane]);
        }
        at += LANES;
    }
    for lane in 0..a.len() - whole {
        sums[lane] = madd::<FMA>(a[whole + lane], b[whole + lane], sums[lane]);
    }
    total::<FMA>(&sums)
}

/// Sums lanes pairwise, in an order that vector hardware can follow.
#[inline(always)]
pub(super) fn total<const FMA: bool>(sums: &[f32; LANES]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if FMA {
        // SAFETY: only what is compiled for AVX2 has FMA.
        return unsafe { total_in_registers(sums) };
    }
    total_plain(sums)
}

/// A call, because the compiler would otherwise cut the lanes of the loops before it into the odd
/// pieces of this tree.
#[inline(never)]
pub(crate) fn total_plain(sums: &[f32; LANES]) -> f32 {
    let mut sums = *sums;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// The same additions. A row of 256 columns takes as long as the call and its way through memory.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn total_in_registers(sums: &[f32; LANES]) -> f32 {
    use std::arch::x86_64::*;
    // SAFETY: each of the four reads is of eight lanes within the 32.
    let [a, b, c, d] = [0, 8, 16, 24].map(|at| unsafe { _mm256_loadu_ps(sums.as_ptr().add(at)) });
    let eight = _mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ramp;

    #[test]
    fn dot_agrees_with_a_plain_sum_at_every_length() {
        for len in 0..200 {
            let (a, b) = (ramp(len, 0.01), ramp(len, 0.02));
            let plain: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(dot(&a, &b)) - plain).abs() < 1e-4, "{len}");
        }
    }

    /// Lanes of every size, so that another order of the same sums would be another number.
    #[test]
    fn lanes_are_added_in_one_order_whatever_the_machine() {
        for seed in 0..100u32 {
            let lane = |i: usize| {
                let bits = (seed + 1).wrapping_mul(2_654_435_761).wrapping_mul(2 * i as u32 + 1);
                (bits as f32 - 2e9) * 2f32.powi((bits % 23) as i32)
            };
            // In 32 columns, each lane is one product.
            let a: Vec<f32> = (0..LANES).map(lane).collect();
            let lanes = std::array::from_fn(lane);
            assert_eq!(dot(&a, &[1.0; LANES]).to_bits(), total_plain(&lanes).to_bits(), "{seed}");
        }
    }
}
