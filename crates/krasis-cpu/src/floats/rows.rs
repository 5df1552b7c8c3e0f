//! Rows of a weight as they are stored, times up to eight vectors at once.
//!
//! A sum is that of [`crate::vector::dot`] with the decoded row, bit for bit: 32 lanes, each over every
//! 32nd column. Tiles of sums (8 rows with one vector, 2 rows with eight) have a register for each, so
//! they go over their columns once for every part of the lanes, in the first cache but for the first time.
//!
//! Bytes: the rows once for all vectors. With AVX-512 a tile with eight vectors takes 10 loads and 2
//! conversions for 16 multiplications of registers, which keeps the multipliers busy; one with a single
//! vector 9 and 8 for 8, which is 512 weights and more than memory brings meanwhile.

use super::lanes::{Lanes, for_each_isa};
use super::prefetch::prefetch_line;
use super::stored::{Bf16, F32, Stored};
use crate::isa::Isa;
use crate::vector::{LANES, decode_row};
use half::bf16;
use krasis_core::{DType, Format};
use std::mem::MaybeUninit;

/// Vectors that [`dot_rows`] takes, at most.
pub const X_TOGETHER: usize = 8;

/// Rows whose lanes are kept from stretch to stretch.
const ROWS_TOGETHER: usize = 16;

/// Columns of all rows before the next ones: those of eight vectors stay in the first cache, beside the
/// lanes of all sums.
const STRETCH: usize = 512;

/// Where the lanes of all sums are: `[X_TOGETHER, ROWS_TOGETHER, LANES]`.
type Sums = MaybeUninit<[f32; X_TOGETHER * ROWS_TOGETHER * LANES]>;

/// `out[i, r] = Σ row[r] · x[i]`: rows that are stored one behind the other (see
/// [`crate::vector::decode_row`]), with up to [`X_TOGETHER`] vectors.
pub fn dot_rows(
    isa: Isa,
    format: Format,
    data: &[u8],
    scales: &[bf16],
    x: &[&[f32]],
    out: &mut [f32],
) {
    assert!((1..=X_TOGETHER).contains(&x.len()), "{} vectors at once", x.len());
    let (rows, cols) = (out.len() / x.len(), x[0].len());
    let (bytes, count) = (format.row_bytes(cols as u32), format.row_scales(cols as u32));
    assert!(out.len() == rows * x.len() && x.iter().all(|x| x.len() == cols), "equal lengths");
    assert_eq!(data.len(), rows * bytes as usize, "bytes of {rows} rows of {format}");
    assert_eq!(scales.len(), rows * count as usize, "scales of {rows} rows of {format}");
    for_each_isa!(
        isa,
        body(format: Format, data: &[u8], scales: &[bf16], x: &[&[f32]], out: &mut [f32])
    );
}

#[inline(always)]
unsafe fn body<L: Lanes>(
    format: Format,
    data: &[u8],
    scales: &[bf16],
    x: &[&[f32]],
    out: &mut [f32],
) {
    let (rows, cols) = (out.len() / x.len(), x[0].len());
    let bytes = format.row_bytes(cols as u32) as usize;
    let groups = format.row_scales(cols as u32) as usize;
    // Few vectors: rows come from memory, and better one after the other.
    let together = if x.len() <= 2 { ROWS_TOGETHER / 2 } else { ROWS_TOGETHER };
    let mut sums = Sums::uninit();
    let mut first = 0;
    while first < rows {
        let count = together.min(rows - first);
        let data = &data[first * bytes..][..count * bytes];
        // SAFETY: as many rows and columns are there, by the assertions of `dot_rows`.
        unsafe {
            match format {
                Format::Float(DType::Bf16) => {
                    stretches::<L, Bf16>(data.as_ptr(), count, x, &mut sums);
                }
                Format::Float(DType::F32) => {
                    stretches::<L, F32>(data.as_ptr(), count, x, &mut sums);
                }
                _ => {
                    let scales = &scales[first * groups..][..count * groups];
                    decoded::<L>(format, data, scales, count, x, &mut sums);
                }
            }
            totals::<L>(&sums, count, x.len(), &mut out[first..], rows);
        }
        first += count;
    }
}

