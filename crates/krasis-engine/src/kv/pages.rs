//! KV pages, addressed by token prefix.
//!
//! A full page is known by its tokens and the page before it, so the page that a prompt needs is
//! found by walking its tokens: what was computed for one request serves every other that begins
//! alike, at the same time or later. Pages that nobody uses keep their content until the memory is
//! needed, the least recently used first.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Names the content of a page and all pages before it. Never reused, so a stale link leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Node(u64);

/// A full page: the one before it, and a hash of its tokens, which are compared as well.
type Key = (Node, u64);

/// The empty prefix.
const ROOT: Node = Node(0);

/// All KV pages of a model.
pub struct Pages {
    page: usize,
    /// Whether content may be found again: not if layers keep state outside the pages.
    reusable: bool,
    pages: Vec<Page>,
    /// Pages that hold nothing of use.
    free: Vec<u32>,
    /// Pages that hold a known prefix but no sequence, by the time of their release.
    idle: BTreeMap<u64, u32>,
    /// Full pages by their predecessor and their tokens. Room for all is made at once: a decode
    /// step allocates nothing.
    known: HashMap<Key, (Node, u32)>,
    /// `[pages, page]` the tokens of known pages.
    tokens: Vec<u32>,
    nodes: u64,
    clock: u64,
}

#[derive(Clone, Default)]
struct Page {
    /// Sequences that use it.
    users: u32,
    /// Its key in `known`, if it is there.
    key: Option<Key>,
    /// Its key in `idle`, if it is there.
    idle_since: u64,
}

/// The pages of one sequence, and how far they are known by their content.
#[derive(Debug)]
pub struct Prefix {
    /// In the order of the tokens.
    pub pages: Vec<u32>,
    /// The last page that is known, and how many are.
    last: Node,
    known: usize,
}

impl Pages {
    /// `count` pages of `page` tokens.
    pub fn new(count: u32, page: u32, reusable: bool) -> Pages {
        Pages {
            page: page as usize,
            reusable,
            pages: vec![Page::default(); count as usize],
            free: (0..count).rev().collect(),
            idle: BTreeMap::new(),
            known: HashMap::with_capacity(if reusable { count as usize } else { 0 }),
            tokens: vec![0; if reusable { count as usize * page as usize } else { 0 }],
            nodes: 0,
            clock: 0,
        }
    }

    /// Pages that a new claim could get.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Takes the longest known prefix of `tokens`, but never all of them: the last token must be
    /// computed for its logits. Returns the prefix and the tokens that it covers.
    pub fn find(&mut self, tokens: &[u32]) -> (Prefix, usize) {
        let mut prefix = Prefix { pages: vec![], last: ROOT, known: 0 };
        if self.reusable {
            for chunk in tokens[..tokens.len().saturating_sub(1)].chunks_exact(self.page) {
                let Some((node, page)) = self.same(prefix.last, chunk) else { break };
                self.take(page);
                prefix.pages.push(page);
                prefix.last = node;
            }
        }
        prefix.known = prefix.pages.len();
        let covered = prefix.known * self.page;
        (prefix, covered)
    }

    /// Extends a sequence to hold `tokens` tokens. False if there is no memory: what was added
    /// stays, and the caller tries again when others have released theirs.
    #[must_use]
    pub fn extend(&mut self, prefix: &mut Prefix, tokens: usize) -> bool {
        while prefix.pages.len() * self.page < tokens {
            let Some(page) = self.free.pop().or_else(|| self.forget_oldest()) else { return false };
            self.pages[page as usize].users = 1;
            prefix.pages.push(page);
        }
        true
    }

    /// Tells which tokens the pages of a sequence hold by now; full pages become known.
    pub fn filled(&mut self, prefix: &mut Prefix, tokens: &[u32]) {
        if !self.reusable {
            return;
        }
        for chunk in tokens.chunks_exact(self.page).skip(prefix.known) {
            let page = prefix.pages[prefix.known];
            prefix.last = match self.same(prefix.last, chunk) {
                // Another sequence has computed the same; ours stays nameless.
                Some((node, _)) => node,
                None => self.learn(prefix.last, chunk, page),
            };
            prefix.known += 1;
        }
    }

    /// The known page of these tokens after that prefix.
    fn same(&self, last: Node, tokens: &[u32]) -> Option<(Node, u32)> {
        let &(node, page) = self.known.get(&key(last, tokens))?;
        (self.tokens_of(page) == tokens).then_some((node, page))
    }

    fn learn(&mut self, last: Node, tokens: &[u32], page: u32) -> Node {
        self.nodes += 1;
        let (key, node) = (key(last, tokens), Node(self.nodes));
        // Other tokens of the same hash keep their place, and nobody finds ours.
        if !self.known.contains_key(&key) {
            self.known.insert(key, (node, page));
            self.pages[page as usize].key = Some(key);
            let at = page as usize * self.page;
            self.tokens[at..at + self.page].copy_from_slice(tokens);
        }
        node
    }

    fn tokens_of(&self, page: u32) -> &[u32] {
        &self.tokens[page as usize * self.page..][..self.page]
    }

