//! The two passes of a delta rule over columns of a state `[rows, cols]`: what it recalls, and what it
//! is told. A column's arithmetic is the same whichever columns are beside it.
//!
//! AVX-512: 32 columns of 128 rows are 16 KiB, which stay in the first cache from token to token.

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
    for_each_isa!(isa, recall_body(state: Block, k: &[f32], q: &[f32], remembered: &mut [f32], asked: &mut [f32]));
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
    for_each_isa!(isa, fade_body(state: &mut [f32], stride: usize, fade: f32, k: &[f32], delta: &[f32]));
}

/// Registers of columns that a pass takes together: enough sums to keep multipliers busy.
const WIDE: usize = 4;

#[inline(always)]
unsafe fn recall_body<L: Lanes>(
    state: Block,
    k: &[f32],
    q: &[f32],
    remembered: &mut [f32],
    asked: &mut [f32],
) {
    let cols = remembered.len();
    let (rows, chunk) = (k.len(), WIDE * L::COUNT);
    let mut col = 0;
    while col + chunk <= cols {
        // SAFETY: the columns are there, as `recall` asserts.
        unsafe {
            let (mut r, mut a) = ([L::splat(0.0); WIDE], [L::splat(0.0); WIDE]);
            for i in 0..rows {
                let (k, q) = (L::splat(*k.as_ptr().add(i)), L::splat(*q.as_ptr().add(i)));
                for w in 0..WIDE {
                    let s = L::load(state.data.as_ptr().add(i * state.stride + col + w * L::COUNT));
                    (r[w], a[w]) = (k.madd(s, r[w]), q.madd(s, a[w]));
                }
            }
            for w in 0..WIDE {
                r[w].store(remembered.as_mut_ptr().add(col + w * L::COUNT));
                a[w].store(asked.as_mut_ptr().add(col + w * L::COUNT));
            }
        }
        col += chunk;
    }
    while col < cols {
        let (mut r, mut a) = (0.0, 0.0);
        for i in 0..rows {
            let s = state.data[i * state.stride + col];
            (r, a) = (one::<L>(k[i], s, r), one::<L>(q[i], s, a));
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
    for i in 0..k.len() {
        let row = &mut state[i * stride..][..delta.len()];
        for (s, delta) in row.iter_mut().zip(delta) {
            *s = one::<L>(k[i], *delta, fade * *s);
        }
    }
}

/// One lane of [`Lanes::madd`].
#[inline(always)]
fn one<L: Lanes>(a: f32, b: f32, sum: f32) -> f32 {
    if L::FUSED { a.mul_add(b, sum) } else { a * b + sum }
}
