//! The vector loops of the float kernels: decode a weight row to f32, and dot products.
//!
//! Each loop is written once in plain Rust and compiled for two instruction sets; which one runs is
//! decided by detection. A dot product depends on its two rows alone, never on what else is in the
//! batch: this is what makes tokens independent of chunk size and of other sequences.

use half::bf16;
use krasis_core::{DType, Format};
use std::sync::LazyLock;

/// Accumulators of a dot product: two 512-bit registers, or four of 256.
const LANES: usize = 32;

/// The widest instruction set of this machine that the loops are compiled for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Isa {
    Plain,
    Avx2,
    Avx512,
}

/// Detected once; `is_x86_feature_detected` caches, but this is one load and one branch.
static ISA: LazyLock<Isa> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
    {
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        return if wide { Isa::Avx512 } else { Isa::Avx2 };
    }
    Isa::Plain
});

/// Compiles `$body` again with AVX2 and with AVX-512, and picks at run time. The body must be plain
/// loops: a closure in it would be compiled without the features.
macro_rules! for_this_machine {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? = $body:ident) => {
        $(#[$doc])*
        pub fn $name($($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn with_avx2($($arg: $type),*) $(-> $out)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                fn with_avx512($($arg: $type),*) $(-> $out)? {
                    $body::<true>($($arg),*)
                }
                match *ISA {
                    // SAFETY: the features were detected.
                    Isa::Avx512 => return unsafe { with_avx512($($arg),*) },
                    // SAFETY: the features were detected.
                    Isa::Avx2 => return unsafe { with_avx2($($arg),*) },
                    Isa::Plain => {}
                }
            }
            $body::<false>($($arg),*)
        }
    };
}

for_this_machine! {
    /// Σ a·b.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body
}

for_this_machine! {
    /// `dot(a, b)` for four `b` at once, bit for bit, reading `a` once.
    pub fn dot4(a: &[f32], b: [&[f32]; 4]) -> [f32; 4] = dot4_body
}

for_this_machine! {
    /// `dot` of a stored row (see [`decode_row`]) and `x`, bit for bit, without a place for the row.
    pub fn dot_row(format: Format, data: &[u8], scales: &[bf16], x: &[f32]) -> f32 = dot_row_body
}

for_this_machine! {
    /// [`dot_row`] of rows that are stored one behind the other, bit for bit.
    pub fn dot_rows(format: Format, data: &[u8], scales: &[bf16], x: [&[f32]; 1], out: &mut [[f32; 1]]) = dot_rows_of_1
}

for_this_machine! {
    /// The same with two `x`, reading each row once.
    pub fn dot_rows2(format: Format, data: &[u8], scales: &[bf16], x: [&[f32]; 2], out: &mut [[f32; 2]]) = dot_rows_of_2
}

for_this_machine! {
    /// The same with four.
    pub fn dot_rows4(format: Format, data: &[u8], scales: &[bf16], x: [&[f32]; 4], out: &mut [[f32; 4]]) = dot_rows_of_4
}

for_this_machine! {
    /// Where the largest number is, the first of equals; what is no number is passed over.
    pub fn largest(values: &[f32]) -> Option<usize> = largest_body
}

for_this_machine! {
    /// `out += scale · a`.
    pub fn add_scaled(out: &mut [f32], scale: f32, a: &[f32]) = add_scaled_body
}

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

for_this_machine! {
    /// `out = scale · data`, eight-bit floats as they are stored.
    pub fn decode_f8(data: &[u8], scale: f32, out: &mut [f32]) = decode_f8_body
}

for_this_machine! {
    /// One row of a weight as f32: `data` and `scales` are the row's own (see `krasis_core::quant`).
    pub fn decode_row(format: Format, data: &[u8], scales: &[bf16], out: &mut [f32]) = decode_row_body
}

#[inline(always)]
fn madd<const FMA: bool>(a: f32, b: f32, sum: f32) -> f32 {
    if FMA { a.mul_add(b, sum) } else { a * b + sum }
}

