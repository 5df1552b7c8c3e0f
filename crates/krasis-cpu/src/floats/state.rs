//! The two passes of a delta rule over columns of a state `[rows, cols]`: what it recalls, and what it
//! is told. A column's arithmetic is the same whichever columns are beside it.
//!
//! AVX-512: 32 columns of 128 rows are 16 KiB, which stay in the first cache from token to token, and
//! a pass over them is 2 cycles a row.

use super::lanes::{Lanes, for_each_isa};
use super::product::Block;
use crate::isa::Isa;

/// `remembered[j] = Σ_i k[i] · state[i, j]` and `asked[j] = Σ_i q[i] · state[i, j]`.
pub fn recall(
    isa: Isa,
    state: Block,
    k: &[f32],
    q: &[f32],
    remembered: &mut [f32],
    asked: &mut [f32],
) {
    let cols = remembered.len();
    assert!(k.len() == q.len() && asked.len() == cols, "a key, a query and two sums");
    assert!(k.is_empty() || (k.len() - 1) * state.stride + cols <= state.data.len());
    for_each_isa!(
        isa,
        recall_body(state: Block, k: &[f32], q: &[f32], remembered: &mut [f32], asked: &mut [f32])
    );
}

/// `state[i, j] = fade · state[i, j] + k[i] · delta[j]`.
pub fn fade_and_add(
    isa: Isa,
    state: &mut [f32],
    stride: usize,
    fade: f32,
    k: &[f32],
    delta: &[f32],
) {
    assert!(k.is_empty() || (k.len() - 1) * stride + delta.len() <= state.len());
    for_each_isa!(
        isa,
        fade_body(state: &mut [f32], stride: usize, fade: f32, k: &[f32], delta: &[f32])
    );
}

/// Registers of columns that a pass takes together.
const WIDE: usize = 2;

/// Sums of even and odd rows apart, to have eight of them under way.
#[inline(always)]
unsafe fn recall_body<L: Lanes>(
    state: Block,
    k: &[f32],
    q: &[f32],
    remembered: &mut [f32],
    asked: &mut [f32],
) {
    let (rows, cols, chunk) = (k.len(), remembered.len(), WIDE * L::COUNT);
    let mut col = 0;
    while col + chunk <= cols {
        // SAFETY: rows and columns are there, as `recall` asserts.
        unsafe {
            let mut sums = [[[L::splat(0.0); WIDE]; 2]; 2];
            let at = state.data.as_ptr().add(col);
            for pair in 0..rows / 2 {
                for odd in 0..2 {
                    let i = 2 * pair + odd;
                    let (k, q) = (L::splat(*k.as_ptr().add(i)), L::splat(*q.as_ptr().add(i)));
                    for w in 0..WIDE {
                        let s = L::load(at.add(i * state.stride + w * L::COUNT));
                        sums[odd][0][w] = k.madd(s, sums[odd][0][w]);
                        sums[odd][1][w] = q.madd(s, sums[odd][1][w]);
                    }
                }
            }
            if rows % 2 == 1 {
                let i = rows - 1;
                for w in 0..WIDE {
                    let s = L::load(at.add(i * state.stride + w * L::COUNT));
                    sums[0][0][w] = L::splat(k[i]).madd(s, sums[0][0][w]);
                    sums[0][1][w] = L::splat(q[i]).madd(s, sums[0][1][w]);
                }
            }
            let one = L::splat(1.0);
            for w in 0..WIDE {
                let to = col + w * L::COUNT;
                one.madd(sums[0][0][w], sums[1][0][w]).store(remembered.as_mut_ptr().add(to));
                one.madd(sums[0][1][w], sums[1][1][w]).store(asked.as_mut_ptr().add(to));
            }
        }
        col += chunk;
    }
    while col < cols {
        let (mut r, mut a) = (0.0, 0.0);
        for i in 0..rows {
            let s = state.data[i * state.stride + col];
            r += k[i] * s;
            a += q[i] * s;
        }
        (remembered[col], asked[col]) = (r, a);
        col += 1;
    }
}

#[inline(always)]
unsafe fn fade_body<L: Lanes>(
    state: &mut [f32],
    stride: usize,
    fade: f32,
    k: &[f32],
    delta: &[f32],
) {
    let (cols, chunk) = (delta.len(), WIDE * L::COUNT);
    let mut col = 0;
    while col + chunk <= cols {
        // SAFETY: rows and columns are there, as `fade_and_add` asserts.
        unsafe {
            let (zero, fade) = (L::splat(0.0), L::splat(fade));
            let mut deltas = [zero; WIDE];
            for w in 0..WIDE {
                deltas[w] = L::load(delta.as_ptr().add(col + w * L::COUNT));
            }
            for i in 0..k.len() {
                let k = L::splat(*k.as_ptr().add(i));
                for w in 0..WIDE {
                    let at = state.as_mut_ptr().add(i * stride + col + w * L::COUNT);
                    k.madd(deltas[w], L::load(at).madd(fade, zero)).store(at);
                }
            }
        }
        col += chunk;
    }
    while col < cols {
        for i in 0..k.len() {
            let s = &mut state[i * stride + col];
            *s = k[i] * delta[col] + fade * *s;
        }
        col += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_passes_at_any_width() {
        let ramp = |len: usize, step: f32| -> Vec<f32> {
            (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) * step).collect()
        };
        for isa in Isa::all() {
            for (rows, cols) in [(1, 1), (5, 32), (8, 37), (128, 64)] {
                let stride = cols + 3;
                let (start, k, q) = (ramp(rows * stride, 0.1), ramp(rows, 0.01), ramp(rows, 0.02));
                let delta = ramp(cols, 0.3);
                let (mut r, mut a) = (vec![f32::NAN; cols], vec![f32::NAN; cols]);
                recall(isa, Block { data: &start, stride }, &k, &q, &mut r, &mut a);
                let mut state = start.clone();
                fade_and_add(isa, &mut state, stride, 0.9, &k, &delta);
                for j in 0..cols {
                    let sum =
                        |x: &[f32]| (0..rows).map(|i| x[i] * start[i * stride + j]).sum::<f32>();
                    assert!((r[j] - sum(&k)).abs() < 1e-3 && (a[j] - sum(&q)).abs() < 1e-3, "{j}");
                    for i in 0..rows {
                        let wanted = 0.9 * start[i * stride + j] + k[i] * delta[j];
                        assert!((state[i * stride + j] - wanted).abs() < 1e-5, "{i} {j}");
                    }
                }
                let between = |x: &[f32], i: usize| x[i * stride + cols..][..3].to_vec();
                assert!((0..rows - 1).all(|i| between(&state, i) == between(&start, i)));
            }
        }
    }
}
