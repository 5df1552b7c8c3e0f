//! The types that activations may have on a GPU.

use half::bf16;

/// An element type of activations, named at compile time of the kernels.
pub trait Activation: Send + 'static {
    /// Bytes of one.
    const BYTES: u32;
    /// Its name in the kernels.
    const NAME: &'static str;
    /// Adds numbers as f32 to those of `to`.
    fn decode(bytes: &[u8], to: &mut Vec<f32>);
    /// The nearest numbers of this type.
    fn encode(values: &[f32], to: &mut [u8]);
}

/// What models are made for: half the traffic of f32, and tensor cores at full speed.
impl Activation for bf16 {
    const BYTES: u32 = 2;
    const NAME: &'static str = "bf16";
    fn decode(bytes: &[u8], to: &mut Vec<f32>) {
        let widened = |x: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*x)) << 16);
        to.extend(bytes.as_chunks().0.iter().map(widened));
    }
    /// Sixteen thousand numbers of a step wait for this, so it is written to be vectorised.
    fn encode(values: &[f32], to: &mut [u8]) {
        for (to, x) in to.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            let bits = x.to_bits();
            // To the nearest, to even ones among equals; what is no number stays so.
            let near = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
            let quiet = bits >> 16 | 0x40;
            let chosen = if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { near };
            *to = (chosen as u16).to_le_bytes();
        }
    }
}

/// For comparing with the CPU: products are split until nothing is lost.
impl Activation for f32 {
    const BYTES: u32 = 4;
    const NAME: &'static str = "float";
    fn decode(bytes: &[u8], to: &mut Vec<f32>) {
        to.extend(bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)));
    }
    fn encode(values: &[f32], to: &mut [u8]) {
        for (to, x) in to.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *to = x.to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use krasis_core::random::SplitMix64;

    #[test]
    fn numbers_become_those_that_the_library_says() {
        let mut random = SplitMix64(3);
        let special =
            [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, 1e-45, 1.003_906_3];
        let some = (0..10_000).map(|_| f32::from_bits(random.bits() as u32));
        for x in special.into_iter().chain(some) {
            let mut bytes = [0; 2];
            bf16::encode(&[x], &mut bytes);
            assert_eq!(bytes, bf16::from_f32(x).to_le_bytes(), "{x}");
            let mut back = Vec::new();
            bf16::decode(&bytes, &mut back);
            assert_eq!(back[0].to_bits(), bf16::from_le_bytes(bytes).to_f32().to_bits(), "{x}");
        }
    }
}
