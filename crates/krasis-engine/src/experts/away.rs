//! Experts in host memory, and the slots of the device that hold some of them.

pub(super) mod helpers;
mod swap;
mod together;

use self::helpers::{Counter, Helper, HelperPlan, Whose};
use super::Work;
use super::heat::{Heat, HeatMap};
use super::slots::Slots;
use super::strategy::{DecodeStrategy, Missing, PrefillStrategy, hot_slots};
use crate::census::LayersCensus;
use krasis_core::{Act, Layout, Mat, Slot};
use krasis_cpu::Keep;
use krasis_ops::{ABSENT, Bank, Cpu, Memory, Ops, Routes};
use std::ops::Range;

/// How much hotter an expert has to be than one that is kept: copies are not for nothing.
const HOTTER: f32 = 1.25;

/// Where everything lies, and what is done with it.
pub struct AwayPlan {
    /// For prompts.
    pub prefill: PrefillStrategy,
    /// For few rows.
    pub decode: DecodeStrategy,
    /// Rows from which a pass is a prompt's.
    pub threshold: u32,
    /// Slots on the device: experts of any layer.
    pub pool: Bank,
    /// `[rows, top_k]` on the device: routes to slots.
    pub places: Slot<u32>,
    /// `[layers, experts]` on the device: the slots of all experts, as far as the device computes them.
    pub tables: Slot<u32>,
    /// How often each expert of each layer has been asked for since the host last looked, on the device.
    pub counts: Slot<u32>,
    /// Slots that prompts need besides those that stay filled.
    pub moving: u32,
    /// Slots that stay filled with the hottest experts.
    pub hot: u32,
    /// Host memory for what the CPU computes.
    pub desk: Desk,
    /// What this device has for others that help with prompts.
    pub counters: Vec<Counter>,
    /// All that there is for them.
    pub helpers: Vec<HelperPlan>,
}

/// The CPU's part of a pass of few rows, in host memory.
#[derive(Clone, Copy, Debug)]
pub struct Desk {
    x: Mat<Act>,
    experts: Slot<u32>,
    weights: Slot<f32>,
    inner: Mat<Act>,
    out: Mat<Act>,
}

impl Desk {
    /// For so many rows.
    pub fn plan(rows: u32, hidden: u32, top_k: u32, inter: u32, layout: &mut Layout) -> Desk {
        let pairs = rows * top_k;
        Desk {
            x: layout.act(rows, hidden),
            experts: layout.slot(u64::from(pairs)),
            weights: layout.slot(u64::from(pairs)),
            inner: layout.act(pairs, inter),
            out: layout.act(pairs, hidden),
        }
    }

    /// Rows that it has room for.
    pub const fn rows(&self) -> u32 {
        self.x.rows
    }
}

/// What has been copied and computed where since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Experts of all layers.
    pub experts: u64,
    /// Experts copied to the device, one as often as it came.
    pub brought: u64,
    /// Pairs of tokens and experts that the device has computed.
    pub on_the_device: u64,
    /// Those that the CPU has computed.
    pub on_the_cpu: u64,
}

/// Of several devices.
impl std::iter::Sum for Traffic {
    fn sum<I: Iterator<Item = Traffic>>(all: I) -> Traffic {
        all.fold(Traffic::default(), |sum, one| Traffic {
            experts: sum.experts + one.experts,
            brought: sum.brought + one.brought,
            on_the_device: sum.on_the_device + one.on_the_device,
            on_the_cpu: sum.on_the_cpu + one.on_the_cpu,
        })
    }
}

/// Experts in host memory.
pub struct Away {
    plan: AwayPlan,
    host: Cpu,
    keep: Keep,
    /// In host memory.
    banks: Vec<Option<Bank>>,
    /// Layers that a prompt takes together.
    groups: Vec<Range<usize>>,
    /// Layers with experts that come before each layer.
    before: Vec<u32>,
    slots: Slots,
    helpers: Vec<Helper>,
    heat: Heat,
    prompt: bool,
    /// A pass has begun that goes on after the step at work. What it has had brought may still be on its way.
    open: bool,
    /// Experts are on their way that may be asked for before the next group of layers.
    pending: bool,
    /// Layers with experts in order.
    moe: Vec<usize>,
    /// What lies where has changed since the device heard of it.
    moved: bool,
    /// Who each pair of the layer at work is routed to; absent once it is computed.
    left: Vec<u32>,
    /// Experts on their way, with their slots.
    brought: Vec<(u32, u32)>,
    /// Slots whose experts are on their way while steps of few rows do without them.
    coming: Vec<u32>,
    /// Who the CPU had to compute in the step at work: layer and expert.
    wanted: Vec<(u32, u32)>,
    /// Slots to be given to others, with their heat; kept because a decode step allocates nothing.
    coldest: Vec<(f32, u32)>,
    numbers: Vec<f32>,
    /// The slots of all experts, as the device is told.
    told: Vec<u32>,
    traffic: Traffic,
    census: LayersCensus,
}

