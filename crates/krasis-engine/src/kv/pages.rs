//! Pages of the device's memory: who uses them, and which of the others is given away next.
//!
//! Pages that nobody uses keep their content until the memory is needed, the least recently used
//! first.

use super::tree::Node;
use std::collections::BTreeMap;

/// All KV pages of a model.
pub struct Pages {
    pages: Vec<Page>,
    /// Pages that hold nothing of use.
    free: Vec<u32>,
    /// Pages that hold a known prefix but no sequence, by the time of their release.
    idle: BTreeMap<u64, u32>,
    clock: u64,
}

#[derive(Clone, Default)]
struct Page {
    /// Sequences that use it.
    users: u32,
    /// What it is the page of.
    node: Option<Node>,
    /// Its key in `idle`, if it is there.
    idle_since: u64,
}

impl Pages {
    /// `count` pages.
    pub fn new(count: u32) -> Pages {
        Pages {
            pages: vec![Page::default(); count as usize],
            free: (0..count).rev().collect(),
            idle: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Pages that somebody could get.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// A page for new content, and what it held until now.
    pub fn next(&mut self) -> Option<(u32, Option<Node>)> {
        let (page, node) = match self.free.pop() {
            Some(page) => (page, None),
            None => {
                let (_, page) = self.idle.pop_first()?;
                (page, self.pages[page as usize].node.take())
            }
        };
        self.pages[page as usize].users = 1;
        Some((page, node))
    }

    /// One more sequence uses it.
    pub fn take(&mut self, page: u32) {
        let info = &mut self.pages[page as usize];
        if info.users == 0 {
            self.idle.remove(&info.idle_since);
        }
        info.users += 1;
    }

    /// Says what a page that is in use holds.
    pub fn name(&mut self, page: u32, node: Node) {
        self.pages[page as usize].node = Some(node);
    }

    /// One sequence less uses it.
    pub fn release(&mut self, page: u32) {
        let info = &mut self.pages[page as usize];
        info.users -= 1;
        if info.users > 0 {
            return;
        }
        if info.node.is_some() {
            self.clock += 1;
            info.idle_since = self.clock;
            self.idle.insert(self.clock, page);
        } else {
            self.free.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_kept_until_memory_is_needed() {
        let mut pages = Pages::new(3);
        let [a, b, c] = [(); 3].map(|()| pages.next().unwrap().0);
        assert!(pages.next().is_none(), "all three are in use");
        pages.name(a, Node(5));
        pages.name(b, Node(6));
        pages.take(a);
        [b, a, c].into_iter().for_each(|page| pages.release(page));
        assert_eq!(pages.available(), 2, "a has another user");
        pages.release(a);
        assert_eq!(pages.next(), Some((c, None)), "what has no content goes first");
        assert_eq!(pages.next(), Some((b, Some(Node(6)))));
        pages.take(a);
        assert_eq!(pages.next(), None);
    }
}
