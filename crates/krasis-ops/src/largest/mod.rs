//! The largest of each row, and the sum of all weights: what choosing a token needs of its logits,
//! in place of a row as wide as the vocabulary.
//!
//! `out [rows, 2k + 1]`: the `k` largest of `x [rows, cols]` in descending order, equals by column; the
//! columns that they stand in, as numbers; and `Σ exp(scale · (x - max))`. What is no number counts as
//! -∞, and -0 as 0. A row whose `scale` is 0, or whose largest is -∞, has the sum 0: nobody asks.

use crate::cpu::Cpu;
use crate::reference::Reference;
use krasis_core::{Act, Mat, Slot};
use krasis_cpu::{Tiles, vector};

/// The most of a row that are found.
pub const LARGEST_MAX: u32 = 64;

/// The most columns of a row: those that f32 can count.
pub const COLS_MAX: u32 = 1 << 24;

/// How many of a row of `cols` are found where `out` has so many columns.
pub fn found(cols: u32, out: Mat<f32>) -> u32 {
    let k = out.cols / 2;
    assert!(out.cols % 2 == 1 && k >= 1, "columns [k values | k columns | sum]");
    assert!(k <= LARGEST_MAX.min(cols) && cols <= COLS_MAX, "{k} of {cols} columns");
    k
}

/// What is compared in place of `x`.
fn comparable(x: f32) -> f32 {
    if x.is_nan() { f32::NEG_INFINITY } else { x + 0.0 }
}

pub(crate) fn reference(d: &mut Reference, x: Mat<Act>, scales: Slot<f32>, out: Mat<f32>) {
    let k = found(x.cols, out) as usize;
    let (rows, scales) = (d.rows(x), d.arena.slice(scales).to_vec());
    let all = d.arena.slice_mut(out.whole());
    for ((out, row), scale) in all.chunks_exact_mut(out.cols as usize).zip(rows).zip(scales) {
        let mut sorted: Vec<(usize, f32)> =
            row.iter().map(|x| comparable(*x)).enumerate().collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for (i, &(col, x)) in sorted[..k].iter().enumerate() {
            (out[i], out[k + i]) = (x, col as f32);
        }
        let largest = sorted[0].1;
        let weights = sorted.iter().map(|(_, x)| (scale * (x - largest)).exp());
        let asked = scale != 0.0 && largest > f32::NEG_INFINITY;
        out[2 * k] = if asked { weights.sum() } else { 0.0 };
    }
}

/// Columns that are skipped together if none is large enough, as most are.
const TOGETHER: usize = 128;

/// Comparisons that are made side by side: one after the other takes as long as a layer does.
const LANES: usize = 16;

/// Numbers that are weighed at a time.
const PIECE: usize = 1024;

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, scales: Slot<f32>, out: Mat<f32>) {
    let k = found(x.cols, out) as usize;
    let (inputs, all) = d.arena.write(out.whole());
    let scales = inputs.slice(scales);
    let cols = out.cols as usize;
    let tiles = Tiles::new(all, cols);
    d.team.split(x.rows as usize, 1, |rows| {
        for row in rows {
            // SAFETY: the ranges of `split` are disjoint.
            let out = unsafe { tiles.tile(row, 0..cols) };
            let x = inputs.row(x, row as u32);
            let (values, rest) = out.split_at_mut(k);
            let (places, sum) = rest.split_at_mut(k);
            select(x, values, places);
            let asked = scales[row] != 0.0 && values[0] > f32::NEG_INFINITY;
            sum[0] = if asked { weigh(x, scales[row]) } else { 0.0 };
        }
    });
}

/// The largest of `x`, kept in order: a number that is no larger than the last is passed over, and
/// one that is moves those behind it.
fn select(x: &[f32], values: &mut [f32], places: &mut [f32]) {
    let mut have = 0;
    for (chunk, first) in x.chunks(TOGETHER).zip((0..).step_by(TOGETHER)) {
        let least = if have < values.len() { f32::NEG_INFINITY } else { values[have - 1] };
        if have == values.len() && top(chunk) <= least {
            continue;
        }
        for (col, x) in (first..).zip(chunk.iter().map(|x| comparable(*x))) {
            let full = have == values.len();
            if full && x <= values[have - 1] {
                continue;
            }
            have += usize::from(!full);
            // Equals that came before stay before.
            let at = values[..have - 1].partition_point(|value| *value >= x);
            values.copy_within(at..have - 1, at + 1);
            places.copy_within(at..have - 1, at + 1);
            (values[at], places[at]) = (x, col as f32);
        }
    }
}

