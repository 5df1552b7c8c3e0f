//! Devices that help with prompts: each brings its part of a layer's experts over its own link, computes the
//! pairs that are routed there, and hands them back. They are what the first device would have computed
//! itself, and it sums them in the same order, so nobody can tell how many there were.

use super::Away;
use crate::experts::Work;
use crate::experts::slots::Slots;
use krasis_core::{Act, Layout, Mat, Slot};
use krasis_ops::{ABSENT, Bank, Memory, Ops, Routes};
use std::ops::Range;

/// Where everything lies for one of them.
#[derive(Clone, Copy, Debug)]
pub struct HelperPlan {
    /// Its slots for experts of any layer.
    pub pool: Bank,
    /// With it: a chunk's rows, who they are routed to there, and what it computes.
    pub there: Bench,
    /// With the first device.
    pub home: Counter,
}

/// A helper's memory for a chunk.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    x: Mat<Act>,
    routes: Routes,
    inner: Mat<Act>,
    out: Mat<Act>,
}

/// What the first device has for a helper.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    /// `[experts]`: the helper's slots of a layer's experts, as far as it computes them.
    table: Slot<u32>,
    /// `[rows, top_k]`: routes as such slots.
    places: Mat<u32>,
    /// `[rows · top_k, hidden]`: what has come back.
    back: Mat<Act>,
}

/// The most that is computed elsewhere at a time.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// Rows.
    pub rows: u32,
    /// Columns of a row.
    pub hidden: u32,
    /// Experts of a row.
    pub top_k: u32,
    /// Experts of a layer.
    pub experts: u32,
    /// Columns within an expert.
    pub inter: u32,
}

impl Chunk {
    /// What the first device has for so many helpers. What comes back has one place, where they take turns.
    pub fn counters(self, helpers: u32, layout: &mut Layout) -> Vec<Counter> {
        let Chunk { rows, hidden, top_k, experts, .. } = self;
        let mut back = None;
        let counter = |_| {
            let back = *back.get_or_insert_with(|| layout.act(rows * top_k, hidden));
            let table = layout.slot(u64::from(experts));
            Counter { table, places: layout.mat(rows, top_k), back }
        };
        (0..helpers).map(counter).collect()
    }

    /// What a helper has.
    pub fn bench(self, layout: &mut Layout) -> Bench {
        let Chunk { rows, hidden, top_k, inter, .. } = self;
        Bench {
            x: layout.act(rows, hidden),
            routes: Routes { experts: layout.mat(rows, top_k), weights: layout.mat(rows, top_k) },
            inner: layout.act(rows * top_k, inter),
            out: layout.act(rows * top_k, hidden),
        }
    }
}

/// One of them at work.
pub struct Helper {
    plan: HelperPlan,
    slots: Slots,
}

/// Where an expert is computed: one device alone, so that each pair is computed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// By the first device, from this slot.
    Ours(u32),
    /// By a helper, the first being 1, from a slot of its own.
    Helpers(u32, u32),
}

/// Which of `devices` brings an expert of `experts`: neighbours are one's, so that they are one copy.
fn owner(expert: u32, experts: u32, devices: u32) -> u32 {
    (u64::from(expert) * u64::from(devices) / u64::from(experts.max(1))) as u32
}

/// Slots in which each device has room for its part of so many layers.
pub fn slots_for(layers: u32, experts: u32, devices: u32) -> u32 {
    layers * experts.div_ceil(devices)
}

impl Away {
    /// Which device brings an expert for a prompt: 0 is the first.
    pub(super) fn owners(&self) -> impl Fn(u32) -> u32 + use<> {
        let devices = 1 + self.helpers.len() as u32;
        let experts = self.plan.tables.len as u32 / self.groups_of_slots();
        move |expert| owner(expert, experts, devices)
    }

    /// Who computes an expert of a layer that is all there.
    pub(super) fn whose(&self, index: u32, expert: u32) -> Whose {
        let here = self.slots.find(index, expert);
        let device = self.owners()(expert);
        let there = device.checked_sub(1).map(|helper| &self.helpers[helper as usize].slots);
        match (here, there.and_then(|slots| slots.find(index, expert))) {
            (Some(slot), _) if device == 0 || self.slots.is_hot(slot) => Whose::Ours(slot),
            (_, Some(slot)) => Whose::Helpers(device, slot),
            (Some(slot), None) => Whose::Ours(slot),
            (None, None) => panic!("expert {expert} of a layer that was brought lies nowhere"),
        }
    }

