//! Every kernel against the plain one, bit for bit, and the plain one against f64.

use super::*;
use crate::Team;
use krasis_core::lines::Bits;
use krasis_core::random::SplitMix64;

struct Random(SplitMix64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// Between -1 and 1.
    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// A weight of any bytes, scales of either sign, and activations.
struct Case {
    lines: Lines,
    rows: usize,
    cols: usize,
    data: Vec<u8>,
    scales: Vec<bf16>,
    x: Vec<f32>,
}

impl Case {
    fn new(lines: Lines, rows: usize, cols: usize, tokens: usize) -> Case {
        let mut random = Random(SplitMix64((rows * cols + tokens) as u64));
        let blocks = rows.div_ceil(ROWS);
        // Some extremes: they overflow first.
        let byte = |r: &mut Random| match r.bits() % 4 {
            0 => 0,
            1 => 255,
            _ => r.bits() as u8,
        };
        let x = |r: &mut Random| match r.bits() % 4 {
            0 => 1.0,
            1 => -1.0,
            _ => r.float(),
        };
        Case {
            lines,
            rows,
            cols,
            data: (0..blocks * lines.block_bytes(cols)).map(|_| byte(&mut random)).collect(),
            scales: (0..blocks * lines.block_scales(cols))
                .map(|_| bf16::from_f32(random.float()))
                .collect(),
            x: (0..tokens * cols).map(|_| x(&mut random)).collect(),
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.lines, self.cols, &self.data, &self.scales)
    }

    fn tokens(&self, isa: Isa) -> Tokens {
        let mut tokens = Tokens::new();
        let (team, count) = (Team::new(Some(1)), self.x.len() / self.cols);
        tokens.fill(isa, &team, self.lines, self.cols, count, |i| {
            &self.x[i * self.cols..][..self.cols]
        });
        tokens
    }

    /// `[token][row]`, of the tokens that are asked for.
    fn products(&self, isa: Isa, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.collect(tokens.len(), |w, put| {
            multiply(isa, w, 0..w.blocks(), &self.tokens(isa), tokens, put);
        })
    }

    /// The same from the kernel for AMX on an emulated unit.
    #[cfg(target_arch = "x86_64")]
    fn products_of_tiles(&self, vectors: crate::isa::Gfni, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.collect(tokens.len(), |w, put| {
            let x = self.tokens(Isa::best());
            amx::multiply_emulated(vectors, w, 0..w.blocks(), &x, tokens, put);
        })
    }

    fn collect(
        &self,
        tokens: usize,
        multiply: impl FnOnce(&Matrix, &mut dyn FnMut(usize, usize, &[f32])),
    ) -> Vec<Vec<f32>> {
        let w = self.matrix();
        let mut out = vec![vec![f32::NAN; w.blocks() * ROWS]; tokens];
        multiply(&w, &mut |i, row, sums| out[i][row..row + sums.len()].copy_from_slice(sums));
        out.iter().map(|row| row[..self.rows].to_vec()).collect()
    }
}

fn each_format(check: impl Fn(Lines)) {
    for bits in [Bits::Four, Bits::Eight] {
        for group in [32, 64, 128] {
            check(Lines::new(bits, group).unwrap());
        }
    }
}

#[test]
fn every_kernel_gives_the_same_bits() {
    each_format(|lines| {
        for (rows, cols) in [(1, 1), (8, 128), (24, 300), (61, 129), (136, 640)] {
            let case = Case::new(lines, rows, cols, 9);
            let tokens: Vec<u32> = (0..9).collect();
            let wanted = case.products(Isa::Plain, &tokens);
            for isa in Isa::all() {
                for count in 1..=9 {
                    let got = case.products(isa, &tokens[..count]);
                    assert_eq!(got, wanted[..count], "{} {lines} {rows}x{cols}", isa.name());
                }
            }
        }
    });
}

#[test]
fn tokens_may_come_in_any_order_and_more_than_a_tile_at_once() {
    each_format(|lines| {
        let case = Case::new(lines, 72, 256, 40);
        let tokens: Vec<u32> = (0..205).map(|i| (i * i + 7) % 40).collect();
        let wanted = case.products(Isa::Plain, &tokens);
        for isa in Isa::all() {
            assert_eq!(case.products(isa, &tokens), wanted, "{} {lines}", isa.name());
        }
    });
}

/// So that all but the instructions themselves is tested where there are none.
#[test]
#[cfg(target_arch = "x86_64")]
fn tiles_give_the_same_bits_on_an_emulated_unit() {
    let Some(vectors) = crate::isa::Gfni::detect() else { return };
    each_format(|lines| {
        for (rows, cols, count) in [(1, 1, 1), (8, 128, 16), (61, 129, 17), (136, 640, 50)] {
            let case = Case::new(lines, rows, cols, count);
            let tokens: Vec<u32> = (0..count as u32).rev().collect();
            let got = case.products_of_tiles(vectors, &tokens);
            assert_eq!(got, case.products(Isa::Plain, &tokens), "{lines} {rows}x{cols}");
        }
        // More than a batch of tokens, and its end: one tile, whole and not, and two.
        let case = Case::new(lines, 72, 256, 40);
        for count in [65, 80, 81, 130] {
            let tokens: Vec<u32> = (0..count).map(|i| (i * i + 7) % 40).collect();
            let got = case.products_of_tiles(vectors, &tokens);
            assert_eq!(got, case.products(Isa::Plain, &tokens), "{lines}, {count} tokens");
        }
    });
}

/// What INT8 activations cost: half a step each.
#[test]
fn products_are_those_of_the_weights_within_the_rounding_of_activations() {
    each_format(|lines| {
        let case = Case::new(lines, 20, 200, 3);
        for (x, got) in case.x.chunks(200).zip(case.products(Isa::Plain, &[0, 1, 2])) {
            for (row, got) in got.into_iter().enumerate() {
                let (mut wanted, mut bound) = (0.0, 1e-3);
                for (col, &x) in x.iter().enumerate() {
                    let (integer, scale) = lines.read(200, row, col, &case.data, &case.scales);
                    let w = f64::from(integer) * f64::from(scale.to_f32());
                    wanted += w * f64::from(x);
                    // The largest activation of every span is at most 1.
                    bound += w.abs() * 0.5 / 127.0;
                }
                let error = (f64::from(got) - wanted).abs();
                assert!(error <= bound, "{lines} row {row}: {got} for {wanted}");
            }
        }
    });
}

#[test]
fn a_broken_activation_breaks_the_product() {
    let mut case = Case::new(Lines::new(Bits::Four, 32).unwrap(), 8, 256, 2);
    case.x[3] = f32::NAN;
    for isa in Isa::all() {
        let got = case.products(isa, &[0, 1]);
        assert!(got[0].iter().all(|x| x.is_nan()) && got[1].iter().all(|x| x.is_finite()));
    }
}
