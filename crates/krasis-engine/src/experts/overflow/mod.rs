//! Experts of a model that is larger than memory: all of them are on the disk, in the cache of quantised
//! weights, and slots in memory hold the hottest.
//!
//! When a layer's routes are known, what is missing is asked of the disk at once, straight into slots, and
//! what is there is computed meanwhile; then what has come, wave by wave, until nothing is left. Prompts go
//! through a layer with all of a pass before the next, so that an expert is read once for it; they ask for
//! nearly all experts, so those of the next layer are on their way before it begins. The coldest make room,
//! and among equals those whose layer comes last.

mod fault;
mod order;
mod readers;
mod volume;

pub use fault::Fault;
pub use volume::{BankSections, Volume};

use super::Work;
use super::away::Traffic;
use super::heat::Heat;
use super::slots::Slots;
use super::strategy::PrefillStrategy;
use crate::census::ExpertCensus;
use krasis_checkpoint::cache::CacheError;
use krasis_core::{Bytes, Mat, Slot};
use krasis_ops::{ABSENT, Bank, Memory, Ops, Routes};
use readers::{Done, Readers, Turn};
use std::ops::Range;
use std::sync::Arc;

/// A pass asks for a whole layer if it has so many routes for each expert: 2 % of them go without then, if
/// all are equally popular.
const ROUTES_FOR_ALL: usize = 4;

/// Rows from which a pass is a prompt's.
const PROMPT_ROWS: u32 = 16;

/// Errands that are on their way at a time before anybody asks.
const FILLED_TOGETHER: usize = 64;

/// Where experts lie.
#[derive(Clone, Debug)]
pub struct OverflowPlan {
    /// Slots: experts of any layer.
    pub pool: Bank,
    /// `[rows, top_k]`: routes to slots.
    pub places: Slot<u32>,
    /// Experts of all layers.
    pub experts: u32,
    /// What one of them takes.
    pub expert_bytes: Bytes,
}

impl OverflowPlan {
    /// What all experts take.
    pub fn all(&self) -> Bytes {
        Bytes(self.expert_bytes.0 * u64::from(self.experts))
    }

    /// What the slots take.
    pub fn held(&self) -> Bytes {
        Bytes(self.expert_bytes.0 * u64::from(self.pool.experts))
    }
}

/// Experts on the disk, with slots in memory.
pub struct Overflow {
    plan: OverflowPlan,
    /// Of each layer, as they lie in the file; none for dense layers.
    banks: Vec<Option<Bank>>,
    /// Layers with experts that come before each layer, and all of them.
    before: Vec<u32>,
    moe: u32,
    volume: Arc<Volume>,
    readers: Readers,
    slots: Slots,
    /// Parts of each slot's expert that are on their way.
    coming: Vec<u8>,
    /// Errands that are on their way.
    errands: usize,
    heat: Heat,
    /// Layers that a prompt takes together: one with experts.
    groups: Vec<Range<usize>>,
    prompt: bool,
    /// Rows of the pass, and those that the layer at work has seen.
    rows: u32,
    seen: u32,
    /// How often each expert of each layer was asked for in this pass, if it is a prompt's.
    asked: Vec<u32>,
    /// Who each pair of the layer at work is routed to; absent once it is computed.
    left: Vec<u32>,
    /// Experts of that layer with pairs that are left, and the same by number.
    wanted: Vec<u32>,
    is_wanted: Vec<bool>,
    places: Vec<u32>,
    /// Slots that may be given away, the best last.
    spare: Vec<u32>,
    traffic: Traffic,
    census: Arc<ExpertCensus>,
    fault: Fault,
}

impl Overflow {
    /// `banks` say how many experts each layer has, and `volume` where they are.
    pub fn new(
        plan: OverflowPlan,
        banks: Vec<Option<Bank>>,
        volume: Volume,
        census: Arc<ExpertCensus>,
    ) -> std::io::Result<Overflow> {
        let before = banks.iter().scan(0, |count, bank| {
            *count += u32::from(bank.is_some());
            Some(*count - u32::from(bank.is_some()))
        });
        let (before, volume) = (before.collect(), Arc::new(volume));
        let is_moe: Vec<bool> = banks.iter().map(Option::is_some).collect();
        let moe = banks.iter().flatten().count() as u32;
        let experts = banks.iter().flatten().next().map_or(0, |bank| bank.experts);
        Ok(Overflow {
            before,
            moe,
            readers: Readers::start(&volume)?,
            volume,
            slots: Slots::new(moe, experts, plan.pool.experts),
            coming: vec![0; plan.pool.experts as usize],
            errands: 0,
            heat: Heat::new(moe, experts),
            groups: PrefillStrategy::HcsPrefill.groups(&is_moe),
            prompt: false,
            rows: 0,
            seen: 0,
            asked: vec![0; (moe * experts) as usize],
            left: Vec::new(),
            wanted: Vec::new(),
            is_wanted: vec![false; experts as usize],
            places: Vec::new(),
            spare: Vec::new(),
            traffic: Traffic { experts: u64::from(moe * experts), ..Traffic::default() },
            plan,
            banks,
            census,
            fault: Fault::default(),
        })
    }

