//! Hot experts for colder ones, while tokens are written. The bus is idle then, so what is brought behind a
//! step comes beside the next one, which does without it; from the step after that it is there, and nobody
//! has waited.

use super::{Away, HOTTER};
use krasis_ops::Memory;

/// Bytes that are brought beside a step: 0.3 ms of the bus, where a step takes 5 ms and more.
const SWAPPED: u64 = 16 << 20;

impl Away {
    /// Brings the hottest experts that the CPU had to compute, in the place of the coldest that are here.
    /// Slots that prompts need are used as well: until there is one, nobody needs them.
    pub(super) fn swap<D: Memory>(&mut self, d: &mut D) {
        if !self.coming.is_empty() {
            self.arrive(d);
        }
        let heat_of = |&(index, expert): &(u32, u32)| self.heat.of(index, expert);
        self.wanted.sort_unstable_by(|a, b| heat_of(b).total_cmp(&heat_of(a)).then(a.cmp(b)));
        self.wanted.dedup();
        let each = self.plan.pool.slots(0, 1).iter().map(|slot| slot.len).sum::<u64>().max(1);
        self.wanted.truncate((SWAPPED / each).max(1) as usize);
        if self.wanted.is_empty() {
            return;
        }
        let mut coldest = std::mem::take(&mut self.coldest);
        self.coldest_slots(self.wanted.len(), &mut coldest);
        let wanted = std::mem::take(&mut self.wanted);
        // What the copies of a step wait for is no step's of few rows.
        let pending = self.pending;
        for (&(index, expert), &(cold, slot)) in wanted.iter().zip(&coldest) {
            let heat = self.heat.of(index, expert);
            if heat <= HOTTER * cold {
                break;
            }
            self.slots.put(slot, index, expert);
            self.coming.push(slot);
            self.brought.clear();
            self.brought.push((expert, slot));
            self.copy(d, self.moe[index as usize]);
        }
        self.pending = pending;
        self.keep_hottest(&coldest);
        (self.wanted, self.coldest) = (wanted, coldest);
    }

    /// So many slots, the coldest first, with their heat.
    fn coldest_slots(&self, count: usize, coldest: &mut Vec<(f32, u32)>) {
        coldest.clear();
        for slot in self.slots.all() {
            let heat = self.heat_in(slot);
            if coldest.len() == count && coldest.last().is_some_and(|last| last.0 <= heat) {
                continue;
            }
            let at = coldest.partition_point(|&(other, _)| other <= heat);
            coldest.truncate(count - 1);
            coldest.insert(at, (heat, slot));
        }
    }

    /// What came into a slot that prompts will need may be hotter than something that stays.
    fn keep_hottest(&mut self, swapped: &[(f32, u32)]) {
        for &(_, slot) in swapped.iter().filter(|&&(_, slot)| self.coming.contains(&slot)) {
            if self.slots.is_hot(slot) {
                continue;
            }
            let hot = self.slots.all().filter(|&slot| self.slots.is_hot(slot));
            let least =
                hot.map(|slot| (self.heat_in(slot), slot)).min_by(|a, b| a.0.total_cmp(&b.0));
            match least {
                Some((heat, least)) if heat < self.heat_in(slot) => {
                    self.slots.set_hot(least, false);
                    self.slots.set_hot(slot, true);
                }
                _ => {}
            }
        }
    }
}