/// The lanes of `count` rows.
///
/// # Safety
/// That of [`Lanes`], and the rows are there, as long as each `x`.
#[inline(always)]
unsafe fn stretches<L: Lanes, S: Stored>(
    rows: *const u8,
    count: usize,
    x: &[&[f32]],
    sums: &mut Sums,
) {
    let (cols, mut at) = (x[0].len(), 0);
    loop {
        let part = at..cols.min(at + STRETCH);
        // SAFETY: promised by the caller.
        unsafe {
            let rows = rows.add(at * S::BYTES);
            stretch::<L, S>(rows, cols * S::BYTES, count, x, part, sums);
        }
        at += STRETCH;
        if at >= cols {
            return;
        }
    }
}

/// The same of what has to be decoded first.
///
/// # Safety
/// That of [`Lanes`], and [`dot_rows`] has found its arguments right.
#[inline(always)]
unsafe fn decoded<L: Lanes>(
    format: Format,
    data: &[u8],
    scales: &[bf16],
    count: usize,
    x: &[&[f32]],
    sums: &mut Sums,
) {
    let cols = x[0].len();
    // Stretches are whole lanes and whole groups; a group that is longer is a stretch of its own.
    let group = match format {
        Format::Int8 { group } | Format::Int4 { group } => group as usize,
        _ => 1,
    };
    let whole = if LANES.is_multiple_of(group) {
        LANES
    } else if group.is_multiple_of(LANES) {
        group
    } else {
        group * LANES
    };
    let step = (STRETCH / whole).max(1) * whole;
    let (mut few, mut many) = ([0.0; ROWS_TOGETHER * STRETCH], Vec::new());
    let room = if step <= STRETCH {
        &mut few[..]
    } else {
        many.resize(ROWS_TOGETHER * step, 0.0);
        &mut many[..]
    };
    let (bytes, groups) = (data.len() / count, scales.len() / count);
    let mut at = 0;
    loop {
        let part = at..cols.min(at + step);
        let own = format.row_bytes(part.len() as u32) as usize;
        let before = format.row_bytes(at as u32) as usize;
        let mut row = 0;
        while row < count {
            let data = &data[row * bytes + before..][..own];
            let scales = &scales[row * groups..][..groups];
            let scales = if groups == 0 { scales } else { &scales[at / group..] };
            decode_row(format, data, scales, &mut room[row * step..][..part.len()]);
            row += 1;
        }
        // SAFETY: promised by the caller.
        unsafe { stretch::<L, F32>(room.as_ptr().cast(), 4 * step, count, x, part, sums) };
        at += step;
        if at >= cols {
            return;
        }
    }
}

/// Adds the products of some columns to the lanes, or begins with them.
///
/// # Safety
/// That of [`Lanes`]; rows begin with these columns, `stride` bytes apart; all earlier columns came
/// before.
#[inline(always)]
unsafe fn stretch<L: Lanes, S: Stored>(
    rows: *const u8,
    stride: usize,
    count: usize,
    x: &[&[f32]],
    cols: std::ops::Range<usize>,
    sums: &mut Sums,
) {
    let mut at = [std::ptr::null(); X_TOGETHER];
    for i in 0..x.len() {
        at[i] = x[i][cols.clone()].as_ptr();
    }
    let cols = Cols { rows, stride, count, begin: cols.start == 0, len: cols.len() };
    let sums = sums.as_mut_ptr().cast();
    // SAFETY: promised by the caller.
    unsafe {
        match x.len() {
            1 => tiles::<L, S, 8, 8, 1>(cols, &at, sums),
            2 => tiles::<L, S, 8, 4, 2>(cols, &at, sums),
            3 => tiles::<L, S, 4, 2, 3>(cols, &at, sums),
            4 => tiles::<L, S, 4, 2, 4>(cols, &at, sums),
            5 => tiles::<L, S, 2, 1, 5>(cols, &at, sums),
            6 => tiles::<L, S, 2, 1, 6>(cols, &at, sums),
            7 => tiles::<L, S, 2, 1, 7>(cols, &at, sums),
            _ => tiles::<L, S, 2, 1, 8>(cols, &at, sums),
        }
    }
}

/// Some columns of some rows.
#[derive(Clone, Copy)]
struct Cols {
    rows: *const u8,
    stride: usize,
    count: usize,
    /// Whether they are the first.
    begin: bool,
    len: usize,
}

