//! The routed experts of all layers: on the device, or in host memory with slots on the device for
//! some of them.
//!
//! One executor carries out every strategy. For each layer it asks which pairs of tokens and experts
//! the device can compute as it is, has those computed, and goes on with what is left: either the CPU
//! takes it, or experts are brought into slots, wave by wave. So each pair is computed once, by one of
//! the two, whatever a strategy does; only the device's queue orders copies and kernels, so a slot may
//! be filled again as soon as its readers are queued.

mod away;
mod heat;
mod slots;
mod strategy;

pub use away::helpers::{Chunk, Counter, HelperPlan, slots_for};
pub use away::{Away, AwayPlan, Desk, Traffic};
pub use strategy::{DecodeStrategy, PrefillStrategy, of_divisor};

use crate::census::LayersCensus;
use krasis_core::{Act, Mat};
use krasis_ops::{Aide, Answer, Bank, Memory, Ops, Routes};
use std::ops::Range;

/// Where the routed experts of each layer lie; none for dense layers.
pub enum Experts {
    /// In the device's memory, all of them.
    Device(Vec<Option<Bank>>, Option<Asked>),
    /// In host memory.
    Away(Box<Away>),
}

/// Looks who is asked for where routes lie in host memory: elsewhere, the device would have to be
/// waited for.
pub struct Asked {
    census: LayersCensus,
    chosen: Vec<u32>,
}

/// What a layer's experts are to compute; the fields are those of [`Ops::experts`].
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// `[rows, hidden]`.
    pub x: Mat<Act>,
    /// `[rows, top_k]`.
    pub routes: Routes,
    /// `[rows · top_k, inter]` scratch.
    pub inner: Mat<Act>,
    /// `[rows · top_k, hidden]`.
    pub out: Mat<Act>,
}

/// What a device may remember of a step that decodes; what it asks for is the same every time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// All of it.
    Step,
    /// All of it, with room in host memory for what the CPU is asked: few rows.
    StepOfFew,
    /// What comes between the experts of two layers.
    Between,
}

/// The host's part of a step.
impl Aide for Experts {
    fn desk(&mut self) -> (&mut Vec<u32>, &mut Vec<f32>) {
        match self {
            Experts::Device(..) => unreachable!("the device has all experts"),
            Experts::Away(away) => away.desk(),
        }
    }

    fn answer(&mut self, number: usize) -> Answer<'_> {
        match self {
            Experts::Device(..) => unreachable!("the device has all experts"),
            Experts::Away(away) => away.answer(number),
        }
    }
}

impl Experts {
    /// The banks of all layers, wherever they lie.
    pub fn banks(&self) -> &[Option<Bank>] {
        match self {
            Experts::Device(banks, _) => banks,
            Experts::Away(away) => away.banks(),
        }
    }

    /// What has been copied and computed where; nothing to tell if all lie on the device.
    pub fn traffic(&self) -> Traffic {
        match self {
            Experts::Device(..) => Traffic::default(),
            Experts::Away(away) => away.traffic(),
        }
    }

    /// A pass over so many rows begins: how many groups of layers it takes one after the other.
    pub fn begin(&mut self, rows: u32) -> usize {
        match self {
            Experts::Device(..) => 1,
            Experts::Away(away) => away.begin(rows),
        }
    }

    /// Layers of a group, whose experts are brought if they are to be here before anyone asks.
    pub fn enter<D: Memory>(&mut self, d: &mut D, helpers: &mut [D], group: usize) -> Range<usize> {
        match self {
            Experts::Device(banks, _) => 0..banks.len(),
            Experts::Away(away) => away.enter(d, helpers, group),
        }
    }

    /// What a device may remember of a step that decodes.
    pub fn repeats(&self) -> Repeats {
        match self {
            Experts::Device(..) => Repeats::Step,
            Experts::Away(away) => away.repeats(),
        }
    }

    /// Runs the experts of a layer, if it has any; `helpers` may have a part in prompts.
    pub fn run<D: Ops + Memory>(&mut self, d: &mut D, helpers: &mut [D], layer: usize, work: Work) {
        match self {
            Experts::Device(banks, asked) => {
                if let Some(bank) = &banks[layer] {
                    if let Some(asked) = asked {
                        d.download_to(work.routes.experts.whole(), &mut asked.chosen);
                        asked.census.note(layer, &asked.chosen);
                    }
                    d.experts(work.x, work.routes, bank, work.inner, work.out);
                }
            }
            Experts::Away(away) => away.run(d, helpers, layer, work),
        }
    }

    /// The pass is over.
    pub fn end<D: Memory>(&mut self, d: &mut D) {
        if let Experts::Away(away) = self {
            away.end(d);
        }
    }
}

impl Asked {
    /// For passes of so many pairs of tokens and experts at most: a decode step allocates nothing.
    pub fn new(census: LayersCensus, pairs_max: u32) -> Asked {
        Asked { census, chosen: Vec::with_capacity(pairs_max as usize) }
    }
}
