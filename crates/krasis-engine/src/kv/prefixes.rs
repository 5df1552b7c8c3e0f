//! Pages and places of all sequences, and what is known of their content.
//!
//! A sequence claims the longest prefix of its prompt that is known, wherever that lies, and pages for
//! the rest. What it computes becomes known page by page; what it gives back keeps its content until
//! the memory is needed, and then goes to host memory if there is some for it.

use super::claim::Loading;
use super::cuts::{Cuts, Wanted};
use super::disk::{Disk, Listed};
use super::options::{PrefixOptions, Reuse};
use super::pages::Pages;
use super::past::Past;
use super::places::Places;
use super::ram::Ram;
use super::save::Saving;
use super::tree::{Kind, Node, Tree};
use crate::census::Census;
use krasis_core::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// KV pages.
    pub pages: u32,
    /// Tokens of a page.
    pub page: u32,
    /// Places of recurrent state.
    pub places: u32,
    /// Sequences that run at a time: they have a place each, checkpoints the others.
    pub sequences: u32,
    /// Bytes of a page.
    pub page_bytes: Bytes,
    /// Bytes of a state; nothing where pages hold all of the past.
    pub state_bytes: Bytes,
    /// Bytes of host memory beyond them.
    pub ram: Bytes,
    /// Tokens that a checkpoint has to spare before a prompt is cut for it.
    pub cut_worth: u32,
}

/// Everything that is remembered.
pub struct Prefixes {
    pub(super) tree: Tree,
    pub(super) pages: Pages,
    pub(super) places: Places,
    pub(super) ram: Ram,
    pub(super) saving: Option<Saving>,
    pub(super) shape: Shape,
    pub(super) reuse: Reuse,
    pub(super) census: Arc<Census>,
    /// Prompt tokens that are computed in a second, at best.
    pub(super) computed_rate: f64,
}

/// Memory of a running sequence, and how far its content is known.
#[derive(Debug)]
pub struct Held {
    /// KV pages in the order of the tokens.
    pub pages: Vec<u32>,
    /// Place in recurrent state.
    pub place: u32,
    /// The last page that is known, and how many are.
    pub(super) last: Node,
    pub(super) known: usize,
    pub(super) cuts: Cuts,
    /// Where the last checkpoint of its answer is.
    pub(super) tail: Option<Node>,
    /// What it waits for.
    pub(super) loading: Option<Loading>,
}

impl Prefixes {
    /// Nothing is known yet but what `disk` has.
    pub fn new(
        shape: Shape,
        options: &PrefixOptions,
        disk: Option<(Disk, Vec<Listed>)>,
        census: Arc<Census>,
    ) -> Prefixes {
        let room = if options.reuse == Reuse::Longest { 2 * shape.pages as usize } else { 0 };
        let mut prefixes = Prefixes {
            tree: Tree::new(shape.page as usize, room),
            pages: Pages::new(shape.pages),
            places: Places::new(shape.places),
            ram: Ram::new(shape.ram),
            saving: None,
            shape,
            reuse: options.reuse,
            census,
            computed_rate: 0.0,
        };
        if let Some((disk, listed)) = disk.filter(|_| options.reuse == Reuse::Longest) {
            prefixes.saving = Some(Saving::new(disk));
            prefixes.restore(listed);
        }
        prefixes
    }

    /// Pages that a new claim could get.
    pub fn available(&self) -> usize {
        self.pages.available()
    }

    /// Whether another sequence may run.
    pub fn has_place(&self) -> bool {
        self.places.sequences() < self.shape.sequences as usize
    }

    pub(super) fn recurrent(&self) -> bool {
        self.shape.state_bytes.0 > 0
    }

