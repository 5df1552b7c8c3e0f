//! Experts on several NUMA nodes, which shall be asked for equally much: where the memory of one holds what
//! is hot, the threads of all wait for it. Between requests the pages of a layer change places for that, by
//! who was asked for.
//!
//! Pages take turns on nodes at first, so what is uneven is what tokens prefer. Experts that a GPU has slots
//! for are no part of it: there the CPU computes what is left, which is asked for more evenly.

use super::Experts;
use crate::census::ExpertCensus;
use krasis_cpu::nodes::Read;
use krasis_ops::Memory;

/// Times that each expert of a layer was asked for in the mean, before that tells who is hot.
const ASKED: u64 = 64;

/// Exchanges of pages in one go: 64 pages of 2 MiB keep a request that comes meanwhile waiting for some
/// hundredths of a second.
const EXCHANGES: usize = 32;

/// What was learnt of each layer.
#[derive(Default)]
pub struct Level {
    layers: Vec<Seen>,
}

#[derive(Default)]
struct Seen {
    /// How often each expert had been asked for when somebody last looked.
    counts: Vec<u64>,
    /// The same, what is longer ago counting less.
    heat: Vec<f64>,
}

impl Level {
    /// Has one layer lie evenly whose experts have been asked for since, the first of a device's layers being
    /// number `first` of the model; false if there is none.
    pub fn next<D: Memory>(
        &mut self,
        d: &mut D,
        experts: &Experts,
        first: usize,
        asked: &ExpertCensus,
    ) -> bool {
        let Experts::Device(banks, _) = experts else { return false };
        if d.homes().is_none_or(|homes| homes.nodes() == 0) {
            return false;
        }
        for (layer, bank) in (first..).zip(banks) {
            let Some(bank) = bank else { continue };
            if self.layers.len() <= layer {
                self.layers.resize_with(layer + 1, Seen::default);
            }
            if !self.layers[layer].learn(asked.asked_of(layer)) {
                continue;
            }
            let read = |(expert, &heat): (u32, &f64)| {
                bank.slots(expert, 1).map(|slot| {
                    let bytes = slot.start as usize..(slot.start + slot.len) as usize;
                    Read { bytes, heat }
                })
            };
            let reads: Vec<Read> = (0..).zip(&self.layers[layer].heat).flat_map(read).collect();
            match d.level(&reads, EXCHANGES) {
                Ok(0) => {}
                Ok(pages) => tracing::info!(layer, pages, "moved to other NUMA nodes"),
                Err(error) => tracing::info!(layer, "pages stay on their NUMA nodes: {error}"),
            }
            return true;
        }
        false
    }
}

impl Seen {
    /// Takes the counts if they tell enough that is new.
    fn learn(&mut self, asked: impl ExactSizeIterator<Item = u64>) -> bool {
        let experts = asked.len();
        self.counts.resize(experts, 0);
        self.heat.resize(experts, 0.0);
        let asked: Vec<u64> = asked.collect();
        let sum = |counts: &[u64]| counts.iter().sum::<u64>();
        if experts == 0 || sum(&asked) < sum(&self.counts) + ASKED * experts as u64 {
            return false;
        }
        for ((heat, &now), before) in self.heat.iter_mut().zip(&asked).zip(&self.counts) {
            *heat = *heat / 2.0 + now.saturating_sub(*before) as f64;
        }
        self.counts = asked;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_due_when_its_experts_were_asked_for_often_enough() {
        let mut seen = Seen::default();
        assert!(!seen.learn([].into_iter()));
        assert!(!seen.learn([2 * ASKED - 1, 0].into_iter()));
        assert!(seen.learn([2 * ASKED, 0].into_iter()));
        assert!(!seen.learn([3 * ASKED, ASKED - 1].into_iter()));
        assert!(seen.learn([2 * ASKED, 4 * ASKED].into_iter()));
        // The older half of what was seen counts half.
        assert_eq!(seen.heat, [ASKED as f64, 4.0 * ASKED as f64]);
    }
}
