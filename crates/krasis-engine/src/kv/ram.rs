//! Pages and states in host memory, for which the device has no more room.

use super::tree::{Kind, Node};
use krasis_core::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Content of a page or a place, in host memory.
pub type Content = Arc<Vec<u8>>;

/// As much as the budget allows; what was used longest ago goes first.
pub struct Ram {
    budget: u64,
    used: u64,
    held: HashMap<(Node, Kind), (u64, Content)>,
    order: BTreeMap<u64, (Node, Kind)>,
    clock: u64,
}

impl Ram {
    /// Nothing yet.
    pub fn new(budget: Bytes) -> Ram {
        Ram { budget: budget.0, used: 0, held: HashMap::new(), order: BTreeMap::new(), clock: 0 }
    }

    /// Whether content of so many bytes could be put here.
    pub fn takes(&self, bytes: usize) -> bool {
        bytes as u64 <= self.budget
    }

    /// What it holds of a node, which is used by that.
    pub fn get(&mut self, node: Node, kind: Kind) -> Option<Content> {
        let (since, content) = self.held.get_mut(&(node, kind))?;
        self.clock += 1;
        self.order.remove(&std::mem::replace(since, self.clock));
        self.order.insert(self.clock, (node, kind));
        Some(content.clone())
    }

    /// Puts content here, and says what had to go for it.
    pub fn put(&mut self, node: Node, kind: Kind, content: Content) -> Vec<(Node, Kind)> {
        assert!(self.takes(content.len()), "{} bytes of {}", content.len(), self.budget);
        self.remove(node, kind);
        let mut gone = Vec::new();
        while self.used + content.len() as u64 > self.budget {
            let &oldest = self.order.values().next().expect("what is used belongs to somebody");
            self.remove(oldest.0, oldest.1);
            gone.push(oldest);
        }
        self.clock += 1;
        self.used += content.len() as u64;
        self.order.insert(self.clock, (node, kind));
        self.held.insert((node, kind), (self.clock, content));
        gone
    }

    /// Forgets what it holds of a node.
    pub fn remove(&mut self, node: Node, kind: Kind) {
        if let Some((since, content)) = self.held.remove(&(node, kind)) {
            self.order.remove(&since);
            self.used -= content.len() as u64;
        }
    }

    /// Bytes of what it holds.
    pub fn used(&self) -> u64 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut ram = Ram::new(Bytes(10));
        let content = |len| Arc::new(vec![0; len]);
        let [a, b, c] = [1, 2, 3].map(Node);
        assert_eq!(ram.put(a, Kind::Page, content(4)), []);
        assert_eq!(ram.put(b, Kind::Page, content(3)), []);
        assert_eq!(ram.put(a, Kind::State, content(3)), []);
        assert!(ram.get(a, Kind::Page).is_some() && ram.get(c, Kind::Page).is_none());
        assert_eq!(ram.put(c, Kind::Page, content(5)), [(b, Kind::Page), (a, Kind::State)]);
        assert_eq!((ram.used(), ram.takes(10), ram.takes(11)), (9, true, false));
        ram.remove(a, Kind::Page);
        ram.remove(a, Kind::Page);
        assert_eq!(ram.used(), 5);
    }
}
