//! Element types: those of checkpoints, those of the KV cache, and the one that Rust lacks.

use std::fmt;

/// Element type of a tensor in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// Upper half of an f32.
    Bf16,
    /// Signed byte.
    I8,
    /// Unsigned byte.
    U8,
    /// Signed 32 bit; eight packed nibbles in compressed-tensors files.
    I32,
    /// Signed 64 bit; shapes in compressed-tensors files.
    I64,
    /// Eight-bit float, see [`F8E4M3`].
    F8E4M3,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::I8 | DType::U8 | DType::F8E4M3 => 1,
        }
    }

    /// Whether a weight may be stored in this type and read as numbers without further data.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::Bf16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::Bf16 => "BF16",
            DType::I8 => "I8",
            DType::U8 => "U8",
            DType::I32 => "I32",
            DType::I64 => "I64",
            DType::F8E4M3 => "F8_E4M3",
        })
    }
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDtype {
    /// As computed: the Reference and Cpu devices' activation type.
    F32,
    /// Half the memory, relative error 2⁻⁹.
    Bf16,
    /// As much memory, relative error 2⁻¹² from 2⁻¹⁴ to [`half::f16::MAX`], to which what is larger
    /// is cut: an infinity would make NaN of everything that attends to it.
    F16,
    /// A quarter of the memory, with one f32 scale per token and head.
    F8E4M3,
}

impl KvDtype {
    /// Bytes of one element, scales aside.
    pub const fn bytes(self) -> u32 {
        match self {
            KvDtype::F32 => 4,
            KvDtype::Bf16 | KvDtype::F16 => 2,
            KvDtype::F8E4M3 => 1,
        }
    }
}

/// Eight-bit float of 4 exponent and 3 mantissa bits, no infinity, NaN at 0x7f and 0xff
/// (Micikevicius et al., FP8 Formats for Deep Learning, 2022).
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct F8E4M3(pub u8);

impl F8E4M3 {
    /// Largest finite value.
    pub const MAX: f32 = 448.0;

    /// Nearest value, ties to even mantissa; beyond [`Self::MAX`] saturates.
    pub fn from_f32(value: f32) -> F8E4M3 {
        if value.is_nan() {
            return F8E4M3(0x7f);
        }
        let sign = ((value.to_bits() >> 24) & 0x80) as u8;
        let magnitude = value.abs().min(Self::MAX);
        // The exponent of the grid that the value lies on; 2⁻⁶ is the smallest normal.
        let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
        let steps = (magnitude * f32::from_bits(((3 - exponent + 127) as u32) << 23))
            .round_ties_even() as u32;
        // 8 steps make the next power of two, so carrying into the exponent is plain addition.
        F8E4M3(sign | (((exponent + 6) as u32 * 8) + steps) as u8)
    }

    /// Exact.
    pub fn to_f32(self) -> f32 {
        let (exponent, mantissa) = ((self.0 >> 3) & 15, self.0 & 7);
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            (0, m) => f32::from(m) * 2f32.powi(-9),
            (e, m) => f32::from(8 + m) * 2f32.powi(i32::from(e) - 10),
        };
        if self.0 & 0x80 == 0 { magnitude } else { -magnitude }
    }
}

#[cfg(test)]
mod tests {
    use super::F8E4M3;

    #[test]
    fn every_f8_survives_the_way_to_f32_and_back() {
        for bits in 0..=255u8 {
            let value = F8E4M3(bits).to_f32();
            if value.is_nan() {
                assert_eq!(bits & 0x7f, 0x7f);
            } else {
                assert_eq!(F8E4M3::from_f32(value).0, bits, "{value}");
            }
        }
    }

    #[test]
    fn f8_rounds_to_the_nearest_value() {
        let all: Vec<f32> = (0..=255).map(|b| F8E4M3(b).to_f32()).filter(|v| !v.is_nan()).collect();
        for i in -5000..5000 {
            let value = i as f32 * 0.1003;
            let got = F8E4M3::from_f32(value).to_f32();
            let best = all.iter().map(|v| (v - value).abs()).fold(f32::MAX, f32::min);
            assert_eq!((got - value).abs(), best, "{value} became {got}");
        }
    }
}
