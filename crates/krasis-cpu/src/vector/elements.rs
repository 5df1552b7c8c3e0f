//! Loops over the elements of rows.

use super::{LANES, madd};

for_this_machine! {
    /// Where the largest number is, the first of equals; what is no number is passed over.
    pub fn largest(values: &[f32]) -> Option<usize> = largest_body
}

for_this_machine! {
    /// `out += scale · a`.
    pub fn add_scaled(out: &mut [f32], scale: f32, a: &[f32]) = add_scaled_body
}

for_this_machine! {
    /// `out += a · b`, element by element.
    pub fn add_pairs(out: &mut [f32], a: &[f32], b: &[f32]) = add_pairs_body
}

for_this_machine! {
    /// Turns the pairs `(a[i], b[i])` by the angles of these cosines and sines.
    pub fn rotate(a: &mut [f32], b: &mut [f32], cos: &[f32], sin: &[f32]) = rotate_body
}

for_this_machine! {
    /// `out = a · out + b · x`.
    pub fn blend(out: &mut [f32], a: f32, x: &[f32], b: f32) = blend_body
}

for_this_machine! {
    /// `x = factor · x`.
    pub fn scale(x: &mut [f32], factor: f32) = scale_body
}

for_this_machine! {
    /// `out = scale · x`.
    pub fn scaled(x: &[f32], scale: f32, out: &mut [f32]) = scaled_body
}

#[inline(always)]
fn largest_body<const FMA: bool>(values: &[f32]) -> Option<usize> {
    // Several lanes at once, then where it was: one comparison after the other takes as long for
    // the logits of 150,000 tokens as a layer does.
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for lane in 0..LANES {
            lanes[lane] = if values[lane] > lanes[lane] { values[lane] } else { lanes[lane] };
        }
    }
    let mut largest = f32::NEG_INFINITY;
    for &value in rest.iter().chain(&lanes) {
        largest = if value > largest { value } else { largest };
    }
    for (at, &value) in values.iter().enumerate() {
        if value == largest {
            return Some(at);
        }
    }
    None
}

#[inline(always)]
fn add_scaled_body<const FMA: bool>(out: &mut [f32], scale: f32, a: &[f32]) {
    for (out, &a) in out.iter_mut().zip(a) {
        *out = madd::<FMA>(scale, a, *out);
    }
}

#[inline(always)]
fn add_pairs_body<const FMA: bool>(out: &mut [f32], a: &[f32], b: &[f32]) {
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = madd::<FMA>(a, b, *out);
    }
}

#[inline(always)]
fn rotate_body<const FMA: bool>(a: &mut [f32], b: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(b.len() == a.len() && cos.len() == a.len() && sin.len() == a.len());
    for i in 0..a.len() {
        let (x, y) = (a[i], b[i]);
        a[i] = madd::<FMA>(x, cos[i], -(y * sin[i]));
        b[i] = madd::<FMA>(y, cos[i], x * sin[i]);
    }
}

#[inline(always)]
fn blend_body<const FMA: bool>(out: &mut [f32], a: f32, x: &[f32], b: f32) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = madd::<FMA>(b, x, a * *out);
    }
}

#[inline(always)]
fn scale_body<const FMA: bool>(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

#[inline(always)]
fn scaled_body<const FMA: bool>(x: &[f32], scale: f32, out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = x * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_is_found() {
        for len in [1, 31, 32, 33, 100] {
            let mut values: Vec<f32> = (0..len).map(|i| (i * 37 % 101) as f32).collect();
            values[len / 2] = f32::NAN;
            values[len - 1] = 200.0;
            assert_eq!(largest(&values), Some(len - 1));
            values[len / 3] = 200.0;
            assert_eq!(largest(&values), Some(len / 3));
        }
        assert_eq!(largest(&[f32::NAN, f32::NEG_INFINITY]), Some(1));
        assert_eq!((largest(&[f32::NAN]), largest(&[])), (None, None));
    }
}
