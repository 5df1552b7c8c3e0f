//! Rows into columns, eight at a time: keys must lie so that neighbouring positions are neighbours.

use crate::isa::Isa;

/// Rows that [`transpose`] takes.
pub const ROWS_TRANSPOSED: usize = 8;

/// `to[i * stride + j] = rows[j][i]`.
pub fn transpose(isa: Isa, rows: [&[f32]; ROWS_TRANSPOSED], to: &mut [f32], stride: usize) {
    let len = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == len), "rows of equal length");
    assert!(len == 0 || (len - 1) * stride + ROWS_TRANSPOSED <= to.len(), "{len} columns");
    let done = match isa.vectors() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the variants hold proofs of the feature.
        Isa::Avx2(_) | Isa::AvxVnni(_) | Isa::Avx512Vnni(_) => unsafe {
            x86::eights(rows, to, stride)
        },
        _ => 0,
    };
    for (j, row) in rows.iter().enumerate() {
        (done..len).for_each(|i| to[i * stride + j] = row[i]);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Whole eights of columns; returns how many that is. Four rows and the four after them lie in
    /// the halves of a register from the start, so that two rounds of shuffles do.
    #[target_feature(enable = "avx2")]
    pub fn eights(rows: [&[f32]; 8], to: &mut [f32], stride: usize) -> usize {
        let fours = rows[0].len() / 8 * 2;
        for four in 0..fours {
            let halves = |j: usize| {
                // SAFETY: `transpose` asserts that rows are equally long, and four columns are left.
                let (low, high) = unsafe {
                    (
                        _mm_loadu_ps(rows[j].as_ptr().add(4 * four)),
                        _mm_loadu_ps(rows[j + 4].as_ptr().add(4 * four)),
                    )
                };
                _mm256_set_m128(high, low)
            };
            let (a, b, c, d) = (halves(0), halves(1), halves(2), halves(3));
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            let columns = [
                _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
                _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
                _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high),
                _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high),
            ];
            for i in 0..4 {
                // SAFETY: `transpose` asserts that the last column fits.
                unsafe {
                    _mm256_storeu_ps(to.as_mut_ptr().add((4 * four + i) * stride), columns[i])
                };
            }
        }
        4 * fours
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        for isa in Isa::all() {
            for len in [0, 1, 7, 8, 9, 40] {
                let rows: Vec<Vec<f32>> =
                    (0..8).map(|j| (0..len).map(|i| (100 * j + i) as f32).collect()).collect();
                let mut to = vec![f32::NAN; len * 11 + 8];
                transpose(isa, std::array::from_fn(|j| &rows[j][..]), &mut to, 11);
                for (j, row) in rows.iter().enumerate() {
                    assert!((0..len).all(|i| to[i * 11 + j] == row[i]), "{}, {len}", isa.name());
                }
            }
        }
    }
}
