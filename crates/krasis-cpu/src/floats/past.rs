//! A few rows times vectors where they lie, as the pages of a KV cache have them: groups of vectors, a
//! stride apart from each other.
//!
//! Both sums add their products one after the other, as [`super::add_product`] does, so that either gives
//! the same bits. Bytes: the vectors once for eight rows. With AVX-512, scores of 32 positions and four
//! rows take 24 loads and shuffles a register of keys, and 16 multiplications; the values of a position
//! as many loads as registers, and as many multiplications for each row.

use super::lanes::{Lanes, for_each_isa};
use super::prefetch::prefetch_line;
use super::product::Block;
use super::stored::{Bf16, F32, Stored};
use crate::isa::Isa;
use krasis_core::DType;

/// Vectors of a group.
pub const GROUP: usize = 16;

/// Rows that meet a register of vectors before the next one is read.
const ROWS: usize = 8;

/// Vectors of `F32` or `BF16` in groups.
#[derive(Clone, Copy)]
pub struct Groups<'a> {
    /// How numbers are stored.
    pub dtype: DType,
    /// Where the groups are.
    pub data: &'a [u8],
    /// The first byte of each group.
    pub starts: &'a [usize],
    /// The same of groups that will be wanted next.
    pub next: &'a [usize],
    /// Bytes from one vector of a group to the next.
    pub stride: usize,
    /// Elements of a vector.
    pub dim: usize,
}

impl Groups<'_> {
    /// Whether vectors of so many elements can be read by both products.
    pub fn fit(dtype: DType, dim: usize) -> bool {
        matches!(dtype, DType::F32 | DType::Bf16) && dim.is_multiple_of(16)
    }

    fn check(&self) {
        assert!(Groups::fit(self.dtype, self.dim), "{} elements of {}", self.dim, self.dtype);
        let end = (GROUP - 1) * self.stride + self.dim * self.dtype.bytes();
        let there =
            |start: &usize| start.checked_add(end).is_some_and(|end| end <= self.data.len());
        assert!(self.starts.iter().all(there), "groups of {} bytes", self.data.len());
    }

    /// Where a vector that will be wanted lies: that of a later group, or any other.
    fn ahead(&self, group: usize) -> *const u8 {
        let next = self.starts.get(group).or(self.next.get(group - self.starts.len().min(group)));
        self.data.as_ptr().wrapping_add(next.copied().unwrap_or(self.starts[0]))
    }
}

/// `out[r, j] += Σ_i a[r, i] · vector[j, i]` for all vectors and `rows` rows; rows of `out` are
/// `out_stride` apart.
pub fn add_scores(isa: Isa, rows: usize, a: Block, of: Groups, out: &mut [f32], out_stride: usize) {
    of.check();
    let vectors = of.starts.len() * GROUP;
    if rows == 0 || vectors == 0 {
        return;
    }
    assert!((rows - 1) * a.stride + of.dim <= a.data.len(), "{rows} rows of {}", of.dim);
    assert!((rows - 1) * out_stride + vectors <= out.len(), "{rows} rows of {vectors} scores");
    for_each_isa!(
        isa,
        scores(rows: usize, a: Block, of: Groups, out: &mut [f32], out_stride: usize)
    );
}

/// `out[r, i] += Σ_j a[r, j] · vector[j, i]` for the first `count` vectors and `rows` rows.
pub fn add_mixed(
    isa: Isa,
    (rows, count): (usize, usize),
    a: Block,
    of: Groups,
    out: &mut [f32],
    out_stride: usize,
) {
    of.check();
    if rows * count == 0 {
        return;
    }
    assert!(count <= of.starts.len() * GROUP, "{count} of {} groups", of.starts.len());
    assert!((rows - 1) * a.stride + count <= a.data.len(), "{rows} rows of {count}");
    assert!((rows - 1) * out_stride + of.dim <= out.len(), "{rows} rows of {}", of.dim);
    for_each_isa!(
        isa,
        mixed(rows: usize, count: usize, a: Block, of: Groups, out: &mut [f32], out_stride: usize)
    );
}

/// Pointers and strides of a product.
#[derive(Clone, Copy)]
struct Rows {
    a: *const f32,
    a_stride: usize,
    out: *mut f32,
    out_stride: usize,
}

impl Rows {
    /// From row `row` on.
    fn from(self, row: usize) -> Rows {
        let (a, out) = (self.a.wrapping_add(row * self.a_stride), self.out);
        Rows { a, out: out.wrapping_add(row * self.out_stride), ..self }
    }
}

