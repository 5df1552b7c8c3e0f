//! Places of recurrent state: a sequence has one while it runs, and checkpoints have the others.
//!
//! A state is large (75 MB for Qwen3-Next 80B, as much as keys and values of 3,000 tokens), so places
//! are few, and looking at all of them is nothing beside copying one. What makes room is the checkpoint
//! whose loss costs least: tokens that would have to be computed again from the one before, by the time
//! since it was of use. So of a long conversation the newest stay, and of the older ones some, far apart.

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

    /// A place for a sequence, and the checkpoint that was there; `loss` is in tokens.
    pub fn for_sequence(&mut self, loss: impl Fn(Node) -> usize) -> Option<(u32, Option<Node>)> {
        self.next(Holder::Sequence, loss)
    }

    /// A place for a checkpoint, and the one that was there.
    pub fn for_checkpoint(
        &mut self,
        node: Node,
        loss: impl Fn(Node) -> usize,
    ) -> Option<(u32, Option<Node>)> {
        self.next(Holder::Checkpoint(node), loss)
    }

    /// What is not in use, or else what costs least; what was used just now only if it is the last one.
    fn next(
        &mut self,
        holder: Holder,
        loss: impl Fn(Node) -> usize,
    ) -> Option<(u32, Option<Node>)> {
        let now = self.clock;
        let worth = |place: &Place| match place.holder {
            Holder::Nobody => Some(-1.0),
            Holder::Checkpoint(_) if place.used == now => Some(f64::INFINITY),
            Holder::Checkpoint(node) => Some(loss(node) as f64 / (now - place.used) as f64),
            Holder::Sequence => None,
        };
        let all = self.places.iter().enumerate();
        let others = all.filter_map(|(index, place)| Some((index, worth(place)?)));
        let (index, _) = others.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        self.clock += 1;
        let place = &mut self.places[index];
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
    fn the_checkpoint_that_costs_least_makes_room() {
        let mut places = Places::new(3);
        let even = |_| 100;
        let (sequence, _) = places.for_sequence(even).unwrap();
        let (a, _) = places.for_checkpoint(Node(1), even).unwrap();
        let (b, _) = places.for_checkpoint(Node(2), even).unwrap();
        places.touch(a);
        assert_eq!(places.for_checkpoint(Node(3), even), Some((b, Some(Node(2)))));
        places.touch(a);
        // The first is the older one now, but what is behind it would take longer.
        let loss = |Node(node): Node| if node == 1 { 1000 } else { 10 };
        places.touch(b);
        assert_eq!(places.for_sequence(even), Some((a, Some(Node(1)))), "b was used just now");
        places.free(a);
        let (a, _) = places.for_checkpoint(Node(1), loss).unwrap();
        places.free(sequence);
        places.for_sequence(loss).unwrap();
        assert_eq!(places.for_sequence(loss), Some((b, Some(Node(3)))));
        assert_eq!(places.for_sequence(loss), Some((a, Some(Node(1)))));
        assert_eq!((places.for_sequence(loss), places.sequences()), (None, 3));
        places.free(sequence);
        assert_eq!(places.for_checkpoint(Node(4), loss), Some((sequence, None)));
    }
}
