//! Activations as INT8, in the order of a line: computed once per token, used by every row.

use crate::Team;
use crate::isa::Isa;
use krasis_core::Lines;
use krasis_core::lines::{Bits, COLS, PLANE};

/// 128 columns of a token.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Span {
    /// `round(x / scale)`, low plane and high plane.
    pub integers: [i8; COLS],
    /// What an integer of the weight is stored too high by, times the sum of the integers under
    /// each of a line's scales.
    pub corrections: [i32; 4],
    /// `max |x| / 127`.
    pub scale: f32,
}

impl Span {
    /// Four integers as one number.
    #[inline(always)]
    pub fn word(&self, word: usize) -> i32 {
        i32::from_ne_bytes(bytemuck::must_cast(self.integers.as_chunks::<4>().0[word]))
    }
}

/// Tokens that are about to meet a weight.
pub struct Tokens {
    lines: Lines,
    spans: Vec<Span>,
    each: usize,
    /// 0, 1, 2 and so on.
    all: Vec<u32>,
}

/// Below it a reciprocal could leave f32; activations that small are nothing.
const SMALLEST: f32 = 1e-30;

impl Default for Tokens {
    fn default() -> Tokens {
        Tokens::new()
    }
}

impl Tokens {
    /// Room that grows with what it is filled with.
    pub const fn new() -> Tokens {
        let lines = Lines::new(Bits::Four, COLS as u32).expect("a line is a group");
        Tokens { lines, spans: Vec::new(), each: 0, all: Vec::new() }
    }

    /// Has room for so many rows of `cols` activations, so that filling them allocates nothing.
    pub fn reserve(&mut self, count: usize, cols: usize) {
        let Tokens { spans, all, .. } = self;
        spans.reserve((count * cols.div_ceil(COLS)).saturating_sub(spans.len()));
        all.reserve(count.saturating_sub(all.len()));
    }

    /// Prepares `count` rows of `cols` activations for weights in `lines`.
    pub fn fill<'x>(
        &mut self,
        isa: Isa,
        team: &Team,
        lines: Lines,
        cols: usize,
        count: usize,
        row: impl Fn(usize) -> &'x [f32] + Sync,
    ) {
        const EMPTY: Span = Span { integers: [0; COLS], corrections: [0; 4], scale: 0.0 };
        self.lines = lines;
        self.each = cols.div_ceil(COLS);
        self.spans.resize(count * self.each, EMPTY);
        self.all.clear();
        self.all.extend(0..count as u32);
        // A span takes some tens of nanoseconds (estimated): a thread is worth waking for a thousand.
        let spans = crate::Tiles::new(&mut self.spans, self.each);
        team.split(count, 1000usize.div_ceil(self.each), |rows| {
            for i in rows {
                // SAFETY: each row is handed out once.
                let spans = unsafe { spans.tile(i, 0..self.each) };
                quantise(isa, lines, &row(i)[..cols], spans);
            }
        });
    }

    /// The format that they were prepared for.
    pub fn lines(&self) -> Lines {
        self.lines
    }

    /// The numbers of all tokens, for products with each of them.
    pub fn all(&self) -> &[u32] {
        &self.all
    }

    /// One token.
    pub fn row(&self, token: usize) -> &[Span] {
        &self.spans[token * self.each..][..self.each]
    }
}

fn quantise(isa: Isa, lines: Lines, x: &[f32], out: &mut [Span]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2(lines: Lines, x: &[f32], out: &mut [Span]) {
            quantise_body(lines, x, out);
        }
        match isa.vectors() {
            Isa::Plain => {}
            Isa::Avx512Vnni(proof) => {
                return in_spans(x, out, |x, out| *out = avx512::span(proof, lines, x));
            }
            // SAFETY: the other variants hold a proof of AVX2.
            _ => return unsafe { with_avx2(lines, x, out) },
        }
    }
    let _ = isa;
    quantise_body(lines, x, out);
}

