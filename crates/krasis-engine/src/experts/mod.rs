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
mod level;
mod overflow;
mod slots;
mod strategy;

pub use away::helpers::{Chunk, Counter, HelperPlan, slots_for};
pub use away::{Away, AwayPlan, Desk, Traffic};
pub use heat::HeatMap;
pub use level::Level;
pub use overflow::{BankSections, Fault, Overflow, OverflowPlan, Volume};
pub use strategy::{DecodeStrategy, PrefillStrategy, hot_slots, of_divisor};

use crate::census::LayersCensus;
use krasis_core::{Act, Mat};
use krasis_ops::{Aide, Bank, Memory, Ops, Paper, Routes};
use std::ops::Range;

/// Where the routed experts of each layer lie; none for dense layers.
pub enum Experts {
    /// In the device's memory, all of them.
    Device(Vec<Option<Bank>>, Option<Asked>),
    /// In host memory.
    Away(Box<Away>),
    /// On the disk.
    Overflow(Box<Overflow>),
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
    /// All of it, with room in host memory for what the CPU is asked: few rows. Which calls it is made of
    /// depends on the strategy.
    StepOfFew(DecodeStrategy),
    /// What comes between the experts of two layers.
    Between,
}

/// The host's part of a step.
impl Aide for Experts {
    fn desk(&mut self) -> (&mut Vec<u32>, &mut Vec<f32>) {
        match self {
            Experts::Away(away) => away.desk(),
            _ => unreachable!("the device computes all experts"),
        }
    }

    fn answer(&mut self, number: usize, paper: &Paper) -> &[u32] {
        match self {
            Experts::Away(away) => away.answer(number, paper),
            _ => unreachable!("the device computes all experts"),
        }
    }
}

impl Experts {
    /// The banks of all layers, wherever they lie.
    pub fn banks(&self) -> &[Option<Bank>] {
        match self {
            Experts::Device(banks, _) => banks,
            Experts::Away(away) => away.banks(),
            Experts::Overflow(overflow) => overflow.banks(),
        }
    }

    /// What has been copied and computed where; nothing to tell if all lie on the device.
    pub fn traffic(&self) -> Traffic {
        match self {
            Experts::Device(..) => Traffic::default(),
            Experts::Away(away) => away.traffic(),
            Experts::Overflow(overflow) => overflow.traffic(),
        }
    }

    /// A pass over so many rows begins: how many groups of layers it takes one after the other.
    pub fn begin(&mut self, rows: u32) -> usize {
        match self {
            Experts::Device(..) => 1,
            Experts::Away(away) => away.begin(rows),
            Experts::Overflow(overflow) => overflow.begin(rows),
        }
    }

    /// A pass begins between whose groups there may be others, until [`Experts::close`].
    pub fn open(&mut self, rows: u32) -> usize {
        match self {
            Experts::Device(..) => 1,
            Experts::Away(away) => away.open(rows),
            Experts::Overflow(overflow) => overflow.open(rows),
        }
    }

    /// There will be no more of its groups.
    pub fn close(&mut self) {
        if let Experts::Away(away) = self {
            away.close();
        }
    }

    /// The same where nobody wants what has come of them.
    pub fn give_up<D: Memory>(&mut self, d: &mut D) {
        match self {
            Experts::Overflow(overflow) => overflow.give_up(d),
            _ => self.close(),
        }
    }

    /// Layers of a group, whose experts are brought if they are to be here before anyone asks.
    pub fn enter<D: Memory>(&mut self, d: &mut D, helpers: &mut [D], group: usize) -> Range<usize> {
        match self {
            Experts::Device(banks, _) => 0..banks.len(),
            Experts::Away(away) => away.enter(d, helpers, group),
            Experts::Overflow(overflow) => overflow.enter(group),
        }
    }

    /// What a device may remember of a step that decodes.
    pub fn repeats(&self) -> Repeats {
        match self {
            Experts::Device(..) => Repeats::Step,
            Experts::Away(away) => away.repeats(),
            Experts::Overflow(_) => Repeats::Between,
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
            Experts::Overflow(overflow) => overflow.run(d, layer, work),
        }
    }

    /// Goes on with another strategy for few rows; see [`Away::switch`]. There is none where the device
    /// has all experts.
    pub fn switch(&mut self, decode: DecodeStrategy, threshold: u32) -> bool {
        match self {
            Experts::Away(away) => away.switch(decode, threshold),
            _ => false,
        }
    }

    /// The pass is over.
    pub fn end<D: Memory>(&mut self, d: &mut D) {
        match self {
            Experts::Device(..) => {}
            Experts::Away(away) => away.end(d),
            Experts::Overflow(overflow) => overflow.end(d),
        }
    }

    /// Where it is said that a step failed, if it can.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Experts::Overflow(overflow) => Some(overflow.fault()),
            _ => None,
        }
    }
}

impl Asked {
    /// For passes of so many pairs of tokens and experts at most: a decode step allocates nothing.
    pub fn new(census: LayersCensus, pairs_max: u32) -> Asked {
        Asked { census, chosen: Vec::with_capacity(pairs_max as usize) }
    }
}
