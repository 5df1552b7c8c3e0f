//! Weights from nowhere: random numbers in true shapes and formats, so that any model's speed can
//! be measured without its files. The text is noise; bytes, operations and routing are real.

use crate::error::StartError;
use crate::load::{Stock, Stored};
use crate::skew::popularity_bias;
use half::{bf16, f16};
use krasis_core::random::SplitMix64;
use krasis_core::{DType, Format, Weight};
use krasis_cpu::Team;
use krasis_model::{Class, Experts, Ffn, Model, Origin, Source};
use krasis_ops::{Bank, Memory};

/// A checkpoint that does not exist: BF16 weights of every shape.
pub struct Dummy;

/// Bytes uploaded at a time.
const PIECE: usize = 8 << 20;

impl Stock for Dummy {
    fn dtype(&self, _: &Source) -> Result<DType, StartError> {
        Ok(DType::Bf16)
    }

    fn expert(&self, _: &Experts, _: &str, _: u32, _: u32) -> Result<Stored, StartError> {
        Ok(Stored::Float(DType::Bf16))
    }

    fn fill<D: Memory>(
        &self,
        device: &mut D,
        source: &Source,
        weight: &Weight,
        _: &Team,
    ) -> Result<(), StartError> {
        match (&source.origin, source.rows) {
            (Origin::Numbers(numbers), _) => {
                device.upload(weight.data, bytemuck::cast_slice(numbers))
            }
            // Norms of one leave the scale of activations as it is.
            (_, 1) if weight.format == Format::Float(DType::F32) => {
                device
                    .upload(weight.data, bytemuck::cast_slice(&vec![1.0f32; weight.cols as usize]));
            }
            _ if source.class == Class::Embedding => {
                random(device, weight, source.rows, EMBEDDED);
            }
            _ => random(device, weight, source.rows, even(weight)),
        }
        Ok(())
    }

    fn fill_bank<D: Memory>(
        &self,
        device: &mut D,
        experts: &Experts,
        bank: &Bank,
        _: &Team,
    ) -> Result<(), StartError> {
        random(device, &bank.gate_up, experts.count, even(&bank.gate_up));
        random(device, &bank.down, experts.count + 1, even(&bank.down));
        Ok(())
    }
}

/// Gives every router a bias that makes some experts popular.
pub fn skew_routers(model: &mut Model<Source>, skew: f64) {
    for (seed, layer) in (1..).zip(&mut model.layers) {
        if let Ffn::Moe(moe) = &mut layer.ffn {
            let bias = popularity_bias(&moe.routing, moe.experts.count, skew, seed);
            moe.router_bias = Some(Source::numbers(bias));
        }
    }
}

/// The size of an embedded token's numbers. What attention adds is much the same for all tokens of random
/// weights; if it were larger than what they are themselves, all of them would be routed alike.
const EMBEDDED: f32 = 4.0;

/// The size of weights with which a product of numbers of size one has size one again.
fn even(weight: &Weight) -> f32 {
    f64::from(weight.cols).powf(-0.5) as f32
}

/// Fills a weight with numbers of a size.
fn random<D: Memory>(device: &mut D, weight: &Weight, seed: u32, size: f32) {
    let mut random = SplitMix64(u64::from(seed) + 1);
    let four = matches!(weight.format.row_format(), Format::Int4 { .. });
    // The same pseudo-random piece over and over: large models would wait for minutes otherwise,
    // and an odd length keeps rows from repeating in step.
    let piece: Vec<u8> = match weight.format {
        Format::Float(dtype) => {
            let spread = 2.0 * size * 3f32.sqrt();
            let numbers = (0..PIECE / dtype.bytes()).map(|_| (random.uniform() - 0.5) * spread);
            match dtype {
                DType::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
                DType::F16 => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
                _ => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            }
        }
        Format::Int8 { .. } | Format::Int4 { .. } | Format::Lines(_) => {
            let bytes = (0..PIECE / 8).flat_map(|_| random.bits().to_le_bytes());
            if four { bytes.map(symmetric).collect() } else { bytes.collect() }
        }
    };
    let element = match weight.format {
        Format::Float(dtype) => dtype.bytes(),
        _ => 1,
    };
    let step = piece.len() - 64 * 1021 * element;
    let mut at = 0;
    while at < weight.data.len {
        let bytes = (weight.data.len - at).min(step as u64);
        let to = krasis_core::Slot::new(weight.data.start + at, bytes);
        device.upload(to, &piece[..bytes as usize]);
        at += bytes;
    }
    // Integers from -7 to 7 have a deviation of 4.3, those of 8 bits 74.
    let spread = if four { 4.3 } else { 74.0 };
    if !weight.scales.is_empty() {
        device.upload(
            weight.scales,
            &vec![bf16::from_f32(size / spread); weight.scales.len as usize],
        );
    }
}

/// Two integers of 4 bits without the lowest, -8, so that their mean is nothing. With it, every product
/// would have a part in common, which grows from layer to layer until all tokens look alike and are
/// routed alike: caches of hot experts, and batches, would be too fast.
fn symmetric(byte: u8) -> u8 {
    let one = |nibble: u8| 1 + nibble % 15;
    one(byte & 15) | one(byte >> 4) << 4
}
