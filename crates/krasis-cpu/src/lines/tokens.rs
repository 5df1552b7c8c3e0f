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
        if !matches!(isa, Isa::Plain) {
            // SAFETY: the other variants hold a proof of AVX2.
            return unsafe { with_avx2(lines, x, out) };
        }
    }
    let _ = isa;
    quantise_body(lines, x, out);
}

#[inline(always)]
fn quantise_body(lines: Lines, x: &[f32], out: &mut [Span]) {
    let (whole, rest) = x.as_chunks::<COLS>();
    for (x, out) in whole.iter().zip(&mut *out) {
        *out = span(lines, x);
    }
    if !rest.is_empty() {
        let mut last = [0.0; COLS];
        last[..rest.len()].copy_from_slice(rest);
        out[whole.len()] = span(lines, &last);
    }
}

#[inline(always)]
fn span(lines: Lines, x: &[f32; COLS]) -> Span {
    // As bits, so that an infinity or a NaN is the largest and becomes the scale: it must show.
    let largest = x.iter().fold(0, |max, x| max.max(x.to_bits() as i32 & i32::MAX));
    let largest = f32::from_bits(largest as u32);
    let (scale, inverse) =
        if largest < SMALLEST { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) };
    // 1.5 · 2²³ leaves the rounded number in the lowest bits, in two's complement.
    let integers = x.map(|x| (x * inverse + 12_582_912.0).to_bits() as i8);

    let mut sums = [0i32; 4];
    for (sum, slab) in sums.iter_mut().zip(integers.as_chunks::<32>().0) {
        *sum = slab.iter().map(|&q| i32::from(q)).sum();
    }
    let offset = i32::from(lines.zero());
    let corrections = match lines.line_scales() {
        1 => [sums.iter().sum(), 0, 0, 0],
        2 => [sums[0] + sums[1], sums[2] + sums[3], 0, 0],
        _ => sums,
    };
    Span { integers: in_line_order(&integers), corrections: corrections.map(|s| s * offset), scale }
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
