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

/// Groups of columns whose largest numbers are compared: more than are wanted of them.
const GROUPS: usize = 2 * LARGEST_MAX as usize;

/// Numbers that are kept before they are sorted.
const KEPT: usize = 4 * LARGEST_MAX as usize;

/// Columns that are skipped together if none is large enough, as most are.
const LANES: usize = 32;

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

/// The largest of `x` in order. Each of some disjoint groups has a largest number, and what is below
/// enough of these is none of the wanted: a first pass finds that bound, a second one what is not below
/// it, which is little more than what is wanted. Where it is more, as of equals, the least are dropped
/// now and then.
fn select(x: &[f32], values: &mut [f32], places: &mut [f32]) {
    let k = values.len();
    let mut least = bound(x, k);
    let (mut kept, mut have) = ([0u64; KEPT], 0);
    for (chunk, first) in x.chunks(LANES).zip((0u32..).step_by(LANES)) {
        let mut below = true;
        for x in chunk {
            below &= *x < least;
        }
        if below {
            continue;
        }
        for (col, x) in (first..).zip(chunk.iter().map(|x| comparable(*x))) {
            if x < least {
                continue;
            }
            kept[have] = key(x, col);
            have += 1;
            if have == KEPT {
                kept.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
                // Equals that come later are none of the wanted, but harmless.
                (have, least) = (k, of_key(kept[k - 1]).0);
            }
        }
    }
    let kept = &mut kept[..have];
    kept.sort_unstable_by(|a, b| b.cmp(a));
    for ((value, place), key) in values.iter_mut().zip(places).zip(kept) {
        let (x, col) = of_key(*key);
        (*value, *place) = (x, col as f32);
    }
}

/// A number that at least `k` of `x` are not below, and few more: the `k`-th of the largest numbers of
/// [`GROUPS`] groups.
fn bound(x: &[f32], k: usize) -> f32 {
    let mut tops = [f32::NEG_INFINITY; GROUPS];
    for numbers in x.chunks(GROUPS) {
        for (top, x) in tops.iter_mut().zip(numbers) {
            *top = if *x > *top { *x } else { *top };
        }
    }
    // A group without any number counts as one that is lower than all.
    let (_, bound, _) = tops.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    *bound + 0.0
}

/// Numbers in their order, equals by column: those of lower columns are larger.
fn key(x: f32, col: u32) -> u64 {
    let bits = x.to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ascending) << 32 | u64::from(!col)
}

/// What a key was made of.
fn of_key(key: u64) -> (f32, u32) {
    let ascending = (key >> 32) as u32;
    let bits = if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending };
    (f32::from_bits(bits), !(key as u32))
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

    /// To the bit, but for the sum: many equals, all equal, ascending, descending, and hardly any numbers.
    #[test]
    fn the_cpu_finds_what_a_sort_does() {
        let mut case = Case::new(9);
        check((0..3000).map(|_| (case.float() * 20.0).round()).collect());
        check(vec![-0.0; 3000]);
        check((0..3000).map(|i| (i / 12) as f32 - 100.0).collect());
        check((0..3000).map(|i| 100.0 - (i / 12) as f32).collect());
        let rare = |i| if i % 100 == 7 { (i / 100) as f32 } else { f32::NAN };
        check((0..3000).map(rare).collect());
    }

    fn check(numbers: Vec<f32>) {
        let mut case = Case::new(9);
        let x = case.act_of(1, 3000, &numbers);
        let scales = case.floats_of(1, 1, &[0.0]).at;
        let out = case.floats_of(1, 129, &[f32::NAN; 129]);
        let mut cpu = case.cpu();
        cpu.largest(x, scales, out);
        let got = cpu.download(out.at);
        let comparable = numbers.iter().map(|x| super::comparable(*x));
        let mut sorted: Vec<(usize, f32)> = comparable.enumerate().collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (i, (col, x)) in sorted[..64].iter().enumerate() {
            assert_eq!((got[i], got[64 + i]), (*x, *col as f32), "{i}");
        }
        assert_eq!(got[128], 0.0);
    }
}
