//! `c += a · b` in tiles of registers.
//!
//! An element of `c` adds its products one after the other, in the order of the inner index. So it
//! is a function of its row of `a` and its column of `b`, whichever tile it was in: rows may come
//! one at a time or all together.
//!
//! AVX-512: a tile of 8 rows by 32 columns takes 10 loads for 16 multiplications of registers.

use super::lanes::{Lanes, for_each_isa};
use crate::isa::Isa;

/// A row-major matrix, or some columns of one.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// From the first element on.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
}

/// Rows of `b` that all rows of `a` meet before the next ones: two AVX-512 registers of each are 24 KiB
/// and stay in the first cache.
const INNER: usize = 192;

/// `c[r, j] += Σ_i a[r, i] · b[i, j]` for `rows` rows, `inner` products and `cols` columns. Columns of
/// `b` and `c` up to the next multiple of [`super::PAD`] are there and may be overwritten.
pub fn add_product(
    isa: Isa,
    (rows, inner, cols): (usize, usize, usize),
    a: Block,
    b: Block,
    c: &mut [f32],
    c_stride: usize,
) {
    if rows * inner * cols == 0 {
        return;
    }
    let padded = cols.next_multiple_of(super::PAD);
    assert!((rows - 1) * a.stride + inner <= a.data.len(), "{rows} rows of {inner} factors");
    assert!((inner - 1) * b.stride + padded <= b.data.len(), "{inner} rows of {cols} factors");
    assert!((rows - 1) * c_stride + padded <= c.len() && padded <= c_stride, "{rows}x{cols} sums");
    for first in (0..inner).step_by(INNER) {
        let size = (rows, INNER.min(inner - first), cols);
        let a = Block { data: &a.data[first..], ..a };
        let b = Block { data: &b.data[first * b.stride..], ..b };
        for_each_isa!(isa, tiles(size: (usize, usize, usize), a: Block, b: Block, c: &mut [f32], c_stride: usize));
    }
}

/// Cuts `c` into tiles: as tall as registers allow, and wider where rows are few, so that there are
/// always additions to start while others are under way.
#[inline(always)]
unsafe fn tiles<L: Lanes>(
    (rows, inner, cols): (usize, usize, usize),
    a: Block,
    b: Block,
    c: &mut [f32],
    c_stride: usize,
) {
    let stripes = rows.div_ceil(L::ROWS);
    let strides = [a.stride, b.stride, c_stride];
    let mut col = 0;
    while col < cols {
        let wide = rows <= 2 && cols - col > 2 * L::COUNT;
        let mut stripe = 0;
        while stripe < stripes {
            let (row, end) = (rows * stripe / stripes, rows * (stripe + 1) / stripes);
            // SAFETY: `add_product` asserts that rows, and columns up to the padding, are there.
            unsafe {
                let a = a.data.as_ptr().add(row * a.stride);
                let b = b.data.as_ptr().add(col);
                let c = c.as_mut_ptr().add(row * c_stride + col);
                match (end - row, wide) {
                    (1, true) => tile::<L, 1, 4>(inner, a, b, c, strides),
                    (2, true) => tile::<L, 2, 4>(inner, a, b, c, strides),
                    (1, _) => tile::<L, 1, 2>(inner, a, b, c, strides),
                    (2, _) => tile::<L, 2, 2>(inner, a, b, c, strides),
                    (3, _) => tile::<L, 3, 2>(inner, a, b, c, strides),
                    (4, _) => tile::<L, 4, 2>(inner, a, b, c, strides),
                    (5, _) => tile::<L, 5, 2>(inner, a, b, c, strides),
                    (6, _) => tile::<L, 6, 2>(inner, a, b, c, strides),
                    (7, _) => tile::<L, 7, 2>(inner, a, b, c, strides),
                    (8, _) => tile::<L, 8, 2>(inner, a, b, c, strides),
                    _ => unreachable!("a stripe is at most {} rows", L::ROWS),
                }
            }
            stripe += 1;
        }
        col += if wide { 4 } else { 2 } * L::COUNT;
    }
}

/// One tile of `ROWS` rows by `WIDE` registers.
///
/// # Safety
/// That of [`Lanes`], and all of the tile's rows and columns are there.
#[inline(always)]
unsafe fn tile<L: Lanes, const ROWS: usize, const WIDE: usize>(
    inner: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    [a_stride, b_stride, c_stride]: [usize; 3],
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[L::splat(0.0); WIDE]; ROWS];
        for row in 0..ROWS {
            for col in 0..WIDE {
                sums[row][col] = L::load(c.add(row * c_stride + col * L::COUNT));
            }
        }
        for i in 0..inner {
            let mut factors = [L::splat(0.0); WIDE];
            for col in 0..WIDE {
                factors[col] = L::load(b.add(i * b_stride + col * L::COUNT));
            }
            for row in 0..ROWS {
                let factor = L::splat(*a.add(row * a_stride + i));
                for col in 0..WIDE {
                    sums[row][col] = factor.madd(factors[col], sums[row][col]);
                }
            }
        }
        for row in 0..ROWS {
            for col in 0..WIDE {
                sums[row][col].store(c.add(row * c_stride + col * L::COUNT));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floats::PAD;
    use crate::testing::ramp;

    /// Rows together, one at a time, and in doubles.
    #[test]
    fn a_sum_does_not_know_its_tile() {
        for isa in Isa::all() {
            for (rows, inner, cols) in
                [(1, 1, 1), (2, 5, 33), (3, 64, 40), (17, 9, 72), (24, 3, 32), (18, 400, 40)]
            {
                let width = usize::next_multiple_of(cols, PAD);
                let (a, b) = (ramp(rows * (inner + 2), 0.01), ramp(inner * width, 0.02));
                let (start, b_block) = (ramp(rows * width, 0.5), Block { data: &b, stride: width });
                let (mut together, mut singly) = (start.clone(), start.clone());
                let a_block = Block { data: &a, stride: inner + 2 };
                add_product(isa, (rows, inner, cols), a_block, b_block, &mut together, width);
                for row in 0..rows {
                    let a = Block { data: &a[row * (inner + 2)..], stride: inner };
                    let c = &mut singly[row * width..][..width];
                    add_product(isa, (1, inner, cols), a, b_block, c, width);
                    for col in 0..cols {
                        let product = |i| f64::from(a.data[i]) * f64::from(b[i * width + col]);
                        let sum = f64::from(start[row * width + col])
                            + (0..inner).map(product).sum::<f64>();
                        let got = together[row * width + col];
                        assert!(
                            (f64::from(got) - sum).abs() < 1e-4,
                            "{row} {col}: {got} for {sum}"
                        );
                        assert_eq!(got.to_bits(), singly[row * width + col].to_bits());
                    }
                }
            }
        }
    }
}
