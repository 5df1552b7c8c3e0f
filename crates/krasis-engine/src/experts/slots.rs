//! Which expert lies in which slot of the device.

use std::ops::Range;

/// No slot, or nobody in it.
const NONE: u32 = u32::MAX;

/// A map of experts to slots and back; it is never wrong about either, whatever is evicted.
pub struct Slots {
    /// Experts of a layer.
    experts: u32,
    /// `[layer · experts + expert]` its slot.
    slot_of: Vec<u32>,
    held: Vec<Held>,
    clock: u64,
}

/// What is known of a slot.
#[derive(Clone, Copy)]
struct Held {
    /// Which expert of which layer lies there.
    key: u32,
    /// When it was used last.
    used: u64,
    /// Whether it stays until a hotter one comes.
    hot: bool,
}

impl Slots {
    /// `slots` empty ones for `layers` of `experts` each.
    pub fn new(layers: u32, experts: u32, slots: u32) -> Slots {
        let slot_of = vec![NONE; (layers * experts) as usize];
        let empty = Held { key: NONE, used: 0, hot: false };
        Slots { experts, slot_of, held: vec![empty; slots as usize], clock: 0 }
    }

    /// All of them.
    pub fn all(&self) -> Range<u32> {
        0..self.held.len() as u32
    }

    /// Where an expert lies.
    pub fn find(&self, layer: u32, expert: u32) -> Option<u32> {
        Some(self.slot_of[self.key(layer, expert)]).filter(|&slot| slot != NONE)
    }

    /// Who lies in a slot: layer and expert.
    pub fn holder(&self, slot: u32) -> Option<(u32, u32)> {
        let key = self.held[slot as usize].key;
        (key != NONE).then(|| (key / self.experts, key % self.experts))
    }

    /// Notes that a slot is in use from now on.
    pub fn touch(&mut self, slot: u32) {
        self.clock += 1;
        self.held[slot as usize].used = self.clock;
    }

    /// Now, for [`Self::oldest`].
    pub fn now(&self) -> u64 {
        self.clock
    }

    /// Whether what lies in a slot stays until a hotter one comes.
    pub fn is_hot(&self, slot: u32) -> bool {
        self.held[slot as usize].hot
    }

    /// Has a slot kept, or not any longer.
    pub fn set_hot(&mut self, slot: u32, hot: bool) {
        self.held[slot as usize].hot = hot;
    }

    /// The slot of `area` that was used longest ago, and not after `since`; empty ones first, hot ones
    /// never.
    pub fn oldest(&self, area: Range<u32>, since: u64) -> Option<u32> {
        let age = |slot: &u32| match self.held[*slot as usize] {
            Held { key: NONE, .. } => 0,
            Held { used, .. } => used + 1,
        };
        area.filter(|&slot| !self.is_hot(slot))
            .min_by_key(age)
            .filter(|slot| age(slot) <= since + 1)
    }

    /// Puts an expert into a slot; whoever lay there lies nowhere any more.
    pub fn put(&mut self, slot: u32, layer: u32, expert: u32) {
        let key = self.key(layer, expert);
        assert_eq!(self.slot_of[key], NONE, "expert {expert} of layer {layer} lies somewhere");
        let before = self.held[slot as usize].key;
        if before != NONE {
            self.slot_of[before as usize] = NONE;
        }
        self.slot_of[key] = slot;
        self.held[slot as usize].key = key as u32;
        self.touch(slot);
    }

    /// Has a slot hold nobody.
    pub fn empty(&mut self, slot: u32) {
        let key = std::mem::replace(&mut self.held[slot as usize].key, NONE);
        if key != NONE {
            self.slot_of[key as usize] = NONE;
        }
    }

    fn key(&self, layer: u32, expert: u32) -> usize {
        assert!(expert < self.experts, "expert {expert} of {}", self.experts);
        (layer * self.experts + expert) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::Slots;
    use krasis_core::random::SplitMix64;

    /// Against a plain list, at random.
    #[test]
    fn the_map_is_right_in_both_directions() {
        let (layers, experts, count) = (3, 5, 7);
        let mut slots = Slots::new(layers, experts, count);
        let mut plain: Vec<Option<(u32, u32)>> = vec![None; count as usize];
        let mut random = SplitMix64(1);
        let mut below = |n: u32| (random.bits() % u64::from(n)) as u32;
        for _ in 0..2000 {
            let (slot, layer, expert) = (below(count), below(layers), below(experts));
            match plain.iter().position(|held| *held == Some((layer, expert))) {
                Some(at) => assert_eq!(slots.find(layer, expert), Some(at as u32)),
                None => {
                    assert_eq!(slots.find(layer, expert), None);
                    slots.put(slot, layer, expert);
                    plain[slot as usize] = Some((layer, expert));
                }
            }
            if below(9) == 0 {
                slots.empty(slot);
                plain[slot as usize] = None;
            }
            for slot in slots.all() {
                assert_eq!(slots.holder(slot), plain[slot as usize]);
            }
        }
    }

    #[test]
    fn the_oldest_goes_first_and_what_is_in_use_stays() {
        let mut slots = Slots::new(1, 9, 3);
        assert_eq!(slots.oldest(0..3, slots.now()), Some(0));
        (0..3).for_each(|i| slots.put(i, 0, i));
        slots.touch(0);
        assert_eq!(slots.oldest(0..3, slots.now()), Some(1));
        let since = slots.now();
        [1, 2].into_iter().for_each(|slot| slots.touch(slot));
        assert_eq!(slots.oldest(0..3, since), Some(0));
        slots.touch(0);
        assert_eq!(slots.oldest(0..3, since), None);
        assert_eq!(slots.oldest(2..2, since), None);
        slots.set_hot(1, true);
        assert_eq!(slots.oldest(0..3, slots.now()), Some(2));
    }
}