/// Tiles of `WIDE` rows where there are 32 registers, of `NARROW` where there are 16.
///
/// # Safety
/// That of [`stretch`]; there are `N` vectors.
#[inline(always)]
unsafe fn tiles<L: Lanes, S: Stored, const WIDE: usize, const NARROW: usize, const N: usize>(
    cols: Cols,
    x: &[*const f32; X_TOGETHER],
    sums: *mut f32,
) {
    let mut row = 0;
    // SAFETY: promised by the caller.
    unsafe {
        if L::COUNT == 16 {
            while row + WIDE <= cols.count {
                tile::<L, S, WIDE, N>(cols, row, x, sums);
                row += WIDE;
            }
        } else {
            while row + NARROW <= cols.count {
                tile::<L, S, NARROW, N>(cols, row, x, sums);
                row += NARROW;
            }
        }
        while row < cols.count {
            tile::<L, S, 1, N>(cols, row, x, sums);
            row += 1;
        }
    }
}

/// # Safety
/// That of [`tiles`]; there are `ROWS` rows from `row` on.
#[inline(always)]
unsafe fn tile<L: Lanes, S: Stored, const ROWS: usize, const N: usize>(
    cols: Cols,
    row: usize,
    x: &[*const f32; X_TOGETHER],
    sums: *mut f32,
) {
    let whole = cols.len / LANES * LANES;
    // SAFETY: promised by the caller.
    unsafe {
        let (data, sums) = (cols.rows.add(row * cols.stride), sums.add(row * LANES));
        let mut part = 0;
        while part < LANES {
            let mut lanes = [[L::splat(0.0); N]; ROWS];
            if !cols.begin {
                for r in 0..ROWS {
                    for i in 0..N {
                        lanes[r][i] = L::load(sums.add((i * ROWS_TOGETHER + r) * LANES + part));
                    }
                }
            }
            let mut at = part;
            while at < whole {
                let mut w = [L::splat(0.0); ROWS];
                for r in 0..ROWS {
                    let from = data.add(r * cols.stride + at * S::BYTES);
                    w[r] = S::load(from);
                    if part == 0 {
                        prefetch_line(from.wrapping_add(ROWS * cols.stride));
                    }
                }
                for i in 0..N {
                    let x = L::load(x[i].add(at));
                    for r in 0..ROWS {
                        lanes[r][i] = w[r].madd(x, lanes[r][i]);
                    }
                }
                at += LANES;
            }
            for r in 0..ROWS {
                for i in 0..N {
                    lanes[r][i].store(sums.add((i * ROWS_TOGETHER + r) * LANES + part));
                }
            }
            part += L::COUNT;
        }
        if whole < cols.len {
            for r in 0..ROWS {
                for i in 0..N {
                    let row = data.add(r * cols.stride + whole * S::BYTES);
                    let sums = sums.add((i * ROWS_TOGETHER + r) * LANES);
                    rest::<L, S>(row, x[i].add(whole), cols.len - whole, sums);
                }
            }
        }
    }
}

/// The last columns, fewer than lanes: the others are as they were.
///
/// # Safety
/// That of [`Lanes`], and `len` columns are there.
#[inline(always)]
unsafe fn rest<L: Lanes, S: Stored>(row: *const u8, x: *const f32, len: usize, sums: *mut f32) {
    let (mut row_rest, mut x_rest) = ([0u8; 4 * LANES], [0.0f32; LANES]);
    // SAFETY: promised by the caller; fewer than `LANES` are copied.
    unsafe {
        std::ptr::copy_nonoverlapping(row, row_rest.as_mut_ptr(), len * S::BYTES);
        std::ptr::copy_nonoverlapping(x, x_rest.as_mut_ptr(), len);
        let mut part = 0;
        while part < LANES {
            let (w, to) = (
                S::load::<L>(row_rest.as_ptr().add(part * S::BYTES)),
                x_rest.as_mut_ptr().add(part),
            );
            w.madd(L::load(to), L::load(sums.add(part))).store(to);
            part += L::COUNT;
        }
        std::ptr::copy_nonoverlapping(x_rest.as_ptr(), sums, len);
    }
}