    /// Bytes of a content.
    pub(super) fn bytes(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Page => self.shape.page_bytes.0,
            Kind::State => self.shape.state_bytes.0,
        }
    }

    /// So many tokens of prompts were computed in so many seconds.
    pub fn computed(&mut self, tokens: usize, seconds: f64) {
        self.computed_rate = self.computed_rate.max(tokens as f64 / seconds.max(1e-9));
    }

    /// A page of the device holds a node's content, unless another one does already.
    pub(super) fn name(&mut self, node: Node, page: u32) {
        if let Some(copies) = self.tree.copies_mut(node, Kind::Page)
            && copies.device.is_none()
        {
            copies.device = Some(page);
            self.pages.name(page, node);
        }
    }

    /// A page for new content; there is one, as somebody has counted before.
    pub(super) fn new_page(&mut self, past: &mut dyn Past) -> u32 {
        self.try_page(past).expect("pages were counted before they were claimed")
    }

    fn try_page(&mut self, past: &mut dyn Past) -> Option<u32> {
        let (page, before) = self.pages.next()?;
        if let Some(node) = before {
            self.forget(past, node, Kind::Page, page);
        }
        Some(page)
    }

    pub(super) fn place_of_sequence(&mut self, past: &mut dyn Past) -> u32 {
        let tree = &self.tree;
        let (place, before) = self
            .places
            .for_sequence(|node| tree.behind_a_state(node))
            .expect("somebody has asked before");
        if let Some(node) = before {
            self.forget(past, node, Kind::State, place);
        }
        place
    }

    /// The device needs the memory of a node's content, which goes to host memory if it may.
    fn forget(&mut self, past: &mut dyn Past, node: Node, kind: Kind, index: u32) {
        let Some(copies) = self.tree.copies_mut(node, kind) else { return };
        copies.device = None;
        let kept = copies.ram;
        let bytes = self.bytes(kind) as usize;
        if !kept && self.ram.takes(bytes) {
            let mut content = Vec::with_capacity(bytes);
            past.save(kind, index, &mut content);
            let gone = self.ram.put(node, kind, Arc::new(content));
            self.tree.copies_mut(node, kind).expect("it is there").ram = true;
            for (node, kind) in gone {
                if let Some(copies) = self.tree.copies_mut(node, kind) {
                    copies.ram = false;
                }
                self.settle(node);
            }
        }
        self.census.prefix_ram_bytes.store(self.ram.used(), Ordering::Relaxed);
        self.settle(node);
    }

    /// Content of a node has gone: a state without its page is of no use, and a node without content
    /// leads nowhere.
    pub(super) fn settle(&mut self, node: Node) {
        let exists = |copies: super::tree::Copies| copies != Default::default();
        let page = self.tree.copies(node, Kind::Page).unwrap_or_default();
        if let Some(state) = self.tree.copies_mut(node, Kind::State)
            && !exists(page)
            && exists(*state)
        {
            let gone = std::mem::take(state);
            if let Some(place) = gone.device {
                self.places.free(place);
            }
            if gone.ram {
                self.ram.remove(node, Kind::State);
            }
        }
        self.tree.prune(node);
    }

    /// Extends a sequence to hold `tokens` tokens. False if there is no memory: what was added stays,
    /// and the caller tries again when others have released theirs.
    #[must_use]
    pub fn extend(&mut self, past: &mut dyn Past, held: &mut Held, tokens: usize) -> bool {
        while held.pages.len() * self.tree.page() < tokens {
            let Some(page) = self.try_page(past) else { return false };
            held.pages.push(page);
        }
        true
    }

    /// How far a step goes that begins at `from` and may go up to `to`.
    pub fn step_end(&self, held: &Held, from: usize, to: usize) -> usize {
        if self.recurrent() && self.reuse == Reuse::Longest { held.cuts.end(from, to) } else { to }
    }

    /// Tells which tokens a sequence has computed by now: full pages become known, and a state is kept
    /// where one is wanted.
    pub fn computed_up_to(&mut self, past: &mut dyn Past, held: &mut Held, tokens: &[u32]) {
        if self.reuse == Reuse::Nothing {
            return;
        }
        for chunk in tokens.chunks_exact(self.tree.page()).skip(held.known) {
            let page = held.pages[held.known];
            held.last = self.tree.learn(held.last, chunk);
            // If another sequence has computed the same, ours stays nameless.
            self.name(held.last, page);
            held.known += 1;
        }
        if !self.recurrent() {
            return;
        }
        match held.cuts.wants(tokens.len()) {
            None => {}
            Some(Wanted::Lasting) => self.checkpoint(past, held.last, held.place, None),
            Some(Wanted::Tail) => {
                self.checkpoint(past, held.last, held.place, held.tail);
                held.tail = Some(held.last);
            }
        }
    }

    /// Keeps the state of a place behind a node, where that of another one was if it is still there.
    fn checkpoint(&mut self, past: &mut dyn Past, node: Node, from: u32, before: Option<Node>) {
        let Some(copies) = self.tree.copies(node, Kind::State) else { return };
        if let Some(place) = copies.device {
            return self.places.touch(place);
        }
        let old = before.and_then(|old| Some((old, self.tree.copies(old, Kind::State)?.device?)));
        let place = match old {
            Some((old, place)) => {
                self.tree.copies_mut(old, Kind::State).expect("it was there").device = None;
                self.places.rename(place, node);
                place
            }
            None => {
                let tree = &self.tree;
                let loss = |node| tree.behind_a_state(node);
                let Some((place, gone)) = self.places.for_checkpoint(node, loss) else { return };
                if let Some(gone) = gone {
                    self.forget(past, gone, Kind::State, place);
                }
                place
            }
        };
        past.copy_state(from, place);
        if let Some(copies) = self.tree.copies_mut(node, Kind::State) {
            copies.device = Some(place);
        }
    }

    /// Gives a sequence's memory back. The last pages are forgotten first: a prefix is of use without
    /// its end, not without its beginning.
    pub fn release(&mut self, held: Held) {
        self.save_later(held.last);
        held.pages.into_iter().rev().for_each(|page| self.pages.release(page));
        self.places.free(held.place);
    }
}