    /// Has helpers bring their part of some layers, as far as nobody has it, into slots of none of the
    /// layers in `stay`. Who has no room for all of those brings nothing yet.
    pub(super) fn bring_to_helpers<D: Memory>(
        &mut self,
        devices: &mut [D],
        layers: Range<usize>,
        stay: Range<usize>,
    ) {
        let owner = self.owners();
        let stay = self.moe_before(stay.start)..self.moe_before(stay.end);
        let mut helpers = std::mem::take(&mut self.helpers);
        let count = 1 + helpers.len() as u32;
        for (number, (helper, device)) in (1..).zip(helpers.iter_mut().zip(devices)) {
            let Helper { plan, slots } = helper;
            let mut free = 0;
            for layer in layers.clone() {
                let Some(bank) = self.banks[layer] else { continue };
                if slots.all().end < slots_for(stay.end - stay.start, bank.experts, count) {
                    break;
                }
                let index = self.before[layer];
                self.brought.clear();
                for expert in (0..bank.experts).filter(|&expert| owner(expert) == number) {
                    // What the first device has by chance may have to go; what is hot does not.
                    let kept = |slot: &u32| self.slots.is_hot(*slot);
                    let there = slots.find(index, expert);
                    if there.or(self.slots.find(index, expert).filter(kept)).is_some() {
                        continue;
                    }
                    let stays = |slot| slots.holder(slot).is_some_and(|(of, _)| stay.contains(&of));
                    free = (free..).find(|&slot| !stays(slot)).expect("numbers do not end");
                    slots.put(free, index, expert);
                    self.brought.push((expert, free));
                }
                self.copy_to(device, &plan.pool, layer);
                self.traffic.brought += self.brought.len() as u64;
            }
        }
        self.helpers = helpers;
    }

    /// Hands a chunk to the helpers, which compute their part while the first device computes its own.
    pub(super) fn ask_helpers<D: Ops + Memory>(
        &self,
        d: &mut D,
        devices: &mut [D],
        index: u32,
        work: Work,
    ) {
        for (number, (helper, device)) in (1..).zip(self.helpers.iter().zip(devices)) {
            let HelperPlan { pool, there, home } = helper.plan;
            let place = |expert: u32| match self.whose(index, expert) {
                Whose::Helpers(device, slot) if device == number => slot,
                _ => ABSENT,
            };
            let all: Vec<u32> = (0..home.table.len as u32).map(place).collect();
            d.upload(home.table, &all);
            let places = shaped(home.places, &work);
            d.place(work.routes.experts, home.table, Slot::new(0, 0), places.whole());
            let x = there.x.first(work.x.rows);
            let routes = Routes {
                experts: shaped(there.routes.experts, &work),
                weights: shaped(there.routes.weights, &work),
            };
            let lists = (places.whole().bytes(), routes.experts.whole().bytes());
            d.hand_over(device, &[(bytes::<D>(work.x), bytes::<D>(x)), lists]);
            let (inner, out) = (there.inner.first(work.inner.rows), there.out.first(work.out.rows));
            device.experts(x, routes, &pool, inner, out);
        }
    }

    /// Takes back what helpers have computed.
    pub(super) fn take_from_helpers<D: Ops + Memory>(
        &self,
        d: &mut D,
        devices: &mut [D],
        work: Work,
    ) {
        for (helper, device) in self.helpers.iter().zip(devices) {
            let HelperPlan { there, home, .. } = helper.plan;
            let [out, back] = [there.out, home.back].map(|mat| mat.first(work.out.rows));
            device.hand_over(d, &[(bytes::<D>(out), bytes::<D>(back))]);
            d.take_rows(back, shaped(home.places, &work).whole(), work.out);
        }
    }
}

impl HelperPlan {
    /// Asks the first device for what it has to do with a chunk that a helper has a part in.
    pub(crate) fn rehearse<D: Ops>(&self, d: &mut D, work: &Work) {
        let back = self.home.back.first(work.out.rows);
        d.take_rows(back, shaped(self.home.places, work).whole(), work.out);
    }
}

impl Helper {
    pub(super) fn new(plan: HelperPlan, layers: u32, experts: u32) -> Helper {
        Helper { plan, slots: Slots::new(layers, experts, plan.pool.experts) }
    }
}

/// A list in the shape of a chunk's routes: layers may differ in `top_k`.
fn shaped<T>(list: Mat<T>, work: &Work) -> Mat<T> {
    let Mat { rows, cols, .. } = work.routes.experts;
    Mat::new(Slot::new(list.at.start, u64::from(rows * cols)), rows, cols)
}

fn bytes<D: Memory>(mat: Mat<Act>) -> Slot<u8> {
    let Slot { start, len, .. } = mat.whole();
    Slot::new(start, len * u64::from(D::ACT_BYTES))
}

#[cfg(test)]
mod tests {
    use super::{owner, slots_for};

    #[test]
    fn nobody_brings_more_than_there_is_room_for() {
        for (experts, devices) in [(128, 1), (128, 2), (8, 3), (5, 4), (3, 4), (160, 3)] {
            let owners: Vec<u32> = (0..experts).map(|it| owner(it, experts, devices)).collect();
            let most = slots_for(1, experts, devices) as usize;
            let of = |device| owners.iter().filter(|&&owner| owner == device).count();
            assert!((0..devices).all(|device| of(device) <= most), "{owners:?}");
            assert!(owners.is_sorted() && owners.iter().all(|&owner| owner < devices));
        }
    }
}
