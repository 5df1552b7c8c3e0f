//! How much memory building and loading take at most: foreseen and measured.

use super::{Leaf, Placed, Stock, Stored, bytes_of, stored_experts};
use crate::error::StartError;
use krasis_core::{Bytes, Format};
use krasis_cpu::memory;
use krasis_model::{Experts, Origin};
use krasis_ops::Bank;
use std::fmt;

/// What a phase took, resident memory of the whole process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    /// Before the phase began.
    pub before: Bytes,
    /// Foreseen.
    pub estimated: Bytes,
    /// Measured.
    pub reached: Bytes,
}

/// A phase that is being measured.
pub struct PeakMeter {
    before: Bytes,
}

impl PeakMeter {
    /// Begins.
    pub fn start() -> PeakMeter {
        memory::forget_peak();
        PeakMeter { before: memory::resident().unwrap_or_default() }
    }

    /// Ends; `more` is what the phase was expected to need at most.
    pub fn stop(self, more: Bytes) -> Peak {
        let reached = memory::peak().unwrap_or_default();
        Peak { before: self.before, estimated: self.before + more, reached }
    }
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} resident at most, {} expected", self.reached, self.estimated)
    }
}

impl Placed {
    /// Memory that building a cache takes: one weight or bank at a time, and what making it takes.
    pub fn build_peak(&self, stock: &impl Stock) -> Result<Bytes, StartError> {
        let mut peak = Bytes(0);
        let mut see = |bytes: Bytes| peak = peak.max(bytes);
        self.model.try_map(|leaf| {
            if leaf.is_kept() {
                see(bytes_of(&leaf.weight) + making_leaf(leaf, stock)?);
            }
            Ok::<_, StartError>(())
        })?;
        for (layer, converted) in self.experts().zip(&self.converted) {
            let Some((experts, bank)) = layer.filter(|_| *converted) else { continue };
            let bytes = bytes_of(&bank.gate_up) + bytes_of(&bank.down);
            see(bytes + making_expert(experts, bank, stock)?);
        }
        Ok(peak)
    }

    /// Memory that filling all weights takes, those that were kept last and from a cache if there
    /// is one.
    pub fn fill_peak(&self, stock: &impl Stock, cached: bool) -> Result<Bytes, StartError> {
        let (mut filled, mut peak) = (Bytes(0), Bytes(0));
        let mut fill = |bytes: Bytes, making: Bytes| {
            filled += bytes;
            peak = peak.max(filled + making);
        };
        self.model.try_map(|leaf| {
            if !self.is_shared(leaf) && (!cached || !leaf.is_kept()) {
                fill(bytes_of(&leaf.weight), making_leaf(leaf, stock)?);
            }
            Ok::<_, StartError>(())
        })?;
        for (layer, converted) in self.experts().zip(&self.converted) {
            if let Some((experts, bank)) = layer
                && !(cached && *converted)
            {
                let bytes = bytes_of(&bank.gate_up) + bytes_of(&bank.down);
                fill(bytes, making_expert(experts, bank, stock)?);
            }
        }
        Ok(peak.max(self.bytes()))
    }
}

/// What is in memory besides the place of a weight: its stored form, and its rows on their way.
fn making_leaf(leaf: &Leaf, stock: &impl Stock) -> Result<Bytes, StartError> {
    if let Origin::Numbers(_) = leaf.source.origin {
        return Ok(Bytes(0));
    }
    let (rows, cols) = (leaf.source.rows, leaf.source.cols);
    let stored = Format::Float(stock.dtype(&leaf.source)?).bytes(rows, cols);
    Ok(stored + bytes_of(&leaf.weight))
}

/// The same of an expert's largest matrix.
fn making_expert(experts: &Experts, bank: &Bank, stock: &impl Stock) -> Result<Bytes, StartError> {
    let stored = stored_experts(experts, bank.gate_up.cols, stock)?;
    let matrix = |stored: &Stored, weight: krasis_core::Weight| {
        stored.format().bytes(weight.rows, weight.cols) + bytes_of(&weight)
    };
    Ok(matrix(&stored[0], bank.gate(0)).max(matrix(&stored[1], bank.down(0))))
}