/// `out[i, r]` for `count` rows, `stride` numbers from vector to vector.
///
/// # Safety
/// That of [`Lanes`], and the lanes of all are there.
#[inline(always)]
unsafe fn totals<L: Lanes>(
    sums: &Sums,
    count: usize,
    vectors: usize,
    out: &mut [f32],
    stride: usize,
) {
    let sums: *const f32 = sums.as_ptr().cast();
    for i in 0..vectors {
        let mut first = 0;
        while first < count {
            // Rows behind the last are the last again.
            let mut rows = [sums; 8];
            for r in 0..8 {
                let row = (first + r).min(count - 1);
                rows[r] = sums.wrapping_add((i * ROWS_TOGETHER + row) * LANES);
            }
            // SAFETY: promised by the caller.
            let totals = unsafe { L::totals(rows) };
            let out = &mut out[i * stride + first..];
            match out.first_chunk_mut::<8>() {
                Some(out) if first + 8 <= count => *out = totals,
                _ => out[..count - first].copy_from_slice(&totals[..count - first]),
            }
            first += 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::dot;

    /// Any number of rows and vectors, and one at a time, and decoded: the same bits. On machines without
    /// FMA a product is rounded before it is added, so there the plain loops are only near.
    #[test]
    fn a_sum_does_not_know_its_tile() {
        let formats = [
            Format::Float(DType::F32),
            Format::Float(DType::Bf16),
            Format::Float(DType::F16),
            Format::Int8 { group: 128 },
            Format::Int4 { group: 32 },
            Format::Int4 { group: 48 },
            Format::Int4 { group: 1000 },
        ];
        for isa in Isa::all() {
            for format in formats {
                for (rows, cols) in [(1, 1), (3, 31), (17, 96), (9, 513), (12, 700), (33, 1536)] {
                    check(isa, format, rows, cols);
                }
            }
        }
    }

    fn check(isa: Isa, format: Format, rows: usize, cols: usize) {
        let (bytes, groups) =
            (format.row_bytes(cols as u32) as usize, format.row_scales(cols as u32) as usize);
        // Bytes that are numbers of moderate size in every format.
        let data: Vec<u8> = (0..rows * bytes).map(|i| 0x3b + (i * i % 5) as u8).collect();
        let scales: Vec<bf16> =
            (0..rows * groups).map(|i| bf16::from_f32(0.25 + (i % 7) as f32 / 64.0)).collect();
        let ramp = |i: usize| (i * 37 % 101) as f32 * 0.01 - 0.5;
        let xs: Vec<Vec<f32>> =
            (1..9).map(|n| (0..cols).map(|i| ramp(i * n) * 0.4 / n as f32).collect()).collect();
        let x: Vec<&[f32]> = xs.iter().map(|x| &x[..]).collect();
        let row = |r: usize| (&data[r * bytes..][..bytes], &scales[r * groups..][..groups]);
        for some in [0..1, 1..3, 0..3, 4..8, 0..5, 2..8, 1..8, 0..8] {
            let mut out = vec![f32::NAN; some.len() * rows];
            dot_rows(isa, format, &data, &scales, &x[some.clone()], &mut out);
            for (x, sums) in x[some.clone()].iter().zip(out.chunks_exact(rows)) {
                for (r, sum) in sums.iter().enumerate() {
                    let (data, scales) = row(r);
                    let (mut decoded, mut alone) = (vec![f32::NAN; cols], [f32::NAN]);
                    decode_row(format, data, scales, &mut decoded);
                    dot_rows(isa, format, data, scales, &[x], &mut alone);
                    let name = format!("row {r} of {format} of {cols} on {}", isa.name());
                    assert_eq!(sum.to_bits(), alone[0].to_bits(), "{name}");
                    let wanted = dot(&decoded, x);
                    match isa {
                        Isa::Plain => assert!((sum - wanted).abs() < 1e-3 * (1.0 + wanted.abs())),
                        _ => assert_eq!(sum.to_bits(), wanted.to_bits(), "{name}"),
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "bytes of 2 rows")]
    fn rows_are_all_there() {
        let x = [0.0; 8];
        dot_rows(Isa::Plain, Format::Int8 { group: 8 }, &[0; 15], &[], &[&x], &mut [0.0; 2]);
    }
}