#[inline(always)]
fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    total::<FMA>(&accumulate::<FMA>(a, b, [0.0; LANES]))
}

/// Adds the products of a stretch to the lanes; all stretches but the last are whole lanes long. By
/// value, or the lanes would not stay in registers.
#[inline(always)]
fn accumulate<const FMA: bool>(a: &[f32], b: &[f32], mut sums: [f32; LANES]) -> [f32; LANES] {
    assert!(a.len() == b.len());
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
    sums
}

/// Columns of a row that [`dot_row`] decodes at a time: they stay in the first cache.
const STRETCH: usize = 512;

#[inline(always)]
fn dot_row_body<const FMA: bool>(format: Format, data: &[u8], scales: &[bf16], x: &[f32]) -> f32 {
    let [sum] = dot_stored::<FMA, 1>(format, data, scales, [x]);
    sum
}

#[inline(always)]
fn dot_rows_body<const FMA: bool, const N: usize>(
    format: Format,
    data: &[u8],
    scales: &[bf16],
    x: [&[f32]; N],
    out: &mut [[f32; N]],
) {
    let cols = x[0].len() as u32;
    let (bytes, count) = (format.row_bytes(cols) as usize, format.row_scales(cols) as usize);
    for row in 0..out.len() {
        let data = &data[row * bytes..][..bytes];
        let scales = &scales[row * count..][..count];
        out[row] = dot_stored::<FMA, N>(format, data, scales, x);
    }
}

#[inline(always)]
fn dot_rows_of_1<const FMA: bool>(
    format: Format,
    data: &[u8],
    scales: &[bf16],
    x: [&[f32]; 1],
    out: &mut [[f32; 1]],
) {
    dot_rows_body::<FMA, 1>(format, data, scales, x, out);
}

#[inline(always)]
fn dot_rows_of_2<const FMA: bool>(
    format: Format,
    data: &[u8],
    scales: &[bf16],
    x: [&[f32]; 2],
    out: &mut [[f32; 2]],
) {
    dot_rows_body::<FMA, 2>(format, data, scales, x, out);
}

#[inline(always)]
fn dot_rows_of_4<const FMA: bool>(
    format: Format,
    data: &[u8],
    scales: &[bf16],
    x: [&[f32]; 4],
    out: &mut [[f32; 4]],
) {
    dot_rows_body::<FMA, 4>(format, data, scales, x, out);
}

#[inline(always)]
fn dot_stored<const FMA: bool, const N: usize>(
    format: Format,
    data: &[u8],
    scales: &[bf16],
    x: [&[f32]; N],
) -> [f32; N] {
    if format == Format::Float(DType::Bf16) {
        return totals::<FMA, N>(&dot_bf16::<FMA, N>(data, x));
    }
    let group = match format {
        Format::Int8 { group } | Format::Int4 { group } => group as usize,
        _ => 1,
    };
    let mut sums = [[0.0f32; LANES]; N];
    let cols = x[0].len();
    if !STRETCH.is_multiple_of(group) {
        let mut row = vec![0.0; cols];
        decode_row_body::<FMA>(format, data, scales, &mut row);
        for i in 0..N {
            sums[i] = accumulate::<FMA>(&row, x[i], sums[i]);
        }
        return totals::<FMA, N>(&sums);
    }
    let (bytes, groups) = (format.row_bytes(STRETCH as u32) as usize, STRETCH / group);
    let mut row = [0.0f32; STRETCH];
    for (stretch, first) in (0..cols).step_by(STRETCH).enumerate() {
        let end = cols.min(first + STRETCH);
        let row = &mut row[..end - first];
        let data = &data[stretch * bytes..][..format.row_bytes((end - first) as u32) as usize];
        let scales = if scales.is_empty() { scales } else { &scales[stretch * groups..] };
        decode_row_body::<FMA>(format, data, scales, row);
        for i in 0..N {
            sums[i] = accumulate::<FMA>(row, &x[i][first..end], sums[i]);
        }
    }
    totals::<FMA, N>(&sums)
}

