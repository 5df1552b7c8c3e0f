//! Stored numbers as f32.

use half::bf16;
use krasis_core::{DType, Format};

for_this_machine! {
    /// `out = scale · data`, eight-bit floats as they are stored.
    pub fn decode_f8(data: &[u8], scale: f32, out: &mut [f32]) = decode_f8_body
}

for_this_machine! {
    /// One row of a weight as f32: `data` and `scales` are the row's own (see `krasis_core::quant`).
    pub fn decode_row(format: Format, data: &[u8], scales: &[bf16], out: &mut [f32]) = decode_row_body
}

/// Exponent and mantissa move to where f32 has them, eight places up; numbers below the smallest
/// normal one get there with a leading one too many, which is subtracted again.
#[inline(always)]
fn decode_f8_body<const FMA: bool>(data: &[u8], scale: f32, out: &mut [f32]) {
    for (out, &byte) in out.iter_mut().zip(data) {
        let bits = u32::from(byte & 0x7f) << 20;
        let normal = f32::from_bits(bits + (120 << 23));
        let small = f32::from_bits(bits + (121 << 23)) - 0.015_625;
        let x = if bits < 1 << 23 { small } else { normal };
        let x = if bits == 0x7f << 20 { f32::NAN } else { x };
        *out = f32::from_bits(x.to_bits() | u32::from(byte & 0x80) << 24) * scale;
    }
}

/// The same for half precision, by a product: exact below the smallest normal number, too.
#[inline(always)]
fn half_float(stored: u16) -> f32 {
    const UP_112_PLACES: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(stored & 0x7fff) << 13;
    let finite = (f32::from_bits(bits) * UP_112_PLACES).to_bits();
    let bits = if bits < 0x1f << 23 { finite } else { bits | 0xff << 23 };
    f32::from_bits(bits | u32::from(stored & 0x8000) << 16)
}

#[inline(always)]
fn decode_row_body<const FMA: bool>(format: Format, data: &[u8], scales: &[bf16], out: &mut [f32]) {
    assert_eq!(data.len() as u64, format.row_bytes(out.len() as u32));
    match format {
        Format::Lines(lines) => unreachable!("a row does not lie by itself in {lines}"),
        Format::Float(DType::F32) => {
            for (out, b) in out.iter_mut().zip(data.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*b);
            }
        }
        Format::Float(DType::Bf16) => {
            for (out, b) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                *out = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        Format::Float(DType::F16) => {
            for (out, b) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                *out = half_float(u16::from_le_bytes(*b));
            }
        }
        Format::Float(other) => unreachable!("{other} weights are refused when they are loaded"),
        Format::Int8 { group } => {
            let groups = out.chunks_mut(group as usize).zip(data.chunks(group as usize));
            for ((out, data), scale) in groups.zip(scales) {
                let scale = scale.to_f32();
                for (out, &q) in out.iter_mut().zip(data) {
                    *out = f32::from(q as i8) * scale;
                }
            }
        }
        Format::Int4 { group } => {
            let groups = out.chunks_mut(group as usize).zip(data.chunks(group as usize / 2));
            for ((out, data), scale) in groups.zip(scales) {
                let scale = scale.to_f32();
                for (i, out) in out.iter_mut().enumerate() {
                    let nibble = (data[i / 2] >> (i % 2 * 4)) & 15;
                    *out = (i32::from(nibble) - 8) as f32 * scale;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn eight_bit_floats_are_exact() {
        let all: Vec<u8> = (0..=255).collect();
        let mut out = [0.0; 256];
        decode_f8(&all, 0.37, &mut out);
        for (&byte, got) in all.iter().zip(out) {
            let wanted = krasis_core::F8E4M3(byte).to_f32() * 0.37;
            assert!(got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan(), "{byte}");
        }
    }

    #[test]
    fn half_precision_is_exact() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0; 1 << 16];
        decode_row(Format::Float(DType::F16), &all, &[], &mut out);
        for (stored, got) in (0..=u16::MAX).zip(out) {
            let wanted = f16::from_bits(stored).to_f32();
            assert!(
                got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan(),
                "{stored}"
            );
        }
    }

    #[test]
    fn int4_rows_decode_low_nibble_first() {
        let mut out = [0.0; 5];
        let scales = [bf16::from_f32(0.5), bf16::from_f32(2.0)];
        // Integers 0, 1, -8, 7 in the first group of four, then 3.
        decode_row(Format::Int4 { group: 4 }, &[0x98, 0xf0, 0x8b], &scales, &mut out);
        assert_eq!(out, [0.0, 0.5, -4.0, 3.5, 6.0]);
    }
}