#[inline(always)]
unsafe fn scores<L: Lanes>(rows: usize, a: Block, of: Groups, out: &mut [f32], out_stride: usize) {
    let all = Rows { a: a.data.as_ptr(), a_stride: a.stride, out: out.as_mut_ptr(), out_stride };
    let mut row = 0;
    while row < rows {
        let (some, count) = (all.from(row), ROWS.min(rows - row));
        // SAFETY: `add_scores` asserts that all of it is there.
        unsafe {
            match of.dtype {
                DType::Bf16 => scores_of::<L, Bf16>(count, some, &of),
                _ => scores_of::<L, F32>(count, some, &of),
            }
        }
        row += ROWS;
    }
}

/// # Safety
/// That of [`Lanes`], and the rows are there.
#[inline(always)]
unsafe fn scores_of<L: Lanes, S: Stored>(count: usize, rows: Rows, of: &Groups) {
    // SAFETY: promised by the caller.
    unsafe {
        match count {
            1 => score_tiles::<L, S, 1>(rows, of),
            2 => score_tiles::<L, S, 2>(rows, of),
            3 => score_tiles::<L, S, 3>(rows, of),
            4 => score_tiles::<L, S, 4>(rows, of),
            5 => score_tiles::<L, S, 5>(rows, of),
            6 => score_tiles::<L, S, 6>(rows, of),
            7 => score_tiles::<L, S, 7>(rows, of),
            _ => score_tiles::<L, S, 8>(rows, of),
        }
    }
}

/// Two groups at a time, if there are registers for both.
///
/// # Safety
/// That of [`scores_of`].
#[inline(always)]
unsafe fn score_tiles<L: Lanes, S: Stored, const N: usize>(rows: Rows, of: &Groups) {
    let mut group = 0;
    while group < of.starts.len() {
        let pair = L::COUNT == GROUP && group + 2 <= of.starts.len();
        // SAFETY: promised by the caller.
        unsafe {
            if pair {
                let from = [of.starts[group], of.starts[group + 1]];
                score_tile::<L, S, N, 2>(rows, of, from, group, 0);
            } else {
                let mut first = 0;
                while first < GROUP {
                    let from = [of.starts[group] + first * of.stride];
                    score_tile::<L, S, N, 1>(rows, of, from, group, first);
                    first += L::COUNT;
                }
            }
        }
        group += if pair { 2 } else { 1 };
    }
}

/// The vectors from these on, a register of each: number `first` of their group.
///
/// # Safety
/// That of [`scores_of`].
#[inline(always)]
unsafe fn score_tile<L: Lanes, S: Stored, const N: usize, const WIDE: usize>(
    rows: Rows,
    of: &Groups,
    from: [usize; WIDE],
    group: usize,
    first: usize,
) {
    let (numbers, at_once) = (4 / S::BYTES, 16 / S::BYTES);
    let mut ahead = [std::ptr::null(); WIDE];
    for wide in 0..WIDE {
        ahead[wide] = of.ahead(group + WIDE + wide).wrapping_add(first * of.stride);
    }
    // SAFETY: promised by the caller.
    unsafe {
        let out = rows.out.add(group * GROUP + first);
        let mut sums = [[L::splat(0.0); WIDE]; N];
        for r in 0..N {
            for wide in 0..WIDE {
                sums[r][wide] = L::load(out.add(r * rows.out_stride + wide * GROUP));
            }
        }
        let mut at = 0;
        while at < of.dim {
            for wide in 0..WIDE {
                // A quarter of the lines that are 4 times 16 bytes wide, each time.
                let mut vector = at / at_once % 4;
                while vector < L::COUNT {
                    prefetch_line(ahead[wide].wrapping_add(vector * of.stride + at * S::BYTES));
                    vector += 4;
                }
            }
            let mut words = [[L::splat(0.0); 4]; WIDE];
            for wide in 0..WIDE {
                let from = of.data.as_ptr().add(from[wide] + at * S::BYTES);
                words[wide] = L::words(from, of.stride);
            }
            for word in 0..4 {
                for i in 0..numbers {
                    let mut vectors = [L::splat(0.0); WIDE];
                    for wide in 0..WIDE {
                        vectors[wide] = S::of_word(words[wide][word], i);
                    }
                    for r in 0..N {
                        let a = *rows.a.add(r * rows.a_stride + at + word * numbers + i);
                        for wide in 0..WIDE {
                            sums[r][wide] = L::splat(a).madd(vectors[wide], sums[r][wide]);
                        }
                    }
                }
            }
            at += at_once;
        }
        for r in 0..N {
            for wide in 0..WIDE {
                sums[r][wide].store(out.add(r * rows.out_stride + wide * GROUP));
            }
        }
    }
}

