//! Steps of few rows: the device computes experts that lie there, and the CPU the others at the same time.

use super::{Away, Desk};
use crate::experts::strategy::DecodeStrategy;
use crate::experts::{Repeats, Work};
use krasis_core::{Mat, Slot};
use krasis_ops::{ABSENT, Aide, Memory, Ops, Paper, Question, Routes};

impl Away {
    /// Whether the CPU computes what the device does not.
    pub(super) fn asks_the_cpu(&self) -> bool {
        !self.prompt && self.plan.decode.asks_the_cpu()
    }

    pub(in crate::experts) fn repeats(&self) -> Repeats {
        if self.asks_the_cpu() { Repeats::StepOfFew(self.plan.decode) } else { Repeats::Between }
    }

    /// Where the device computes an expert; nowhere if the CPU does.
    fn here(&self, index: u32, expert: u32) -> Option<u32> {
        self.slots.find(index, expert).filter(|&slot| self.is_there(slot))
    }

    /// Whether the device may use what lies in a slot. Beside an open pass these are hot ones alone: others
    /// may still be on their way.
    fn is_there(&self, slot: u32) -> bool {
        self.plan.decode == DecodeStrategy::HcsHybrid
            && (!self.open || self.slots.is_hot(slot))
            && !self.coming.contains(&slot)
    }

    /// Tells the device what it computes, if that has changed.
    pub(super) fn tell<D: Memory>(&mut self, d: &mut D) {
        if !std::mem::take(&mut self.moved) {
            return;
        }
        let each = self.plan.tables.len as u32 / self.groups_of_slots();
        let mut told = std::mem::take(&mut self.told);
        told.clear();
        told.resize(self.plan.tables.len as usize, ABSENT);
        for slot in self.slots.all().filter(|&slot| self.is_there(slot)) {
            if let Some((index, expert)) = self.slots.holder(slot) {
                told[(index * each + expert) as usize] = slot;
            }
        }
        d.upload(self.plan.tables, &told);
        self.told = told;
    }

    /// Has the device compute what lies there, and the CPU the rest meanwhile. Nothing here depends on
    /// where experts lie or on what is asked for, so that the device can remember all of it.
    pub(super) fn compute_together<D: Ops + Memory>(&mut self, d: &mut D, index: u32, work: Work) {
        let (routes, places) = (work.routes, self.places(&work.routes));
        let question = Question {
            number: index as usize,
            routes: routes.experts.whole(),
            x: work.x,
            places: places.whole(),
            out: work.out,
        };
        d.ask(self, &question);
        let table = self.of_layers(self.plan.tables, index..index + 1);
        d.place(routes.experts, table, Slot::new(0, 0), places.whole());
        if self.plan.decode == DecodeStrategy::HcsHybrid {
            let here = Routes { experts: places, ..routes };
            d.experts(work.x, here, &self.plan.pool, work.inner, work.out);
        }
        d.answered(self, &question);
    }
}

/// The CPU's part of a step.
impl Aide for Away {
    fn desk(&mut self) -> (&mut Vec<u32>, &mut Vec<f32>) {
        (&mut self.left, &mut self.numbers)
    }

    fn answer(&mut self, number: usize, paper: &Paper) -> &[u32] {
        let index = number as u32;
        self.heat.note(index, &self.left);
        self.census.note(self.moe[number], &self.left);
        let mut left = std::mem::take(&mut self.left);
        for expert in &mut left {
            match self.here(index, *expert) {
                Some(slot) => {
                    self.slots.touch(slot);
                    *expert = ABSENT;
                }
                // What is on its way is not brought again.
                None if self.slots.find(index, *expert).is_none() => {
                    self.wanted.push((index, *expert));
                }
                None => {}
            }
        }
        self.left = left;
        let mine = self.left.iter().filter(|&&expert| expert != ABSENT).count() as u64;
        self.traffic.on_the_cpu += mine;
        self.traffic.on_the_device += self.left.len() as u64 - mine;
        let Desk { x, experts, weights, inner, out } = self.plan.desk;
        let top_k = out.rows / x.rows;
        let pairs = self.left.len() as u32;
        let rows = pairs / top_k;
        if mine > 0 {
            let list = |start| Slot::new(start, u64::from(pairs));
            self.host.upload_act(x.first(rows), &self.numbers);
            self.host.upload(experts, &self.left);
            let routes = Routes {
                experts: Mat::new(list(experts.start), rows, top_k),
                weights: Mat::new(Slot::new(weights.start, u64::from(pairs)), rows, top_k),
            };
            let bank = self.banks[self.moe[number]].expect("a layer with experts");
            let scratch = [inner, out].map(|mat| mat.first(pairs));
            self.host.experts_to(x.first(rows), routes, &bank, scratch, paper);
        }
        &self.left
    }
}