/// The lanes of a row of BF16 with each `x`: it is widened in registers, where a buffer between would
/// take longer than the products.
#[inline(always)]
fn dot_bf16<const FMA: bool, const N: usize>(data: &[u8], x: [&[f32]; N]) -> [[f32; LANES]; N] {
    let cols = data.len() / 2;
    for i in 0..N {
        assert!(x[i].len() == cols);
    }
    let mut sums = [[0.0f32; LANES]; N];
    let whole = cols / LANES * LANES;
    let mut at = 0;
    while at < whole {
        let data = &data[2 * at..2 * (at + LANES)];
        let mut row = [0.0f32; LANES];
        for lane in 0..LANES {
            row[lane] = widened(data[2 * lane], data[2 * lane + 1]);
        }
        for i in 0..N {
            let x = &x[i][at..at + LANES];
            for lane in 0..LANES {
                sums[i][lane] = madd::<FMA>(row[lane], x[lane], sums[i][lane]);
            }
        }
        at += LANES;
    }
    for lane in 0..cols - whole {
        let at = whole + lane;
        let row = widened(data[2 * at], data[2 * at + 1]);
        for i in 0..N {
            sums[i][lane] = madd::<FMA>(row, x[i][at], sums[i][lane]);
        }
    }
    sums
}

/// A BF16 of two bytes.
#[inline(always)]
fn widened(low: u8, high: u8) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes([low, high])) << 16)
}

#[inline(always)]
fn totals<const FMA: bool, const N: usize>(sums: &[[f32; LANES]; N]) -> [f32; N] {
    let mut totals = [0.0; N];
    for i in 0..N {
        totals[i] = total::<FMA>(&sums[i]);
    }
    totals
}

/// Four sums side by side: `a` is read once, and there is always an addition to start while others
/// are under way.
#[inline(always)]
fn dot4_body<const FMA: bool>(a: &[f32], b: [&[f32]; 4]) -> [f32; 4] {
    let [b0, b1, b2, b3] = b;
    assert!(
        b0.len() == a.len() && b1.len() == a.len() && b2.len() == a.len() && b3.len() == a.len()
    );
    let (mut s0, mut s1, mut s2, mut s3) =
        ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
    let whole = a.len() / LANES * LANES;
    let mut at = 0;
    while at < whole {
        let a = &a[at..at + LANES];
        let (b0, b1) = (&b0[at..at + LANES], &b1[at..at + LANES]);
        let (b2, b3) = (&b2[at..at + LANES], &b3[at..at + LANES]);
        for lane in 0..LANES {
            s0[lane] = madd::<FMA>(a[lane], b0[lane], s0[lane]);
            s1[lane] = madd::<FMA>(a[lane], b1[lane], s1[lane]);
            s2[lane] = madd::<FMA>(a[lane], b2[lane], s2[lane]);
            s3[lane] = madd::<FMA>(a[lane], b3[lane], s3[lane]);
        }
        at += LANES;
    }
    for lane in 0..a.len() - whole {
        s0[lane] = madd::<FMA>(a[whole + lane], b0[whole + lane], s0[lane]);
        s1[lane] = madd::<FMA>(a[whole + lane], b1[whole + lane], s1[lane]);
        s2[lane] = madd::<FMA>(a[whole + lane], b2[whole + lane], s2[lane]);
        s3[lane] = madd::<FMA>(a[whole + lane], b3[whole + lane], s3[lane]);
    }
    totals::<FMA, 4>(&[s0, s1, s2, s3])
}

