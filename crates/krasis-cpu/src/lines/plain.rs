//! The product as one would write it on a blackboard: what every other kernel equals bit for bit.

use super::{Matrix, Span};
use krasis_core::lines::{Bits, PLANE, ROWS};

/// The rows of one block times one token.
pub fn vector(w: &Matrix, block: usize, x: &[Span]) -> [f32; ROWS] {
    let (planes, scales) = w.block(block);
    let (per_line, line_scales) = (w.lines.line_bytes() / PLANE, w.lines.line_scales());
    std::array::from_fn(|row| {
        let mut sum = 0.0f32;
        for (g, x) in x.iter().enumerate() {
            let line = &planes[(g * ROWS + row) * per_line..][..per_line];
            for s in 0..line_scales {
                let product = integers(w.lines.bits, line, x, s, line_scales) - x.corrections[s];
                let scale = scales[g * line_scales + s][row].to_f32() * x.scale;
                sum = (product as f32).mul_add(scale, sum);
            }
        }
        sum
    })
}

/// Σ stored integer · activation over the slabs of one scale.
fn integers(bits: Bits, line: &[[u8; PLANE]], x: &Span, s: usize, line_scales: usize) -> i32 {
    let mut sum = 0;
    for byte in (0..PLANE).filter(|byte| byte / 4 % 4 * line_scales / 4 == s) {
        let (low, high) = match bits {
            Bits::Four => (line[0][byte] & 15, line[0][byte] >> 4),
            Bits::Eight => (line[0][byte], line[1][byte]),
        };
        sum += i32::from(low) * i32::from(x.integers[byte]);
        sum += i32::from(high) * i32::from(x.integers[PLANE + byte]);
    }
    sum
}