#[inline(always)]
fn quantise_body(lines: Lines, x: &[f32], out: &mut [Span]) {
    in_spans(x, out, |x, out| *out = span(lines, x));
}

/// Cuts a row into spans, the last one filled up with zeros.
#[inline(always)]
fn in_spans(x: &[f32], out: &mut [Span], fill: impl Fn(&[f32; COLS], &mut Span)) {
    let (whole, rest) = x.as_chunks::<COLS>();
    for (x, out) in whole.iter().zip(&mut *out) {
        fill(x, out);
    }
    if !rest.is_empty() {
        let mut last = [0.0; COLS];
        last[..rest.len()].copy_from_slice(rest);
        fill(&last, &mut out[whole.len()]);
    }
}

#[inline(always)]
fn span(lines: Lines, x: &[f32; COLS]) -> Span {
    // As bits, so that an infinity or a NaN is the largest and becomes the scale: it must show.
    let largest = x.iter().fold(0, |max, x| max.max(x.to_bits() as i32 & i32::MAX));
    let (scale, inverse) = scale_of(f32::from_bits(largest as u32));
    // 1.5 · 2²³ leaves the rounded number in the lowest bits, in two's complement.
    let integers = x.map(|x| (x * inverse + 12_582_912.0).to_bits() as i8);

    let mut sums = [0i32; 4];
    for (sum, slab) in sums.iter_mut().zip(integers.as_chunks::<32>().0) {
        *sum = slab.iter().map(|&q| i32::from(q)).sum();
    }
    Span { integers: in_line_order(&integers), corrections: corrections(lines, sums), scale }
}

/// The scale of a span whose largest number is this one, and what numbers are multiplied with.
#[inline(always)]
fn scale_of(largest: f32) -> (f32, f32) {
    if largest < SMALLEST { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) }
}

/// From the sums of the integers of each slab.
#[inline(always)]
fn corrections(lines: Lines, sums: [i32; 4]) -> [i32; 4] {
    let sums = match lines.line_scales() {
        1 => [sums.iter().sum(), 0, 0, 0],
        2 => [sums[0] + sums[1], sums[2] + sums[3], 0, 0],
        _ => sums,
    };
    sums.map(|sum| sum * i32::from(lines.zero()))
}

