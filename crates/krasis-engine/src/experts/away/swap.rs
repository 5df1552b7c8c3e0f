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
        for (&(index, expert), &(cold, slot)) in self.wanted.iter().zip(&coldest) {
            if self.heat.of(index, expert) <= HOTTER * cold {
                break;
            }
            self.slots.put(slot, index, expert);
            self.coming.push(slot);
        }
        self.coldest = coldest;
        self.bring_coming(d);
        self.keep_hottest();
    }

    /// Copies of any layers in one call: what they wait for is no step's of few rows, so they are not pending.
    fn bring_coming<D: Memory>(&mut self, d: &mut D) {
        if self.coming.is_empty() {
            return;
        }
        let pieces = self.coming.iter().flat_map(|&slot| {
            let (index, expert) = self.slots.holder(slot).expect("put there just now");
            let bank = self.banks[self.moe[index as usize]].expect("a layer with experts");
            bank.slots(expert, 1).into_iter().zip(self.plan.pool.slots(slot, 1))
        });
        let pieces = pieces.filter(|(from, _)| !from.is_empty());
        d.bring(pieces.map(|(from, to)| (to, self.host.bytes(from))), &self.keep);
        self.traffic.brought += self.coming.len() as u64;
        self.moved = true;
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

    /// What comes into a slot that prompts will need may be hotter than something that stays.
    fn keep_hottest(&mut self) {
        let coming = std::mem::take(&mut self.coming);
        for &slot in &coming {
            if self.slots.is_hot(slot) {
                continue;
            }
            let hot = self.slots.all().filter(|&slot| self.slots.is_hot(slot));
            let heats = hot.map(|slot| (self.heat_in(slot), slot));
            match heats.min_by(|a, b| a.0.total_cmp(&b.0)) {
                Some((heat, least)) if heat < self.heat_in(slot) => {
                    self.slots.set_hot(least, false);
                    self.slots.set_hot(slot, true);
                }
                _ => {}
            }
        }
        self.coming = coming;
    }
}