    /// Where it is said that a step failed.
    pub fn fault(&self) -> Fault {
        self.fault.clone()
    }

    /// Where experts come from.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    pub(super) fn banks(&self) -> &[Option<Bank>] {
        &self.banks
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Fills all slots before anyone knows who is hot: of each layer the first. `read` hears how many
    /// bytes more are there.
    pub fn warm_up<D: Memory>(&mut self, d: &mut D, read: impl Fn(u64)) -> Result<(), CacheError> {
        let (slots, experts) = (self.slots.all(), self.is_wanted.len() as u32);
        let each = slots.end.div_ceil(self.moe.max(1)).min(experts).max(1);
        let mut result = Ok(());
        for slot in slots.clone() {
            if slot / each < self.moe && result.is_ok() {
                self.order(d, Turn::Now, slot, slot / each, slot % each);
            }
            let most = if slot + 1 == slots.end { 0 } else { FILLED_TOGETHER };
            while self.errands > most {
                let done = self.readers.wait();
                read(self.plan.pool.slots(done.slot, 1)[done.place].len);
                result = result.and(self.receive(d, done));
            }
        }
        result
    }

    /// The same for a pass between whose groups there may be others; the last one may have been given up.
    pub(super) fn open(&mut self, rows: u32) -> usize {
        self.asked.fill(0);
        self.begin(rows)
    }

    /// A pass over so many rows begins: how many groups of layers it takes one after the other.
    pub(super) fn begin(&mut self, rows: u32) -> usize {
        self.prompt = rows >= PROMPT_ROWS;
        self.rows = rows;
        if self.prompt { self.groups.len() } else { 1 }
    }

    /// Layers of a group.
    pub(super) fn enter(&mut self, group: usize) -> Range<usize> {
        self.seen = 0;
        if self.prompt { self.groups[group].clone() } else { 0..self.banks.len() }
    }

    /// Whether more rows will come to the layer at work.
    fn goes_on(&self) -> bool {
        self.prompt && self.seen < self.rows
    }

    /// The pass is over.
    pub(super) fn end<D: Memory>(&mut self, d: &mut D) {
        if self.fault.is_set() {
            self.forget(d);
        }
        // Noted layer by layer, a prompt would make those that come next look cold.
        if self.prompt {
            self.heat.note_counts(0, &self.asked);
            self.asked.fill(0);
        }
        self.heat.cool();
    }

    /// The pass is over before its end.
    pub(super) fn give_up<D: Memory>(&mut self, d: &mut D) {
        self.asked.fill(0);
        self.forget(d);
    }

    /// Takes what is on its way, whatever becomes of it: some may have failed as well, and the next step is
    /// not to hear of that.
    fn forget<D: Memory>(&mut self, d: &mut D) {
        while self.errands > 0 {
            let done = self.readers.wait();
            let _ = self.receive(d, done);
        }
    }

    pub(super) fn run<D: Ops + Memory>(&mut self, d: &mut D, layer: usize, work: Work) {
        // Nobody will hear of a step that has failed.
        if self.banks[layer].is_none() || self.fault.is_set() {
            return;
        }
        let index = self.before[layer];
        d.download_to(work.routes.experts.whole(), &mut self.left);
        self.census.note(layer, &self.left);
        self.note(index);
        while let Some(done) = self.readers.poll() {
            self.hear(d, index, done);
        }
        let Mat { rows, cols, .. } = work.routes.experts;
        let routes = (self.rows * cols) as usize;
        let mut ahead =
            self.prompt && self.seen == 0 && routes >= ROUTES_FOR_ALL * self.is_wanted.len();
        self.seen += rows;
        while !self.wanted.is_empty() && !self.fault.is_set() {
            let all = self.order_wanted(d, index);
            if all && std::mem::take(&mut ahead) && index + 1 < self.moe {
                self.order_ahead(d, index + 1);
            }
            if !self.compute(d, index, work) {
                self.wait(d, index);
            }
        }
        self.wanted.drain(..).for_each(|expert| self.is_wanted[expert as usize] = false);
    }