#[inline(always)]
unsafe fn mixed<L: Lanes>(
    rows: usize,
    count: usize,
    a: Block,
    of: Groups,
    out: &mut [f32],
    out_stride: usize,
) {
    let all = Rows { a: a.data.as_ptr(), a_stride: a.stride, out: out.as_mut_ptr(), out_stride };
    let mut row = 0;
    while row < rows {
        let (some, together) = (all.from(row), ROWS.min(rows - row));
        // SAFETY: `add_mixed` asserts that all of it is there.
        unsafe {
            match of.dtype {
                DType::Bf16 => mixed_of::<L, Bf16>(together, count, some, &of),
                _ => mixed_of::<L, F32>(together, count, some, &of),
            }
        }
        row += ROWS;
    }
}

/// Tiles of sums as wide as there are registers for: many, or few.
///
/// # Safety
/// That of [`Lanes`], and the rows are there.
#[inline(always)]
unsafe fn mixed_of<L: Lanes, S: Stored>(together: usize, count: usize, rows: Rows, of: &Groups) {
    let many = L::COUNT == GROUP;
    // SAFETY: promised by the caller.
    unsafe {
        match (together, many) {
            (1, true) => mix_tiles::<L, S, 1, 8>(count, rows, of),
            (2, true) => mix_tiles::<L, S, 2, 8>(count, rows, of),
            (3, true) => mix_tiles::<L, S, 3, 4>(count, rows, of),
            (4, true) => mix_tiles::<L, S, 4, 4>(count, rows, of),
            (5, true) => mix_tiles::<L, S, 5, 2>(count, rows, of),
            (6, true) => mix_tiles::<L, S, 6, 2>(count, rows, of),
            (7, true) => mix_tiles::<L, S, 7, 2>(count, rows, of),
            (_, true) => mix_tiles::<L, S, 8, 2>(count, rows, of),
            (1, false) => mix_tiles::<L, S, 1, 8>(count, rows, of),
            (2, false) => mix_tiles::<L, S, 2, 4>(count, rows, of),
            (3, false) => mix_tiles::<L, S, 3, 2>(count, rows, of),
            (4, false) => mix_tiles::<L, S, 4, 2>(count, rows, of),
            (5, false) => mix_tiles::<L, S, 5, 1>(count, rows, of),
            (6, false) => mix_tiles::<L, S, 6, 1>(count, rows, of),
            (7, false) => mix_tiles::<L, S, 7, 1>(count, rows, of),
            (_, false) => mix_tiles::<L, S, 8, 1>(count, rows, of),
        }
    }
}

/// # Safety
/// That of [`mixed_of`].
#[inline(always)]
unsafe fn mix_tiles<L: Lanes, S: Stored, const N: usize, const WIDE: usize>(
    count: usize,
    rows: Rows,
    of: &Groups,
) {
    let mut at = 0;
    // SAFETY: promised by the caller.
    unsafe {
        while at + WIDE * L::COUNT <= of.dim {
            mix_tile::<L, S, N, WIDE>(count, rows, of, at);
            at += WIDE * L::COUNT;
        }
        while at < of.dim {
            mix_tile::<L, S, N, 1>(count, rows, of, at);
            at += L::COUNT;
        }
    }
}