/// Sums lanes pairwise, in an order that vector hardware can follow.
#[inline(always)]
fn total<const FMA: bool>(sums: &[f32; LANES]) -> f32 {
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
fn total_plain(sums: &[f32; LANES]) -> f32 {
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
    *total = madd::<FMA>(*total, factor, self::total::<FMA>(&sums));
    factor
}

/// `b` if either is NaN, as vector hardware has it.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// As `exp` above, to base 2, where the remainder is exact: Cephes' `exp2f`.
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

/// Exponent and mantissa move to where f32 has them, eight places up; numbers below the smallest
/// normal one get there with a leading one too many, which is subtracted again.
#[inline(always)]
fn decode_f8_body<const FMA: bool>(data: &[u8], scale: f32, out: &mut [f32]) {
    for (out, &byte) in out.iter_mut().zip(data) {
        let bits = u32::from(byte & 0x7f) << 20;
        let normal = f32::from_bits(bits + (120 << 23));
        let small = f32::from_bits(bits + (121 << 23)) - 0.015_625;
        let x = if bits < 1 << 23 { small } else { normal };
        let x = if bits == 0x7f << 20 { f32::NAN } else { x };
        *out = f32::from_bits(x.to_bits() | u32::from(byte & 0x80) << 24) * scale;
    }
}

/// The same for half precision, by a product: exact below the smallest normal number, too.
#[inline(always)]
fn half_float(stored: u16) -> f32 {
    const UP_112_PLACES: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(stored & 0x7fff) << 13;
    let finite = (f32::from_bits(bits) * UP_112_PLACES).to_bits();
    let bits = if bits < 0x1f << 23 { finite } else { bits | 0xff << 23 };
    f32::from_bits(bits | u32::from(stored & 0x8000) << 16)
}

#[inline(always)]
fn decode_row_body<const FMA: bool>(format: Format, data: &[u8], scales: &[bf16], out: &mut [f32]) {
    assert_eq!(data.len() as u64, format.row_bytes(out.len() as u32));
    match format {
        Format::Lines(lines) => unreachable!("a row does not lie by itself in {lines}"),
        Format::Float(DType::F32) => {
            for (out, b) in out.iter_mut().zip(data.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*b);
            }
        }
        Format::Float(DType::Bf16) => {
            for (out, b) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                *out = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        Format::Float(DType::F16) => {
            for (out, b) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                *out = half_float(u16::from_le_bytes(*b));
            }
        }
        Format::Float(other) => unreachable!("{other} weights are refused when they are loaded"),
        Format::Int8 { group } => {
            let groups = out.chunks_mut(group as usize).zip(data.chunks(group as usize));
            for ((out, data), scale) in groups.zip(scales) {
                let scale = scale.to_f32();
                for (out, &q) in out.iter_mut().zip(data) {
                    *out = f32::from(q as i8) * scale;
                }
            }
        }
        Format::Int4 { group } => {
            let groups = out.chunks_mut(group as usize).zip(data.chunks(group as usize / 2));
            for ((out, data), scale) in groups.zip(scales) {
                let scale = scale.to_f32();
                for (i, out) in out.iter_mut().enumerate() {
                    let nibble = (data[i / 2] >> (i % 2 * 4)) & 15;
                    *out = (i32::from(nibble) - 8) as f32 * scale;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    fn ramp(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) * step).collect()
    }

    #[test]
    fn dot_agrees_with_a_plain_sum_at_every_length() {
        for len in 0..200 {
            let (a, b) = (ramp(len, 0.01), ramp(len, 0.02));
            let plain: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(dot(&a, &b)) - plain).abs() < 1e-4, "{len}");
        }
    }

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

    #[test]
    fn eight_bit_floats_are_exact() {
        let all: Vec<u8> = (0..=255).collect();
        let mut out = [0.0; 256];
        decode_f8(&all, 0.37, &mut out);
        for (&byte, got) in all.iter().zip(out) {
            let wanted = krasis_core::F8E4M3(byte).to_f32() * 0.37;
            assert!(got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan(), "{byte}");
        }
    }

    #[test]
    fn half_precision_is_exact() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0; 1 << 16];
        decode_row(Format::Float(DType::F16), &all, &[], &mut out);
        for (stored, got) in (0..=u16::MAX).zip(out) {
            let wanted = f16::from_bits(stored).to_f32();
            assert!(
                got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan(),
                "{stored}"
            );
        }
    }

    #[test]
    fn dot4_is_dot_bit_for_bit() {
        for len in [1, 31, 32, 33, 100, 257] {
            let a = ramp(len, 0.013);
            let b: Vec<Vec<f32>> = (1..5).map(|i| ramp(len, 0.007 * i as f32)).collect();
            let four = dot4(&a, [&b[0], &b[1], &b[2], &b[3]]);
            for i in 0..4 {
                assert_eq!(four[i].to_bits(), dot(&a, &b[i]).to_bits(), "{len}");
            }
        }
    }

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

    #[test]
    fn dot_row_is_decode_and_dot_bit_for_bit() {
        let formats = [
            Format::Float(DType::F32),
            Format::Float(DType::Bf16),
            Format::Float(DType::F16),
            Format::Int8 { group: 128 },
            Format::Int4 { group: 32 },
            Format::Int4 { group: 48 },
        ];
        for format in formats {
            for cols in [1, 100, 512, 513, 1500] {
                let bytes = format.row_bytes(cols) as usize;
                // Bytes that are numbers of moderate size in every format.
                let data: Vec<u8> = (0..bytes).map(|i| 0x3b + (i % 5) as u8).collect();
                let scales: Vec<bf16> = (0..format.row_scales(cols))
                    .map(|i| bf16::from_f32(0.25 + i as f32 / 64.0))
                    .collect();
                let x = ramp(cols as usize, 0.01);
                let mut row = vec![f32::NAN; cols as usize];
                decode_row(format, &data, &scales, &mut row);
                let got = dot_row(format, &data, &scales, &x);
                assert_eq!(got.to_bits(), dot(&row, &x).to_bits(), "{format} of {cols}");
            }
        }
    }

    #[test]
    fn rows_together_are_rows_alone_bit_for_bit() {
        let formats = [
            Format::Float(DType::F32),
            Format::Float(DType::Bf16),
            Format::Int8 { group: 128 },
            Format::Int4 { group: 48 },
        ];
        for (format, cols) in formats.into_iter().flat_map(|f| [1, 31, 96, 700].map(|c| (f, c))) {
            let (bytes, count) =
                (format.row_bytes(cols) as usize, format.row_scales(cols) as usize);
            let data: Vec<u8> = (0..3 * bytes).map(|i| 0x3b + (i * i % 5) as u8).collect();
            let scales: Vec<bf16> =
                (0..3 * count).map(|i| bf16::from_f32(0.25 + i as f32 / 64.0)).collect();
            let xs = [1, 2, 3, 4].map(|i| ramp(cols as usize, 0.004 * i as f32));
            let [a, b, c, d] = xs.each_ref().map(|x| &x[..]);
            let (mut one, mut two) = ([[f32::NAN; 1]; 3], [[f32::NAN; 2]; 3]);
            let mut four = [[f32::NAN; 4]; 3];
            dot_rows(format, &data, &scales, [a], &mut one);
            dot_rows2(format, &data, &scales, [c, d], &mut two);
            dot_rows4(format, &data, &scales, [a, b, c, d], &mut four);
            for row in 0..3 {
                let (data, scales) =
                    (&data[row * bytes..][..bytes], &scales[row * count..][..count]);
                let wanted = [a, b, c, d].map(|x| dot_row(format, data, scales, x).to_bits());
                let name = format!("row {row} of {format} of {cols}");
                assert_eq!(one[row].map(f32::to_bits), wanted[..1], "{name}");
                assert_eq!(two[row].map(f32::to_bits), wanted[2..], "{name}");
                assert_eq!(four[row].map(f32::to_bits), wanted, "{name}");
            }
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

    #[test]
    fn int4_rows_decode_low_nibble_first() {
        let mut out = [0.0; 5];
        let scales = [bf16::from_f32(0.5), bf16::from_f32(2.0)];
        // Integers 0, 1, -8, 7 in the first group of four, then 3.
        decode_row(Format::Int4 { group: 4 }, &[0x98, 0xf0, 0x8b], &scales, &mut out);
        assert_eq!(out, [0.0, 0.5, -4.0, 3.5, 6.0]);
    }
}
