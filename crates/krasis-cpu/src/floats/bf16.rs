//! One vector times rows of BF16 as they lie: words of as many rows as a register holds are brought
//! together by shuffles, and a word is two inputs of each row.
//!
//! A sum adds its products in the order of the inputs, as `add_product` does, so that either gives the
//! same bits. Bytes: the rows once. AVX-512 takes some 40 instructions for 16 rows and 8 inputs, a
//! quarter of the time in which memory brings them.

use super::PAD;
use super::lanes::{Lanes, for_each_isa};
use super::prefetch::prefetch_line;
use crate::isa::Isa;

/// Inputs come in multiples of it: 16 bytes of a row.
pub const BF16_INPUTS: u32 = 8;

/// `out[r] = Σ_i rows[r, i] · x[i]` for the first [`PAD`] rows of `rows`, which are as long as `x`.
/// What lies behind them is asked for: the next rows, most likely.
pub fn bf16_rows(isa: Isa, rows: &[u8], x: &[f32], out: &mut [f32; PAD]) {
    assert!(x.len().is_multiple_of(BF16_INPUTS as usize), "{} inputs", x.len());
    assert!(rows.len() >= PAD * 2 * x.len(), "{} bytes of {PAD} rows", rows.len());
    for_each_isa!(isa, body(rows: &[u8], x: &[f32], out: &mut [f32; PAD]));
}

#[inline(always)]
unsafe fn body<L: Lanes>(rows: &[u8], x: &[f32], out: &mut [f32; PAD]) {
    let stride = 2 * x.len();
    let mut first = 0;
    while first < PAD {
        // SAFETY: two registers of rows are left, and eight inputs of each, as `bf16_rows` asserts.
        unsafe {
            let mut sums = [L::splat(0.0); 2];
            let mut at = 0;
            while at < x.len() {
                let from = rows.as_ptr().add(first * stride + 2 * at);
                // A quarter of the lines that are 4 inputs of 16 bytes wide, each time.
                for row in (at / 8 % 4..2 * L::COUNT).step_by(4) {
                    prefetch_line(from.wrapping_add((PAD + row) * stride));
                }
                for (half, sum) in sums.iter_mut().enumerate() {
                    let words = L::words(from.add(half * L::COUNT * stride), stride);
                    for (pair, word) in words.into_iter().enumerate() {
                        let x = x.as_ptr().add(at + 2 * pair);
                        *sum = L::splat(*x).madd(word.lower_bf16(), *sum);
                        *sum = L::splat(*x.add(1)).madd(word.upper_bf16(), *sum);
                    }
                }
                at += BF16_INPUTS as usize;
            }
            for (half, sum) in sums.into_iter().enumerate() {
                sum.store(out.as_mut_ptr().add(first + half * L::COUNT));
            }
        }
        first += 2 * L::COUNT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floats::{Block, add_product};
    use half::bf16;

    #[test]
    fn rows_as_they_lie_give_the_bits_of_turned_ones() {
        for isa in Isa::all() {
            for inputs in [8, 24, 128] {
                let number = |i: usize| bf16::from_f32((i * 37 % 101) as f32 * 0.013 - 0.6);
                let rows: Vec<bf16> = (0..(PAD + 1) * inputs).map(number).collect();
                let x: Vec<f32> = (0..inputs).map(|i| (i * 53 % 89) as f32 * 0.07 - 3.0).collect();
                let mut turned = vec![0.0; inputs * PAD];
                for (i, number) in rows[..PAD * inputs].iter().enumerate() {
                    turned[i % inputs * PAD + i / inputs] = number.to_f32();
                }
                let mut wanted = [0.0; PAD];
                let turned = Block { data: &turned, stride: PAD };
                let x_block = Block { data: &x, stride: inputs };
                add_product(isa, (1, inputs, PAD), x_block, turned, &mut wanted, PAD);
                let mut got = [f32::NAN; PAD];
                bf16_rows(isa, bytemuck::cast_slice(&rows), &x, &mut got);
                assert_eq!(got.map(f32::to_bits), wanted.map(f32::to_bits), "{inputs} inputs");
            }
        }
    }
}