    /// Gives a sequence's pages back. The last ones are forgotten first: a prefix is of use
    /// without its end, not without its beginning.
    pub fn release(&mut self, prefix: Prefix) {
        for page in prefix.pages.into_iter().rev() {
            let info = &mut self.pages[page as usize];
            info.users -= 1;
            if info.users > 0 {
                continue;
            }
            if info.key.is_some() {
                self.clock += 1;
                info.idle_since = self.clock;
                self.idle.insert(self.clock, page);
            } else {
                self.free.push(page);
            }
        }
    }

    fn take(&mut self, page: u32) {
        let info = &mut self.pages[page as usize];
        if info.users == 0 {
            self.idle.remove(&info.idle_since);
        }
        info.users += 1;
    }

    fn forget_oldest(&mut self) -> Option<u32> {
        let (_, page) = self.idle.pop_first()?;
        let key = self.pages[page as usize].key.take().expect("idle pages are known");
        self.known.remove(&key);
        Some(page)
    }
}

fn key(last: Node, tokens: &[u32]) -> Key {
    let mut hasher = DefaultHasher::new();
    tokens.hash(&mut hasher);
    (last, hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(pages: &mut Pages, tokens: &[u32]) -> (Prefix, usize) {
        let (mut prefix, covered) = pages.find(tokens);
        assert!(pages.extend(&mut prefix, tokens.len()));
        pages.filled(&mut prefix, tokens);
        (prefix, covered)
    }

    #[test]
    fn a_prefix_is_found_while_used_and_after() {
        let mut pages = Pages::new(8, 2, true);
        let (a, covered) = claim(&mut pages, &[1, 2, 3, 4, 5]);
        assert_eq!(covered, 0);
        let (b, covered) = claim(&mut pages, &[1, 2, 3, 4, 9]);
        assert_eq!((covered, &b.pages[..2]), (4, &a.pages[..2]));
        pages.release(a);
        pages.release(b);
        assert_eq!(pages.available(), 8);
        let (c, covered) = claim(&mut pages, &[1, 2, 3, 4]);
        assert_eq!(covered, 2, "the last token is always computed");
        pages.release(c);
    }

    #[test]
    fn the_same_page_after_another_prefix_is_another_page() {
        let mut pages = Pages::new(8, 2, true);
        let (a, _) = claim(&mut pages, &[1, 2, 3, 4, 0]);
        let (b, covered) = claim(&mut pages, &[9, 9, 3, 4, 0]);
        assert_eq!(covered, 0);
        pages.release(a);
        pages.release(b);
    }

    #[test]
    fn memory_is_found_by_forgetting_the_oldest_end() {
        let mut pages = Pages::new(4, 2, true);
        let (a, _) = claim(&mut pages, &[1, 2, 3, 4, 5, 6]);
        pages.release(a);
        let (b, _) = claim(&mut pages, &[7, 7, 8, 8]);
        // One free page and a's last were taken; its first two are still known.
        let (c, covered) = pages.find(&[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(covered, 4);
        let mut more = pages.find(&[5, 5, 5]).0;
        assert!(!pages.extend(&mut more, 3), "all four are in use");
        [b, c, more].into_iter().for_each(|prefix| pages.release(prefix));
        assert_eq!(pages.available(), 4);
    }

    #[test]
    fn models_with_other_state_reuse_nothing() {
        let mut pages = Pages::new(4, 2, false);
        let (a, _) = claim(&mut pages, &[1, 2, 3]);
        assert_eq!(claim(&mut pages, &[1, 2, 3]).1, 0);
        pages.release(a);
    }

    /// Random claims and releases against a plain model of who holds what.
    #[test]
    fn no_page_serves_two_contents() {
        let mut random = 1u64;
        let mut next = |n: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        let mut pages = Pages::new(12, 2, true);
        let mut content: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut live: Vec<Prefix> = vec![];
        for _ in 0..5000 {
            if next(2) == 0 && !live.is_empty() {
                let gone = live.swap_remove(next(live.len() as u64) as usize);
                pages.release(gone);
                continue;
            }
            let tokens: Vec<u32> = (0..1 + next(9)).map(|_| next(2) as u32).collect();
            let (mut prefix, covered) = pages.find(&tokens);
            for (i, page) in prefix.pages.iter().enumerate() {
                assert_eq!(
                    content[page],
                    tokens[..2 * (i + 1)],
                    "page {page} holds another prefix"
                );
            }
            if !pages.extend(&mut prefix, tokens.len()) {
                pages.release(prefix);
                continue;
            }
            for (i, page) in prefix.pages.iter().enumerate().skip(covered / 2) {
                assert!(
                    !live.iter().any(|other| other.pages.contains(page)),
                    "page {page} is taken"
                );
                content.insert(*page, tokens[..tokens.len().min(2 * (i + 1))].to_vec());
            }
            pages.filled(&mut prefix, &tokens);
            live.push(prefix);
        }
        live.into_iter().for_each(|prefix| pages.release(prefix));
        assert_eq!(pages.available(), 12);
    }
}