impl Away {
    /// `banks` lie in the memory of `host` and are filled; who is asked for is counted in `census`.
    pub fn new(plan: AwayPlan, host: Cpu, banks: Vec<Option<Bank>>, census: LayersCensus) -> Away {
        let is_moe: Vec<bool> = banks.iter().map(Option::is_some).collect();
        let before = is_moe.iter().scan(0, |count, &moe| {
            *count += u32::from(moe);
            Some(*count - u32::from(moe))
        });
        let (before, moe) = (before.collect(), is_moe.iter().filter(|&&moe| moe).count() as u32);
        let experts = banks.iter().flatten().next().map_or(0, |bank| bank.experts);
        Away {
            groups: plan.prefill.groups(&is_moe),
            before,
            slots: Slots::new(moe, experts, plan.pool.experts),
            helpers: plan.helpers.iter().map(|plan| Helper::new(*plan, moe, experts)).collect(),
            heat: Heat::new(moe, experts),
            prompt: false,
            open: false,
            pending: false,
            moe: (0..banks.len()).filter(|&layer| is_moe[layer]).collect(),
            moved: true,
            left: Vec::new(),
            brought: Vec::new(),
            coming: Vec::new(),
            wanted: Vec::new(),
            coldest: Vec::new(),
            numbers: Vec::new(),
            told: Vec::new(),
            traffic: Traffic { experts: u64::from(moe * experts), ..Traffic::default() },
            plan,
            keep: host.keep(),
            host,
            banks,
            census,
        }
    }

