//! Who is sent for, and who makes room.

use super::Overflow;
use super::readers::{Errand, Turn};
use krasis_ops::Memory;
use std::cmp::Reverse;

impl Overflow {
    /// Has what is wanted and not here brought, as far as there are slots; false if there were too few.
    pub(super) fn order_wanted<D: Memory>(&mut self, d: &mut D, index: u32) -> bool {
        let missing = |&expert: &u32| self.slots.find(index, expert).is_none();
        let missing: Vec<u32> = self.wanted.iter().copied().filter(missing).collect();
        self.find_spare(index, missing.len(), |_| false);
        for expert in missing {
            let Some(slot) = self.spare.pop() else { return false };
            self.order(d, Turn::Now, slot, index, expert);
        }
        true
    }

    /// Has experts of a layer brought that will probably be asked for: those that have been, or all of
    /// them. What they take the place of is not of that layer, nor of the one at work if that goes on.
    pub(super) fn order_ahead<D: Memory>(&mut self, d: &mut D, index: u32) {
        let all = 0..self.is_wanted.len() as u32;
        let known = all.clone().any(|expert| self.heat.of(index, expert) > 0.0);
        let probable = |&expert: &u32| {
            let asked = !known || self.heat.of(index, expert) > 0.0;
            asked && self.slots.find(index, expert).is_none()
        };
        let probable: Vec<u32> = all.filter(probable).collect();
        let goes_on = self.goes_on();
        let stays = |of: u32| of == index || goes_on && of + 1 == index;
        self.find_spare(index - 1, probable.len(), stays);
        for expert in probable {
            let Some(slot) = self.spare.pop() else { return };
            self.order(d, Turn::Later, slot, index, expert);
        }
    }

    /// Finds slots that may be given away while a layer is at work, at most so many, and none of layers that
    /// stay.
    fn find_spare(&mut self, index: u32, most: usize, layer_stays: impl Fn(u32) -> bool) {
        let goes_on = self.goes_on();
        let Overflow { slots, coming, heat, is_wanted, spare, moe, .. } = self;
        spare.clear();
        if most == 0 {
            return;
        }
        let free = |&slot: &u32| {
            let wanted = |of, expert: u32| of == index && is_wanted[expert as usize];
            let stays = |(of, expert)| layer_stays(of) || wanted(of, expert);
            coming[slot as usize] == 0 && !slots.holder(slot).is_some_and(stays)
        };
        spare.extend(slots.all().filter(free));
        // Heat, and how many layers come before the one that needs it.
        let worth = |&slot: &u32| match slots.holder(slot) {
            None => (f32::NEG_INFINITY, Reverse(0)),
            // Needed again at once.
            Some((of, _)) if of == index && goes_on => (f32::INFINITY, Reverse(0)),
            Some((of, expert)) => {
                (heat.of(of, expert), Reverse((of + 2 * *moe - index - 1) % *moe))
            }
        };
        let by_worth = |a: &u32, b: &u32| {
            let ((a, far_a), (b, far_b)) = (worth(a), worth(b));
            a.total_cmp(&b).then(far_a.cmp(&far_b))
        };
        if spare.len() > most {
            spare.select_nth_unstable_by(most - 1, by_worth);
            spare.truncate(most);
        }
        spare.sort_unstable_by(|a, b| by_worth(b, a));
    }

    /// Sends for an expert.
    pub(super) fn order<D: Memory>(
        &mut self,
        d: &mut D,
        turn: Turn,
        slot: u32,
        index: u32,
        expert: u32,
    ) {
        self.slots.put(slot, index, expert);
        let to = self.plan.pool.slots(slot, 1);
        let errands: Vec<Errand> = self
            .volume
            .parts(index, expert)
            .map(|(place, part)| Errand { slot, place, part, room: d.lend(to[place]) })
            .collect();
        self.coming[slot as usize] = errands.len() as u8;
        self.errands += errands.len();
        self.traffic.brought += 1;
        self.readers.send(turn, errands.into_iter());
    }
}