/// `krasis_core::lines::place_in_line`, which a test compares.
#[inline(always)]
fn in_line_order(integers: &[i8; COLS]) -> [i8; COLS] {
    let mut out = [0; COLS];
    for plane in 0..2 {
        for lane in 0..4 {
            for slab in 0..4 {
                for half in 0..2 {
                    let to = plane * PLANE + 16 * lane + 4 * slab + half;
                    let from = 32 * slab + 8 * (2 * half + plane) + 2 * lane;
                    out[to] = integers[from];
                    out[to + 2] = integers[from + 1];
                }
            }
        }
    }
    out
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Span, corrections, scale_of};
    use crate::isa::Avx512Vnni;
    use krasis_core::Lines;
    use krasis_core::lines::COLS;
    use std::arch::x86_64::*;

    /// [`super::span`] in some eighty instructions, bit for bit for what are numbers. A decode step
    /// waits for its activations, on one thread.
    pub fn span(_: Avx512Vnni, lines: Lines, x: &[f32; COLS]) -> Span {
        // SAFETY: the proof says that the features were detected.
        unsafe { body(lines, x) }
    }

    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn body(lines: Lines, x: &[f32; COLS]) -> Span {
        let x: [[f32; 16]; 8] = bytemuck::must_cast(*x);
        let mut largest = _mm512_setzero_si512();
        for x in x {
            let size = _mm512_and_si512(bytemuck::must_cast(x), _mm512_set1_epi32(i32::MAX));
            largest = _mm512_max_epi32(largest, size);
        }
        let (scale, inverse) = scale_of(f32::from_bits(_mm512_reduce_max_epi32(largest) as u32));
        let round = |x: [f32; 16]| {
            _mm512_cvtps_epi32(_mm512_mul_ps(bytemuck::must_cast(x), _mm512_set1_ps(inverse)))
        };
        // A slab's columns `i` and `16 + i` side by side: the 16-bit numbers 0 to 7 are its words of the
        // low plane, lane after lane, and 8 to 15 those of the high plane.
        let mut slabs = [_mm256_setzero_si256(); 4];
        for slab in 0..4 {
            let (first, second) = (round(x[2 * slab]), round(x[2 * slab + 1]));
            let low = _mm512_and_si512(first, _mm512_set1_epi32(255));
            let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<8>(second));
            slabs[slab] = _mm512_cvtepi32_epi16(pairs);
        }
        // Word `lane` of slab `s` goes to word `4 · lane + s` of its plane.
        let two = |a, b| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
        let (first, second) = (two(slabs[0], slabs[1]), two(slabs[2], slabs[3]));
        let at = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
        let low = _mm512_permutex2var_epi32(first, at, second);
        let at = _mm512_add_epi32(at, _mm512_set1_epi32(4));
        let high = _mm512_permutex2var_epi32(first, at, second);
        // Sums of words, and then over lanes.
        let ones = _mm512_set1_epi8(1);
        let sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, low);
        let sums = _mm512_dpbusd_epi32(sums, ones, high);
        let half =
            _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums));
        let sums = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
        Span {
            integers: bytemuck::must_cast([low, high]),
            corrections: corrections(lines, bytemuck::must_cast(sums)),
            scale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use krasis_core::lines::place_in_line;

    #[test]
    fn the_order_is_that_of_the_layout() {
        let columns = std::array::from_fn(|col| col as i8);
        let ordered = in_line_order(&columns);
        for col in 0..COLS {
            let (byte, plane) = place_in_line(col);
            assert_eq!(ordered[plane * PLANE + byte], col as i8);
        }
    }

    #[test]
    fn every_instruction_set_rounds_alike() {
        let numbers = |i: usize| ((i * 7919 % 2003) as f32 - 1001.0) * 0.37 / (1 + i % 97) as f32;
        let x: Vec<f32> = (0..5 * COLS + 33).map(numbers).collect();
        let team = Team::new(Some(1));
        for lines in [(Bits::Four, 32), (Bits::Four, 64), (Bits::Eight, 128)] {
            let lines = Lines::new(lines.0, lines.1).unwrap();
            let spans = |isa| {
                let mut tokens = Tokens::new();
                // Halfway between two integers, and nothing at all.
                let rows = [&x[..], &[127.0, 0.5, 1.5], &[-126.5, 2.5, 127.0], &[0.0, -0.0, 1e-38]];
                tokens.fill(isa, &team, lines, 3, rows.len(), |i| rows[i]);
                let few = tokens.spans.clone();
                tokens.fill(isa, &team, lines, x.len(), 1, |_| &x);
                [few, tokens.spans].concat()
            };
            let wanted = spans(Isa::Plain);
            for isa in Isa::all() {
                assert!(spans(isa) == wanted, "{lines}, {}", isa.name());
            }
        }
    }

    #[test]
    fn the_largest_activation_is_127_and_what_is_no_number_shows() {
        let lines = Lines::new(Bits::Four, 64).unwrap();
        let mut x = [0.0; COLS];
        (x[0], x[1], x[70]) = (-2.0, 1.0, 0.5);
        let one = span(lines, &x);
        assert_eq!(one.scale, 2.0 / 127.0);
        assert_eq!((one.integers[0], one.integers[2]), (-127, 64));
        assert_eq!(one.corrections, [8 * (64 - 127), 8 * 32, 0, 0]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[5] = bad;
            assert!(!span(lines, &x).scale.is_finite());
        }
        assert_eq!(span(lines, &[1e-38; COLS]).scale, 0.0);
    }
}