    pub(super) fn banks(&self) -> &[Option<Bank>] {
        &self.banks
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Begins with the heat of other runs; false if that is of another model's layers.
    pub fn remember(&mut self, map: &HeatMap) -> bool {
        let Desk { x, out, .. } = self.plan.desk;
        self.heat.remember(map, out.rows / x.rows)
    }

    /// Fills the slots that are to be hot with what was hot in other runs, and as long as nobody knows
    /// with the first experts of each layer.
    pub fn warm_up<D: Memory>(&mut self, d: &mut D) {
        d.upload(self.plan.counts, &vec![0; self.plan.counts.len as usize]);
        let hottest = self.heat.hottest_of_all(self.plan.hot as usize);
        let mut slots = 0..;
        for of_layer in hottest.chunk_by(|a, b| a.0 == b.0) {
            self.brought.clear();
            for (&(index, expert), slot) in of_layer.iter().zip(&mut slots) {
                self.slots.put(slot, index, expert);
                self.slots.set_hot(slot, true);
                self.brought.push((expert, slot));
            }
            self.copy(d, self.moe[of_layer[0].0 as usize]);
        }
    }

    /// What is done from the next pass on, and the rows from which that is a prompt's. False, and all is
    /// as it was, if there is no room for that.
    pub fn switch(&mut self, decode: DecodeStrategy, threshold: u32) -> bool {
        let (slots, layers) = (self.plan.pool.experts, self.groups_of_slots());
        let room = threshold <= self.plan.desk.rows() + 1;
        if !room || (decode == DecodeStrategy::Compact && slots < layers) {
            return false;
        }
        let hot = hot_slots(self.plan.prefill, decode, slots, self.plan.moving);
        let mut by_heat: Vec<(f32, u32)> =
            self.slots.all().map(|slot| (self.heat_in(slot), slot)).collect();
        by_heat.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (rank, &(_, slot)) in by_heat.iter().enumerate() {
            self.slots.set_hot(slot, rank < hot as usize);
        }
        (self.plan.decode, self.plan.hot) = (decode, hot);
        self.plan.threshold = threshold.max(1);
        self.moved = true;
        true
    }

    /// How hot who lies in a slot is.
    fn heat_in(&self, slot: u32) -> f32 {
        self.slots.holder(slot).map_or(0.0, |(layer, expert)| self.heat.of(layer, expert))
    }

    pub(super) fn begin(&mut self, rows: u32) -> usize {
        self.prompt = rows >= self.plan.threshold || rows > self.plan.desk.rows();
        if self.takes_groups() { self.groups.len() } else { 1 }
    }

    pub(super) fn open(&mut self, rows: u32) -> usize {
        self.open = true;
        self.begin(rows)
    }

    pub(super) fn close(&mut self) {
        self.open = false;
        // More is here than the device was told of meanwhile.
        (self.moved, self.pending) = (true, true);
    }

    fn takes_groups(&self) -> bool {
        self.prompt && self.plan.prefill.by_layers()
    }

    pub(super) fn enter<D: Memory>(
        &mut self,
        d: &mut D,
        helpers: &mut [D],
        group: usize,
    ) -> Range<usize> {
        if !self.takes_groups() {
            // Whatever is found in a slot is used.
            let coming = self.open || !self.coming.is_empty();
            self.pending |= coming && !self.asks_the_cpu();
            if self.asks_the_cpu() {
                self.receive(d);
                self.tell(d);
            }
            return 0..self.banks.len();
        }
        self.moved = true;
        let layers = self.groups[group].clone();
        self.bring_layers(d, layers.clone(), layers.clone());
        self.bring_to_helpers(helpers, layers.clone(), layers.clone());
        self.pending = true;
        self.receive(d);
        helpers.iter_mut().for_each(Memory::brought);
        // While these layers are at work, the next ones come, if there is room for both.
        if let Some(next) = self.groups.get(group + 1).cloned() {
            let both = layers.start..next.end;
            if self.moving() >= self.missing_of(both.clone()) {
                self.bring_layers(d, next.clone(), both.clone());
                self.pending = false;
            }
            self.bring_to_helpers(helpers, next, both);
        }
        layers
    }

    /// Slots that are not kept for hot experts.
    fn moving(&self) -> usize {
        self.slots.all().filter(|&slot| !self.slots.is_hot(slot)).count()
    }

    /// Experts of these layers that are not in hot slots, nor others' to bring.
    fn missing_of(&self, layers: Range<usize>) -> usize {
        let owner = self.owners();
        let cold = |index, expert| {
            !self.slots.find(index, expert).is_some_and(|slot| self.slots.is_hot(slot))
        };
        let of = |layer: usize| {
            let experts = self.banks[layer].map_or(0, |bank| bank.experts);
            let mine = (0..experts).filter(|&expert| owner(expert) == 0);
            mine.filter(|&expert| cold(self.before[layer], expert)).count()
        };
        layers.map(of).sum()
    }

    /// Brings all experts of some layers that are not here nor others' to bring, into slots of none of the layers in
    /// `stay`.
    fn bring_layers<D: Memory>(&mut self, d: &mut D, layers: Range<usize>, stay: Range<usize>) {
        let stay = self.moe_before(stay.start)..self.moe_before(stay.end);
        let mut free = 0;
        let owner = self.owners();
        for layer in layers {
            let Some(bank) = self.banks[layer] else { continue };
            let index = self.before[layer];
            self.brought.clear();
            for expert in (0..bank.experts).filter(|&expert| owner(expert) == 0) {
                if self.slots.find(index, expert).is_some() {
                    continue;
                }
                // In order, so that neighbours become one copy.
                let stays = |slot| {
                    let needed = |(of, it)| stay.contains(&of) && owner(it) == 0;
                    self.slots.is_hot(slot) || self.slots.holder(slot).is_some_and(needed)
                };
                free = (free..).find(|&slot| !stays(slot)).expect("numbers do not end");
                self.slots.put(free, index, expert);
                self.brought.push((expert, free));
            }
            self.copy(d, layer);
        }
    }

    fn moe_before(&self, layer: usize) -> u32 {
        let last = self.banks[..layer].iter().rposition(Option::is_some);
        last.map_or(0, |last| self.before[last] + 1)
    }

    pub(super) fn run<D: Ops + Memory>(
        &mut self,
        d: &mut D,
        helpers: &mut [D],
        layer: usize,
        work: Work,
    ) {
        if self.banks[layer].is_none() {
            return;
        }
        let index = self.before[layer];
        if self.takes_groups() {
            return self.compute_all(d, helpers, index, work);
        }
        if self.asks_the_cpu() {
            return self.compute_together(d, index, work);
        }
        d.download_to(work.routes.experts.whole(), &mut self.left);
        self.heat.note(index, &self.left);
        self.census.note(layer, &self.left);
        self.compute_here(d, index, work);
        match if self.prompt { self.plan.prefill.missing() } else { Missing::Routed } {
            Missing::Routed => {
                while self.bring_routed(d, layer) {
                    self.compute_here(d, index, work);
                }
            }
            Missing::All => {
                let mut next = 0;
                while self.bring_from(d, layer, &mut next) {
                    self.compute_here(d, index, work);
                }
            }
        }
        let forgotten = self.left.iter().filter(|&&expert| expert != ABSENT).count();
        assert_eq!(forgotten, 0, "pairs of layer {layer} that nobody has computed");
        if self.prompt && self.plan.hot > 0 {
            self.promote(index);
        }
    }

    /// Has the devices compute a layer that is all there. They look up by themselves where experts lie, so
    /// that nobody waits for them, unless some are to become hot.
    fn compute_all<D: Ops + Memory>(
        &mut self,
        d: &mut D,
        helpers: &mut [D],
        index: u32,
        work: Work,
    ) {
        let (routes, bank) = (work.routes, self.plan.pool);
        let tables = self.of_layers(self.plan.tables, index..index + 1);
        let table: Vec<u32> = (0..tables.len as u32)
            .map(|expert| match self.whose(index, expert) {
                Whose::Ours(slot) => slot,
                Whose::Helpers(..) => ABSENT,
            })
            .collect();
        d.upload(tables, &table);
        let counts = self.of_layers(self.plan.counts, index..index + 1);
        let places = self.places(&routes);
        d.place(routes.experts, tables, counts, places.whole());
        self.ask_helpers(d, helpers, index, work);
        d.experts(work.x, Routes { experts: places, ..routes }, &bank, work.inner, work.out);
        self.take_from_helpers(d, helpers, work);
        self.traffic.on_the_device += places.whole().len;
        if self.plan.hot > 0 {
            self.hear_counts(d, index..index + 1);
            self.promote(index);
        }
    }

    /// The part of a list of all experts that is about some layers.
    fn of_layers(&self, all: Slot<u32>, layers: Range<u32>) -> Slot<u32> {
        let each = all.len / u64::from(self.groups_of_slots());
        let start = all.start + u64::from(layers.start) * each * 4;
        Slot::new(start, u64::from(layers.end - layers.start) * each)
    }

    /// Notes what the device has counted, which begins again at nothing.
    fn hear_counts<D: Memory>(&mut self, d: &mut D, layers: Range<u32>) {
        let at = self.of_layers(self.plan.counts, layers.clone());
        d.download_to(at, &mut self.left);
        self.heat.note_counts(layers.start, &self.left);
        let each = self.left.len() / layers.len();
        for (index, counts) in layers.zip(self.left.chunks_exact(each)) {
            self.census.note_counts(self.moe[index as usize], counts);
        }
        self.left.fill(0);
        d.upload(at, &self.left);
        self.left.clear();
    }

    /// Routes of a step as slots.
    fn places(&self, routes: &Routes) -> Mat<u32> {
        let Mat { rows, cols, .. } = routes.experts;
        Mat::new(Slot::new(self.plan.places.start, u64::from(rows * cols)), rows, cols)
    }

    /// Has the device compute what is left and lies there.
    fn compute_here<D: Ops + Memory>(&mut self, d: &mut D, index: u32, work: Work) {
        let mut here = 0;
        let places: Vec<u32> = self
            .left
            .iter_mut()
            .map(|expert| {
                if *expert == ABSENT {
                    return ABSENT;
                }
                let Some(slot) = self.slots.find(index, *expert) else { return ABSENT };
                self.slots.touch(slot);
                *expert = ABSENT;
                here += 1;
                slot
            })
            .collect();
        self.traffic.on_the_device += here;
        if here > 0 {
            self.receive(d);
            let routes = work.routes;
            let experts = self.places(&routes);
            d.upload(self.plan.places, &places);
            d.experts(work.x, Routes { experts, ..routes }, &self.plan.pool, work.inner, work.out);
        }
    }

    /// Brings experts that pairs are left for, as many as there are slots; false if none is.
    fn bring_routed<D: Memory>(&mut self, d: &mut D, layer: usize) -> bool {
        let index = self.before[layer];
        let (since, area) = (self.slots.now(), self.area(index));
        self.brought.clear();
        for &expert in self.left.iter().filter(|&&expert| expert != ABSENT) {
            if self.slots.find(index, expert).is_some() {
                continue;
            }
            // All of a layer's own may be hot.
            let own = self.slots.oldest(area.clone(), since);
            let Some(slot) = own.or_else(|| self.slots.oldest(self.slots.all(), since)) else {
                break;
            };
            self.slots.put(slot, index, expert);
            self.brought.push((expert, slot));
        }
        self.copy(d, layer);
        !self.brought.is_empty()
    }

    /// Brings experts from number `next` on, as many as there are slots; false if there are no more.
    fn bring_from<D: Memory>(&mut self, d: &mut D, layer: usize, next: &mut u32) -> bool {
        let index = self.before[layer];
        let (since, area) = (self.slots.now(), self.area(index));
        let experts = self.banks[layer].map_or(0, |bank| bank.experts);
        self.brought.clear();
        while *next < experts {
            if self.slots.find(index, *next).is_none() {
                let Some(slot) = self.slots.oldest(area.clone(), since) else { break };
                self.slots.put(slot, index, *next);
                self.brought.push((*next, slot));
            }
            *next += 1;
        }
        self.copy(d, layer);
        !self.brought.is_empty()
    }

    /// Slots that a layer's missing experts may take.
    fn area(&self, index: u32) -> Range<u32> {
        let all = self.slots.all();
        if self.prompt || self.plan.decode != DecodeStrategy::Compact {
            return all;
        }
        let each = all.end / self.groups_of_slots();
        index * each..(index + 1) * each
    }

    fn groups_of_slots(&self) -> u32 {
        self.moe_before(self.banks.len()).max(1)
    }

    /// Copies what is brought.
    fn copy<D: Memory>(&mut self, d: &mut D, layer: usize) {
        self.brought.sort_unstable();
        self.copy_to(d, &self.plan.pool, layer);
        self.traffic.brought += self.brought.len() as u64;
        self.pending |= !self.brought.is_empty();
        self.moved |= !self.brought.is_empty();
    }

    /// Copies what is brought to slots of a device: neighbours together, and all of it at once, because a
    /// bus that is given one piece at a time rests between them.
    fn copy_to<D: Memory>(&self, d: &mut D, pool: &Bank, layer: usize) {
        let Some(bank) = &self.banks[layer] else { return };
        if self.brought.is_empty() {
            return;
        }
        let neighbours = |a: &(u32, u32), b: &(u32, u32)| (a.0 + 1, a.1 + 1) == *b;
        let pieces = self.brought.chunk_by(neighbours).flat_map(|run| {
            let ((expert, slot), count) = (run[0], run.len() as u32);
            bank.slots(expert, count).into_iter().zip(pool.slots(slot, count))
        });
        let pieces = pieces.filter(|(from, _)| !from.is_empty());
        d.bring(pieces.map(|(from, to)| (to, self.host.bytes(from))), &self.keep);
    }

    /// Waits for what is on its way, as far as anybody may ask for it.
    fn receive<D: Memory>(&mut self, d: &mut D) {
        if std::mem::take(&mut self.pending) {
            self.arrive(d);
        }
    }

    /// From here on all that was brought is there.
    fn arrive<D: Memory>(&mut self, d: &mut D) {
        d.brought();
        self.moved |= !self.coming.is_empty();
        self.coming.clear();
    }

    /// Keeps the hottest experts of a layer that are here, in the place of colder ones.
    fn promote(&mut self, index: u32) {
        let by_heat = |hot: bool| -> Vec<(f32, u32)> {
            let counts = |&slot: &u32| match hot {
                true => self.slots.is_hot(slot),
                false => {
                    let holder = self.slots.holder(slot);
                    !self.slots.is_hot(slot) && holder.is_some_and(|(of, _)| of == index)
                }
            };
            self.slots.all().filter(counts).map(|slot| (self.heat_in(slot), slot)).collect()
        };
        let (mut coldest, mut hottest) = (by_heat(true), by_heat(false));
        coldest.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        hottest.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        for ((cold, old), (hot, new)) in coldest.into_iter().zip(hottest) {
            if hot <= HOTTER * cold {
                break;
            }
            self.slots.set_hot(old, false);
            self.slots.set_hot(new, true);
        }
    }

    pub(super) fn end<D: Memory>(&mut self, d: &mut D) {
        let idle = !self.prompt && !self.open;
        if idle && self.plan.decode == DecodeStrategy::HcsHybrid {
            self.swap(d);
        }
        if self.takes_groups() && self.plan.hot == 0 {
            self.hear_counts(d, 0..self.groups_of_slots());
        }
        self.wanted.clear();
        self.heat.cool();
    }
}