    /// Notes who is asked for.
    fn note(&mut self, index: u32) {
        let experts = self.is_wanted.len();
        if self.prompt {
            let asked = &mut self.asked[index as usize * experts..][..experts];
            self.left.iter().for_each(|&expert| asked[expert as usize] += 1);
        } else {
            self.heat.note(index, &self.left);
        }
        for &expert in &self.left {
            if !std::mem::replace(&mut self.is_wanted[expert as usize], true) {
                self.wanted.push(expert);
            }
        }
    }

    /// Waits until half of what a layer lacks has come. Waves of few experts are no faster than larger ones
    /// while the disk is at work.
    fn wait<D: Memory>(&mut self, d: &mut D, index: u32) {
        let Overflow { wanted, slots, coming, .. } = &*self;
        let is_coming = |&&expert: &&u32| {
            slots.find(index, expert).is_some_and(|slot| coming[slot as usize] > 0)
        };
        let enough = wanted.iter().filter(is_coming).count().div_ceil(2);
        let mut come = 0;
        loop {
            assert!(
                self.errands > 0,
                "experts of layer {index} are wanted, and none is on its way"
            );
            let done = self.readers.wait();
            let slot = done.slot;
            self.hear(d, index, done);
            let ours = self.slots.holder(slot).is_some_and(|(of, _)| of == index);
            come += usize::from(ours && self.coming[slot as usize] == 0);
            // With no expert of this layer on its way, any slot that becomes free will do.
            if come >= enough || self.fault.is_set() {
                return;
            }
        }
    }

    /// Takes what has come. What a layer lacks then fails the step; what it does not need is asked for
    /// again by whoever does.
    fn hear<D: Memory>(&mut self, d: &mut D, index: u32, done: Done) {
        let holder = self.slots.holder(done.slot);
        let wanted =
            holder.is_some_and(|(of, expert)| of == index && self.is_wanted[expert as usize]);
        match self.receive(d, done) {
            Ok(()) => {}
            Err(error) if !wanted => tracing::warn!("{error}"),
            Err(error) => self.fault.set(format!(
                "an expert could not be read from the disk: {error}; if that goes on, start again with \
                 --force-load, which makes the file anew"
            )),
        }
    }

    /// Puts what has come into its place. An expert of which some part is missing is not there.
    fn receive<D: Memory>(&mut self, d: &mut D, done: Done) -> Result<(), CacheError> {
        let Done { slot, place, room, result } = done;
        d.take_back(self.plan.pool.slots(slot, 1)[place], room);
        self.coming[slot as usize] -= 1;
        self.errands -= 1;
        if result.is_err() {
            self.slots.empty(slot);
        }
        result
    }

    /// Computes what is wanted and here; false if that is nothing.
    fn compute<D: Ops + Memory>(&mut self, d: &mut D, index: u32, work: Work) -> bool {
        let Overflow { left, slots, coming, .. } = self;
        let mut here = 0;
        self.places.clear();
        self.places.extend(left.iter_mut().map(|expert| {
            if *expert == ABSENT {
                return ABSENT;
            }
            match slots.find(index, *expert).filter(|&slot| coming[slot as usize] == 0) {
                Some(slot) => {
                    *expert = ABSENT;
                    here += 1;
                    slot
                }
                None => ABSENT,
            }
        }));
        if here == 0 {
            return false;
        }
        let is_wanted = &mut self.is_wanted;
        self.wanted.retain(|&expert| {
            let there = slots.find(index, expert).is_some_and(|slot| coming[slot as usize] == 0);
            is_wanted[expert as usize] = !there;
            !there
        });
        self.traffic.on_the_device += here;
        let Mat { rows, cols, .. } = work.routes.experts;
        let places = Slot::new(self.plan.places.start, u64::from(rows * cols));
        d.upload(places, &self.places);
        let routes = Routes { experts: Mat::new(places, rows, cols), ..work.routes };
        d.experts(work.x, routes, &self.plan.pool, work.inner, work.out);
        true
    }

    /// Has some slots lose what they hold, as if others had needed them.
    #[cfg(test)]
    pub(crate) fn evict(&mut self, mut chosen: impl FnMut(u32) -> bool) {
        for slot in self.slots.all() {
            if self.coming[slot as usize] == 0 && chosen(slot) {
                self.slots.empty(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests;
