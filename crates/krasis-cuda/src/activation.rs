//! The types that activations may have on a GPU.

use half::bf16;

/// An element type of activations, named at compile time of the kernels.
pub trait Activation: Send + 'static {
    /// Bytes of one.
    const BYTES: u32;
    /// Its name in the kernels.
    const NAME: &'static str;
    /// Numbers as f32.
    fn decode(bytes: &[u8]) -> Vec<f32>;
    /// The nearest numbers of this type.
    fn encode(values: &[f32]) -> Vec<u8>;
}

/// What models are made for: half the traffic of f32, and tensor cores at full speed.
impl Activation for bf16 {
    const BYTES: u32 = 2;
    const NAME: &'static str = "bf16";
    fn decode(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect()
    }
    fn encode(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
    }
}

/// For comparing with the CPU: products are split until nothing is lost.
impl Activation for f32 {
    const BYTES: u32 = 4;
    const NAME: &'static str = "float";
    fn decode(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
    }
    fn encode(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }
}