/// The largest number; what is no number is passed over.
fn top(chunk: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut tops = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = chunk.as_chunks::<LANES>();
    for numbers in whole {
        for lane in 0..LANES {
            tops[lane] = larger(tops[lane], numbers[lane]);
        }
    }
    rest.iter().chain(&tops).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// The sum of all weights relative to the largest.
fn weigh(x: &[f32], scale: f32) -> f32 {
    let (mut top, mut total) = (f32::NEG_INFINITY, 0.0);
    for piece in x.chunks(PIECE) {
        let mut weights = [0.0; PIECE];
        let weights = &mut weights[..piece.len()];
        for (weight, x) in weights.iter_mut().zip(piece) {
            // What is no number weighs nothing, and nothing is left of it at the lowest number either.
            let x = if *x > f32::NEG_INFINITY {
                x * (scale * std::f32::consts::LOG2_E)
            } else {
                f32::MIN
            };
            *weight = x;
        }
        vector::weigh(weights, &mut top, &mut total);
    }
    total
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge, as_mat};

    cases![odd_widths, ties_and_what_is_no_number];

    /// Sizes below, at and above what a warp, a block and a launch find together.
    fn odd_widths(on: &mut dyn Judge) {
        for (rows, cols, k) in
            [(1, 1, 1), (3, 40, 7), (2, 64, 64), (1, 300, 64), (5, 2048, 64), (2, 5003, 20)]
        {
            let mut case = Case::new(u64::from(cols));
            let all = case.act(rows, cols + 3);
            let scales: Vec<f32> = (0..rows).map(|row| [1.0, 0.0, 2.5][row as usize % 3]).collect();
            let scales = case.floats_of(1, rows, &scales).at;
            let out =
                case.floats_of(rows, 2 * k + 1, &vec![f32::NAN; (rows * (2 * k + 1)) as usize]);
            case.agree(on, &[as_mat(out.at, rows)], 1e-5, |ops| {
                ops.largest(all.cols(3, cols), scales, out);
            });
        }
    }

    fn ties_and_what_is_no_number(on: &mut dyn Judge) {
        let mut case = Case::new(3);
        let x = case.act_of(1, 6, &[0.5, f32::NAN, 2.0, -0.0, 2.0, 0.0]);
        let scales = case.floats_of(1, 1, &[1.0]).at;
        let out = case.floats_of(1, 9, &[f32::NAN; 9]);
        let got =
            case.agree(on, &[as_mat(out.at, 1)], 1e-5, |ops| ops.largest(x, scales, out)).remove(0);
        assert_eq!(got[..8], [2.0, 2.0, 0.5, 0.0, 2.0, 4.0, 0.0, 3.0]);
        let sum = 2.0 + (-1.5f32).exp() + 2.0 * (-2f32).exp();
        assert!((got[8] - sum).abs() < 1e-6, "{got:?}");
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Case;
    use crate::{Memory, Ops};

    /// To the bit, but for the sum.
    #[test]
    fn the_cpu_finds_what_a_sort_does() {
        let mut case = Case::new(9);
        let numbers: Vec<f32> = (0..3000).map(|_| (case.float() * 20.0).round()).collect();
        let x = case.act_of(1, 3000, &numbers);
        let scales = case.floats_of(1, 1, &[0.0]).at;
        let out = case.floats_of(1, 129, &[f32::NAN; 129]);
        let mut cpu = case.cpu();
        cpu.largest(x, scales, out);
        let got = cpu.download(out.at);
        let mut sorted: Vec<(usize, f32)> = numbers.iter().map(|x| x + 0.0).enumerate().collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (i, (col, x)) in sorted[..64].iter().enumerate() {
            assert_eq!((got[i], got[64 + i]), (*x, *col as f32), "{i}");
        }
        assert_eq!(got[128], 0.0);
    }
}
