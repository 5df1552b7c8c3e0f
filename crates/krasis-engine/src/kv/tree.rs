//! What is known of the past: a node for each full page of tokens, behind the node of the page before.
//!
//! A node is found by walking the tokens of a prompt, and all of them are compared: two prefixes are
//! never taken for one another. What belongs to a node is the page itself and, at some nodes of models
//! with recurrent layers, their state behind its last token; each may lie in several memories at once.

use super::disk::Spot;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Tokens that a page has at most.
pub const PAGE_MAX: usize = 16;

/// Names a prefix of whole pages. Never used again, not even by the next process that reads what this
/// one has written: a stale link leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u64);

/// The empty prefix.
pub const ROOT: Node = Node(0);

/// What may be kept of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Keys and values of its tokens.
    Page,
    /// What recurrent layers remember behind the last of them.
    State,
}

/// Where copies of one content lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// The page or place of the device's memory.
    pub device: Option<u32>,
    /// Whether host memory has one.
    pub ram: bool,
    /// Whether the disk has one.
    pub disk: OnDisk,
}

/// What the disk has of a content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDisk {
    /// Nothing.
    #[default]
    Nothing,
    /// It is on its way there.
    Coming,
    /// All of it.
    At(Spot),
}

impl Copies {
    fn exist(&self) -> bool {
        *self != Copies::default()
    }
}

/// The page before, and a hash of the tokens, which are compared as well.
type Key = (Node, u64);

struct Entry {
    key: Key,
    tokens: [u32; PAGE_MAX],
    children: u32,
    copies: [Copies; 2],
}

/// All nodes.
pub struct Tree {
    page: usize,
    entries: HashMap<Node, Entry>,
    known: HashMap<Key, Node>,
    /// The last name that was given.
    last: u64,
}

impl Tree {
    /// For pages of `page` tokens. There is room for so many from the start: a decode step allocates
    /// nothing.
    pub fn new(page: usize, room: usize) -> Tree {
        assert!((1..=PAGE_MAX).contains(&page), "pages have 1 to {PAGE_MAX} tokens, not {page}");
        Tree {
            page,
            entries: HashMap::with_capacity(room),
            known: HashMap::with_capacity(room),
            last: 0,
        }
    }

    /// Tokens of a page.
    pub fn page(&self) -> usize {
        self.page
    }

    /// Gives no name up to this one any more.
    pub fn skip_names(&mut self, last: u64) {
        self.last = self.last.max(last);
    }

    /// The node of these tokens behind that one.
    pub fn child(&self, parent: Node, tokens: &[u32]) -> Option<Node> {
        let node = *self.known.get(&key(parent, tokens))?;
        (self.tokens(node)? == tokens).then_some(node)
    }

    /// The same, made if it is not there.
    pub fn learn(&mut self, parent: Node, tokens: &[u32]) -> Node {
        if let Some(node) = self.child(parent, tokens) {
            return node;
        }
        self.last += 1;
        let node = Node(self.last);
        self.insert(node, parent, tokens);
        node
    }

    /// Adds a node under a name of its own. Other tokens of the same hash keep their place, and what is
    /// behind a node that is gone is not kept either: then nobody finds this one.
    pub fn insert(&mut self, node: Node, parent: Node, tokens: &[u32]) {
        let key = key(parent, tokens);
        if parent != ROOT && !self.entries.contains_key(&parent) {
            return;
        }
        let Place::Vacant(place) = self.known.entry(key) else { return };
        place.insert(node);
        let mut own = [0; PAGE_MAX];
        own[..self.page].copy_from_slice(tokens);
        let entry = Entry { key, tokens: own, children: 0, copies: Default::default() };
        self.entries.insert(node, entry);
        if let Some(parent) = self.entries.get_mut(&parent) {
            parent.children += 1;
        }
    }

    /// Where content of a node lies; nothing if nobody finds the node.
    pub fn copies(&self, node: Node, kind: Kind) -> Option<Copies> {
        Some(self.entries.get(&node)?.copies[kind as usize])
    }

    /// The same, to be changed.
    pub fn copies_mut(&mut self, node: Node, kind: Kind) -> Option<&mut Copies> {
        Some(&mut self.entries.get_mut(&node)?.copies[kind as usize])
    }

    /// The tokens of a node's page.
    pub fn tokens(&self, node: Node) -> Option<&[u32]> {
        Some(&self.entries.get(&node)?.tokens[..self.page])
    }

    /// The node before.
    pub fn parent(&self, node: Node) -> Option<Node> {
        Some(self.entries.get(&node)?.key.0)
    }

    /// Tokens from the state before a node, on the device, to the node's end.
    pub fn behind_a_state(&self, node: Node) -> usize {
        let (mut tokens, mut at) = (0, node);
        while let Some(before) = self.parent(at) {
            tokens += self.page;
            let state = self.copies(before, Kind::State).unwrap_or_default();
            if before == ROOT || state.device.is_some() {
                return tokens;
            }
            at = before;
        }
        // Nobody finds it.
        0
    }

    /// Removes a node that has no content and leads to none, and those before it that are left so.
    pub fn prune(&mut self, mut node: Node) {
        while let Some(entry) = self.entries.get(&node) {
            if entry.children > 0 || entry.copies.iter().any(Copies::exist) {
                return;
            }
            let key = entry.key;
            self.entries.remove(&node);
            self.known.remove(&key);
            node = key.0;
            if let Some(parent) = self.entries.get_mut(&node) {
                parent.children -= 1;
            }
        }
    }

    /// Nodes that are known.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

fn key(parent: Node, tokens: &[u32]) -> Key {
    let mut hasher = DefaultHasher::new();
    tokens.hash(&mut hasher);
    (parent, hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_by_its_tokens_and_by_those_before() {
        let mut tree = Tree::new(2, 8);
        let a = tree.learn(ROOT, &[1, 2]);
        let b = tree.learn(a, &[3, 4]);
        assert_eq!((tree.child(ROOT, &[1, 2]), tree.child(a, &[3, 4])), (Some(a), Some(b)));
        assert_eq!((tree.child(ROOT, &[3, 4]), tree.child(a, &[3, 5])), (None, None));
        assert_eq!(tree.learn(a, &[3, 4]), b);
        assert_eq!((tree.parent(b), tree.tokens(b)), (Some(a), Some(&[3, 4][..])));
    }

    #[test]
    fn what_leads_nowhere_is_forgotten_from_its_end() {
        let mut tree = Tree::new(1, 8);
        let a = tree.learn(ROOT, &[1]);
        let b = tree.learn(a, &[2]);
        let c = tree.learn(b, &[3]);
        tree.copies_mut(a, Kind::Page).unwrap().ram = true;
        tree.copies_mut(c, Kind::State).unwrap().device = Some(7);
        tree.prune(b);
        assert_eq!(tree.len(), 3, "b leads to c");
        tree.copies_mut(c, Kind::State).unwrap().device = None;
        tree.prune(c);
        assert_eq!((tree.len(), tree.child(ROOT, &[1])), (1, Some(a)));
        let again = tree.learn(a, &[2]);
        assert!(again > c, "names are not used again");
        // What was behind the old one is not behind the new one.
        tree.insert(Node(99), b, &[3]);
        assert_eq!((tree.len(), tree.child(again, &[3])), (2, None));
    }
}