/// Columns from `at` on, a register of each.
///
/// # Safety
/// That of [`mixed_of`].
#[inline(always)]
unsafe fn mix_tile<L: Lanes, S: Stored, const N: usize, const WIDE: usize>(
    count: usize,
    rows: Rows,
    of: &Groups,
    at: usize,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let out = rows.out.add(at);
        let mut sums = [[L::splat(0.0); WIDE]; N];
        for r in 0..N {
            for wide in 0..WIDE {
                sums[r][wide] = L::load(out.add(r * rows.out_stride + wide * L::COUNT));
            }
        }
        let mut group = 0;
        while group * GROUP < count {
            let from = of.data.as_ptr().add(of.starts[group] + at * S::BYTES);
            let ahead = of.ahead(group + 1).wrapping_add(at * S::BYTES);
            let a = rows.a.add(group * GROUP);
            for j in 0..GROUP.min(count - group * GROUP) {
                let mut line = 0;
                while line < WIDE * L::COUNT * S::BYTES {
                    prefetch_line(ahead.wrapping_add(j * of.stride + line));
                    line += 64;
                }
                let mut values = [L::splat(0.0); WIDE];
                for wide in 0..WIDE {
                    values[wide] = S::load(from.add(j * of.stride + wide * L::COUNT * S::BYTES));
                }
                for r in 0..N {
                    let a = L::splat(*a.add(r * rows.a_stride + j));
                    for wide in 0..WIDE {
                        sums[r][wide] = a.madd(values[wide], sums[r][wide]);
                    }
                }
            }
            group += 1;
        }
        for r in 0..N {
            for wide in 0..WIDE {
                sums[r][wide].store(out.add(r * rows.out_stride + wide * L::COUNT));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floats::{PAD, add_product};
    use half::bf16;

    /// Groups in any order, with other vectors between those of a group.
    #[test]
    fn vectors_as_they_lie_give_the_bits_of_gathered_ones() {
        for isa in Isa::all() {
            for dtype in [DType::F32, DType::Bf16] {
                for (dim, starts) in [(16, &[1][..]), (64, &[3, 0, 2]), (80, &[2, 1]), (256, &[0])]
                {
                    for rows in [1, 2, 3, 4, 5, 6, 7, 8, 11] {
                        check(isa, dtype, dim, starts, rows);
                    }
                }
            }
        }
    }

    fn check(isa: Isa, dtype: DType, dim: usize, order: &[usize], rows: usize) {
        let stride = dim + 16;
        let numbers: Vec<bf16> = (0..4 * GROUP * stride)
            .map(|i| bf16::from_f32((i * 37 % 101) as f32 * 0.013 - 0.6))
            .collect();
        let number = |group: usize, j: usize, i: usize| {
            numbers[(order[group] * GROUP + j) * stride + i].to_f32()
        };
        let data: Vec<u8> = match dtype {
            DType::F32 => numbers.iter().flat_map(|x| x.to_f32().to_le_bytes()).collect(),
            _ => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        let (bytes, vectors) = (dtype.bytes(), order.len() * GROUP);
        let starts: Vec<usize> = order.iter().map(|at| at * GROUP * stride * bytes).collect();
        let stride = stride * bytes;
        let of = Groups { dtype, data: &data, starts: &starts, next: &[0], stride, dim };

        let ramp = |len: usize, step: f32| -> Vec<f32> {
            (0..len).map(|i| ((i * 53 % 89) as f32 - 44.0) * step).collect()
        };
        let width = vectors.next_multiple_of(PAD);
        let mut turned = vec![0.0; dim * width];
        for (j, i) in (0..vectors).flat_map(|j| (0..dim).map(move |i| (j, i))) {
            turned[i * width + j] = number(j / GROUP, j % GROUP, i);
        }
        let (a, start) = (ramp(rows * (dim + 3), 0.07), ramp(rows * width, 0.5));
        let (a, turned) =
            (Block { data: &a, stride: dim + 3 }, Block { data: &turned, stride: width });
        let (mut got, mut wanted) = (start.clone(), start);
        add_scores(isa, rows, a, of, &mut got, width);
        add_product(isa, (rows, dim, vectors), a, turned, &mut wanted, width);
        let name = format!("{rows} rows of {dim} in {dtype} on {}", isa.name());
        for (got, wanted) in got.chunks_exact(width).zip(wanted.chunks_exact(width)) {
            assert_eq!(got[..vectors], wanted[..vectors], "scores, {name}");
        }

        let width = dim.next_multiple_of(PAD);
        let mut gathered = vec![0.0; vectors * width];
        for (j, i) in (0..vectors).flat_map(|j| (0..dim).map(move |i| (j, i))) {
            gathered[j * width + i] = number(j / GROUP, j % GROUP, i);
        }
        let gathered = Block { data: &gathered, stride: width };
        for count in [1, 15, 16, vectors - 3] {
            let (a, start) = (ramp(rows * (count + 1), 0.07), ramp(rows * width, 0.5));
            let a = Block { data: &a, stride: count + 1 };
            let (mut got, mut wanted) = (start.clone(), start);
            add_mixed(isa, (rows, count), a, of, &mut got, width);
            add_product(isa, (rows, count, dim), a, gathered, &mut wanted, width);
            for (got, wanted) in got.chunks_exact(width).zip(wanted.chunks_exact(width)) {
                assert_eq!(got[..dim], wanted[..dim], "values of {count}, {name}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "groups of 100 bytes")]
    fn vectors_are_all_there() {
        let of = Groups {
            dtype: DType::F32,
            data: &[0; 100],
            starts: &[0],
            next: &[],
            stride: 64,
            dim: 16,
        };
        add_scores(Isa::Plain, 1, Block { data: &[0.0; 16], stride: 16 }, of, &mut [0.0; 16], 16);
    }
}
