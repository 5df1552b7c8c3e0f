//! Places of recurrent state: a sequence has one while it runs, and checkpoints have the others.
//!
//! A state is large (75 MB for Qwen3-Next 80B, as much as keys and values of 3,000 tokens), so places
//! are few, and looking at all of them is nothing beside copying one.

use super::tree::Node;

/// All places of a model.
pub struct Places {
    places: Vec<Place>,
    clock: u64,
}

#[derive(Clone, Copy)]
struct Place {
    holder: Holder,
    used: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nobody,
    Sequence,
    /// The state behind a node.
    Checkpoint(Node),
}

impl Places {
    /// `count` places.
    pub fn new(count: u32) -> Places {
        let free = Place { holder: Holder::Nobody, used: 0 };
        Places { places: vec![free; count as usize], clock: 0 }
    }

    /// Sequences that have a place.
    pub fn sequences(&self) -> usize {
        self.places.iter().filter(|place| place.holder == Holder::Sequence).count()
    }

    /// A place for a sequence, and the checkpoint that was there.
    pub fn for_sequence(&mut self) -> Option<(u32, Option<Node>)> {
        self.next(Holder::Sequence)
    }

    /// A place for a checkpoint, and the one that was there.
    pub fn for_checkpoint(&mut self, node: Node) -> Option<(u32, Option<Node>)> {
        self.next(Holder::Checkpoint(node))
    }

    /// What is not in use, or else the checkpoint that was used longest ago.
    fn next(&mut self, holder: Holder) -> Option<(u32, Option<Node>)> {
        self.clock += 1;
        let places = self.places.iter_mut().enumerate();
        let others = places.filter(|(_, place)| place.holder != Holder::Sequence);
        let (index, place) =
            others.min_by_key(|(_, place)| (place.holder != Holder::Nobody, place.used))?;
        let before = match place.holder {
            Holder::Checkpoint(node) => Some(node),
            _ => None,
        };
        *place = Place { holder, used: self.clock };
        Some((index as u32, before))
    }

    /// A checkpoint's place is another one's.
    pub fn rename(&mut self, place: u32, node: Node) {
        self.clock += 1;
        self.places[place as usize] = Place { holder: Holder::Checkpoint(node), used: self.clock };
    }

    /// A checkpoint is of use.
    pub fn touch(&mut self, place: u32) {
        self.clock += 1;
        self.places[place as usize].used = self.clock;
    }

    /// Nobody needs it any more.
    pub fn free(&mut self, place: u32) {
        self.places[place as usize] = Place { holder: Holder::Nobody, used: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_push_out_the_checkpoint_that_was_used_longest_ago() {
        let mut places = Places::new(3);
        let (sequence, _) = places.for_sequence().unwrap();
        let (a, _) = places.for_checkpoint(Node(1)).unwrap();
        let (b, _) = places.for_checkpoint(Node(2)).unwrap();
        places.touch(a);
        assert_eq!(places.for_checkpoint(Node(3)), Some((b, Some(Node(2)))));
        assert_eq!(places.for_sequence(), Some((a, Some(Node(1)))));
        assert_eq!(places.for_sequence(), Some((b, Some(Node(3)))));
        assert_eq!((places.for_sequence(), places.sequences()), (None, 3));
        places.free(sequence);
        assert_eq!(places.for_checkpoint(Node(4)), Some((sequence, None)));
    }
}
