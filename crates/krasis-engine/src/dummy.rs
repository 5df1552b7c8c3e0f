//! Weights from nowhere: random numbers in true shapes and formats, so that any model's speed can
//! be measured without its files. The text is noise; bytes, operations and routing are real.

use crate::error::StartError;
use crate::load::{Placed, Shelf, Stock, Stored};
use crate::options::Options;
use crate::skew::popularity_bias;
use half::{bf16, f16};
use krasis_core::random::SplitMix64;
use krasis_core::{DType, Format, Weight};
use krasis_cpu::Team;
use krasis_model::{Class, Experts, Ffn, Model, Origin, Source};
use krasis_ops::{Bank, Memory};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A checkpoint that does not exist: BF16 weights of every shape.
pub struct Dummy;

/// Bytes uploaded at a time, and by how many each piece is shorter.
const PIECE: usize = 8 << 20;
const SHORTER: usize = 64 * 1021;

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
                random(device, weight, seed(&source.origin), EMBEDDED);
            }
            _ => random(device, weight, seed(&source.origin), even(weight)),
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
        let seed = seed(&experts.prefix);
        random(device, &bank.gate_up, seed, even(&bank.gate_up));
        random(device, &bank.down, !seed, even(&bank.down));
        Ok(())
    }

    /// Made up again they are as fast as read, unless memory has no room for them.
    fn shelf(&self, placed: &Placed, options: &Options) -> Result<Option<Shelf>, StartError> {
        Ok(placed.banks_stay.then(|| Shelf::of_dummy(placed, options)))
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

/// A number that follows from where a weight would come from. Layers have to differ: if all were one, they
/// would turn every token towards the same direction, and route all of them alike.
fn seed(of: impl std::fmt::Debug) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{of:?}").hash(&mut hasher);
    hasher.finish()
}

/// Fills a weight with numbers of a size.
fn random<D: Memory>(device: &mut D, weight: &Weight, seed: u64, size: f32) {
    let mut random = SplitMix64(seed);
    let four = matches!(weight.format.row_format(), Format::Int4 { .. });
    // The same pseudo-random piece over and over: large models would wait for minutes otherwise,
    // and an odd length keeps rows from repeating in step.
    let len = PIECE.min((weight.data.len as usize).next_multiple_of(64) + SHORTER);
    let piece: Vec<u8> = match weight.format {
        Format::Float(dtype) => {
            let spread = 2.0 * size * 3f32.sqrt();
            let numbers = (0..len / dtype.bytes()).map(|_| (random.uniform() - 0.5) * spread);
            match dtype {
                DType::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
                DType::F16 => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
                _ => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            }
        }
        Format::Int8 { .. } | Format::Int4 { .. } | Format::Lines(_) => {
            let bytes = (0..len / 8).flat_map(|_| random.bits().to_le_bytes());
            if four { bytes.map(symmetric).collect() } else { bytes.collect() }
        }
    };
    let step = piece.len() - SHORTER;
    let mut at = 0;
    while at < weight.data.len {
        let bytes = (weight.data.len - at).min(step as u64);
        let to = krasis_core::Slot::new(weight.data.start + at, bytes);
        device.upload(to, &piece[..bytes as usize]);
        at += bytes;
    }
    // Those integers have a deviation of 4.2, of 8 bits 74.
    let spread = if four { 4.2 } else { 74.0 };
    if !weight.scales.is_empty() {
        device.upload(
            weight.scales,
            &vec![bf16::from_f32(size / spread); weight.scales.len as usize],
        );
    }
}

/// Two integers of 4 bits with zeros in place of the lowest, -8, so that their mean is nothing. With it, every product
/// would have a part in common, which grows from layer to layer until all tokens look alike and are
/// routed alike: caches of hot experts, and batches, would be too fast.
fn symmetric(byte: u8) -> u8 {
    let one = |nibble: u8| if nibble == 0 { 8 } else { nibble };
    one(byte & 15) | one(byte >> 4) << 4
}
