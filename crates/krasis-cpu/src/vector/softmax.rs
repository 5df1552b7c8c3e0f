//! Softmax in pieces, to base 2.

use super::{LANES, madd};

for_this_machine! {
    /// The next scores of a softmax that is taken in pieces, to base 2 (Milakov and Gimelshein, 2018):
    /// `top` becomes the largest so far, `x = 2^(x - top)`, and `total` includes them. Returns the
    /// factor of everything that was weighed before.
    pub fn weigh(x: &mut [f32], top: &mut f32, total: &mut f32) -> f32 = weigh_body
}

for_this_machine! {
    /// `2ˣ` for `x` up to 0, within 2 units of the last place; never less than 2⁻¹²⁶.
    pub fn exp2(x: f32) -> f32 = exp2_body
}

#[inline(always)]
fn weigh_body<const FMA: bool>(x: &mut [f32], top: &mut f32, total: &mut f32) -> f32 {
    let before = *top;
    let mut tops = [before; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            tops[lane] = larger(chunk[lane], tops[lane]);
        }
    }
    for (lane, &x) in tail.iter().enumerate() {
        tops[lane] = larger(x, tops[lane]);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            tops[lane] = larger(tops[lane + half], tops[lane]);
        }
        half /= 2;
    }
    let now = tops[0];
    let mut sums = [0.0f32; LANES];
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp2_body::<FMA>(chunk[lane] - now);
            sums[lane] += chunk[lane];
        }
    }
    for (lane, x) in tail.iter_mut().enumerate() {
        *x = exp2_body::<FMA>(*x - now);
        sums[lane] += *x;
    }
    let factor = if now == before { 1.0 } else { exp2_body::<FMA>(before - now) };
    *top = now;
    *total = madd::<FMA>(*total, factor, super::dot::total::<FMA>(&sums));
    factor
}

/// `b` if either is NaN, as vector hardware has it.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// As `exp` of the gates, to base 2, where the remainder is exact: Cephes' `exp2f`.
#[inline(always)]
fn exp2_body<const FMA: bool>(x: f32) -> f32 {
    let x = if x < -126.0 { -126.0 } else { x };
    const MAGIC: f32 = 12_582_912.0;
    let n = (x + MAGIC) - MAGIC;
    let r = x - n;
    let p = madd::<FMA>(1.535_336_2e-4, r, 1.339_887_5e-3);
    let p = madd::<FMA>(p, r, 9.618_437e-3);
    let p = madd::<FMA>(p, r, 5.550_332_5e-2);
    let p = madd::<FMA>(p, r, 2.402_264_8e-1);
    let p = madd::<FMA>(p, r, std::f32::consts::LN_2);
    let p = madd::<FMA>(p, r, 1.0);
    p * f32::from_bits((((n + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32 + 127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ramp;

    #[test]
    fn softmax_in_pieces_is_softmax() {
        for len in [1, 16, 31, 32, 33, 100] {
            let x: Vec<f32> = ramp(len, 0.7);
            let wanted = |x: f32| f64::from(x - 35.0).exp2();
            let all: f64 = x.iter().map(|x| wanted(*x)).sum();
            for cut in [0, 1, len / 2] {
                let (mut top, mut total) = (f32::NEG_INFINITY, 0.0);
                let mut weights = x.clone();
                let (first, second) = weights.split_at_mut(cut);
                if cut > 0 {
                    weigh(first, &mut top, &mut total);
                }
                let factor = weigh(second, &mut top, &mut total);
                first.iter_mut().for_each(|x| *x *= factor);
                for (x, got) in x.iter().zip(&weights) {
                    let share = wanted(*x) / all;
                    let got = f64::from(got / total);
                    // The difference of two numbers below 64 is rounded to 2⁻¹⁸ at worst.
                    assert!((got - share).abs() < 4e-6 * share + 1e-30, "{len}: {got}, {share}");
                }
            }
        }
    }

    #[test]
    fn powers_of_two() {
        for i in 0..12900 {
            let x = i as f32 * -0.0097;
            let (got, wanted) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((got - wanted).abs() <= 2.5e-7 * wanted, "{x}: {got} for {wanted}");
        }
        assert!(exp2(f32::NAN).is_nan() && exp2(0.0) == 1.0);
        assert!(exp2(f32::NEG_INFINITY) <= f32::MIN_POSITIVE);
    }
}
