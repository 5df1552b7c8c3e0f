//! The nonlinear functions of gates.

use super::madd;

for_this_machine! {
    /// `out = silu(x)`, within 4 units of the last place. The gate of every expert passes here, and the
    /// library's `exp` would take a third of a prefill's time.
    pub fn silu(x: &[f32], out: &mut [f32]) = silu_body
}

for_this_machine! {
    /// `x = x · silu(gate)`; see [`silu`].
    pub fn times_silu(x: &mut [f32], gate: &[f32]) = times_silu_body
}

for_this_machine! {
    /// `x = x · sigmoid(gate)`.
    pub fn times_sigmoid(x: &mut [f32], gate: &[f32]) = times_sigmoid_body
}

#[inline(always)]
fn silu_body<const FMA: bool>(x: &[f32], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = x / (1.0 + exp::<FMA>(-x));
    }
}

/// `2ⁿ · 2ᶠ` with `n` the nearest integer and a polynomial for `f` (Cephes, `expf`); NaN stays NaN.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    // Beyond these, `1 + exp` is 1 or the quotient is less than any f32 that matters.
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    const MAGIC: f32 = 12_582_912.0;
    let n = madd::<FMA>(x, std::f32::consts::LOG2_E, MAGIC) - MAGIC;
    let r = madd::<FMA>(n, -0.693_359_4, x);
    let r = madd::<FMA>(n, 2.121_944_4e-4, r);
    let p = madd::<FMA>(1.987_569_1e-4, r, 1.398_199_9e-3);
    let p = madd::<FMA>(p, r, 8.333_452e-3);
    let p = madd::<FMA>(p, r, 4.166_579_6e-2);
    let p = madd::<FMA>(p, r, 1.666_666_5e-1);
    let p = madd::<FMA>(p, r, 0.5);
    let p = madd::<FMA>(p, r * r, r) + 1.0;
    p * f32::from_bits((((n + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32 + 127) << 23) as u32)
}

#[inline(always)]
fn times_silu_body<const FMA: bool>(x: &mut [f32], gate: &[f32]) {
    for (x, &gate) in x.iter_mut().zip(gate) {
        *x *= gate / (1.0 + exp::<FMA>(-gate));
    }
}

#[inline(always)]
fn times_sigmoid_body<const FMA: bool>(x: &mut [f32], gate: &[f32]) {
    for (x, &gate) in x.iter_mut().zip(gate) {
        *x /= 1.0 + exp::<FMA>(-gate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_is_near_at_every_size() {
        let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.0311).collect();
        let mut out = vec![f32::NAN; x.len()];
        silu(&x, &mut out);
        for (&x, got) in x.iter().zip(out) {
            let wanted = f64::from(x) / (1.0 + f64::from(-x).exp());
            let error = (f64::from(got) - wanted).abs();
            assert!(error <= 5e-7 * wanted.abs() + 1e-35, "{x}: {got} for {wanted}");
        }
        let mut out = [0.0; 3];
        silu(&[f32::NAN, f32::INFINITY, 0.0], &mut out);
        assert!(out[0].is_nan() && out[1] == f32::INFINITY && out[2] == 0.0);
    }
}
