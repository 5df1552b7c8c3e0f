//! Pages and places of all sequences, and what is known of their content.
//!
//! A sequence claims the longest prefix of its prompt that is known, wherever that lies, and pages for
//! the rest. What it computes becomes known page by page; what it gives back keeps its content until
//! the memory is needed, and then goes to host memory if there is some for it.

use super::cuts::{Cuts, REST, STRIDE, Wanted};
use super::disk::{Asked, Disk, Listed, Spot};
use super::options::{PrefixOptions, Reuse};
use super::pages::Pages;
use super::past::Past;
use super::places::Places;
use super::ram::{Content, Ram};
use super::save::Saving;
use super::tree::{Kind, Node, OnDisk, ROOT, Tree};
use crate::census::Census;
use krasis_core::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
}

/// Everything that is remembered.
pub struct Prefixes {
    pub(super) tree: Tree,
    pages: Pages,
    places: Places,
    pub(super) ram: Ram,
    pub(super) saving: Option<Saving>,
    shape: Shape,
    reuse: Reuse,
    pub(super) census: Arc<Census>,
    /// Prompt tokens that are computed in a second, at best.
    computed_rate: f64,
}

/// Memory of a running sequence, and how far its content is known.
#[derive(Debug)]
pub struct Held {
    /// KV pages in the order of the tokens.
    pub pages: Vec<u32>,
    /// Place in recurrent state.
    pub place: u32,
    /// The last page that is known, and how many are.
    last: Node,
    known: usize,
    cuts: Cuts,
    /// Where the last checkpoint of its answer is.
    tail: Option<Node>,
    /// What it waits for.
    loading: Option<Loading>,
}

/// Content on its way from the disk.
#[derive(Debug)]
struct Loading {
    asked: Asked,
    /// Which pages of the sequence they are, and its state.
    items: Vec<(Kind, Node, usize)>,
    covered: usize,
}

/// What a sequence gets.
pub struct Claim {
    /// Its memory.
    pub held: Held,
    /// Tokens whose past is there already; nothing yet if some of it is on its way.
    pub covered: usize,
}

/// Whether a sequence has what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Not all of it.
    More,
    /// So many tokens are covered.
    Done(usize),
    /// It will not come: the sequence has to begin again.
    Missing,
}

/// Where content comes from.
enum Source {
    Device(u32),
    Ram(Content),
    Disk(Spot),
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

    fn recurrent(&self) -> bool {
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

    /// Memory for a sequence of `tokens` tokens that begins with the longest known prefix of `prompt`,
    /// but never all of it: the last token must be computed for its logits. Nothing if there is none,
    /// or if fewer than `spare` pages would be left.
    pub fn claim(
        &mut self,
        past: &mut dyn Past,
        prompt: &[u32],
        tokens: usize,
        spare: usize,
    ) -> Option<Claim> {
        if !self.has_place() {
            return None;
        }
        let path = self.path(prompt);
        let found = self.usable(&path);
        let known = &path[..found.pages];
        let taken: Vec<Option<u32>> = known.iter().map(|&node| self.on_device(node)).collect();
        taken.iter().flatten().for_each(|&page| self.pages.take(page));
        let pages_wanted = tokens.div_ceil(self.tree.page());
        let missing = pages_wanted - taken.iter().flatten().count();
        if self.pages.available() < missing + spare {
            taken.into_iter().flatten().for_each(|page| self.pages.release(page));
            return None;
        }
        self.count(prompt.len(), &path, &found, &taken);
        // All sources are known before anything is moved, or it could be moved away.
        let sources: Vec<Source> = known
            .iter()
            .map(|&node| self.source(node, Kind::Page).expect("what is usable has a source"))
            .collect();
        let state = known.last().filter(|_| self.recurrent()).copied();
        let state = state.and_then(|node| Some((node, self.source(node, Kind::State)?)));

        let mut held = Held {
            pages: Vec::with_capacity(pages_wanted),
            place: self.place_of_sequence(past),
            last: known.last().copied().unwrap_or(ROOT),
            known: known.len(),
            cuts: self.cuts(tokens, &path, found.pages),
            tail: None,
            loading: None,
        };
        let mut awaited: Vec<((Kind, Node, usize), Spot)> = Vec::new();
        for index in 0..pages_wanted {
            let Some(source) = sources.get(index) else {
                held.pages.push(self.new_page(past));
                continue;
            };
            let node = path[index];
            let page = match source {
                Source::Device(page) => *page,
                Source::Ram(content) => {
                    let page = self.new_page(past);
                    past.load(Kind::Page, page, content);
                    self.name(node, page);
                    page
                }
                Source::Disk(spot) => {
                    awaited.push(((Kind::Page, node, index), *spot));
                    self.new_page(past)
                }
            };
            held.pages.push(page);
        }
        match state {
            // It may have had to go, and was copied, if need be, to where it was: no copy then.
            Some((_, Source::Device(place))) if place == held.place => {}
            Some((_, Source::Device(place))) => past.copy_state(place, held.place),
            Some((_, Source::Ram(content))) => past.load(Kind::State, held.place, &content),
            Some((node, Source::Disk(spot))) => awaited.push(((Kind::State, node, 0), spot)),
            None => {}
        }
        let mut covered = found.pages * self.tree.page();
        self.touch_segments(known);
        if !awaited.is_empty() {
            let (items, spots) = awaited.into_iter().unzip();
            let saving = self.saving.as_mut().expect("spots are the disk's");
            held.loading = Some(Loading { asked: saving.disk.fetch(spots), items, covered });
            covered = 0;
        }
        Some(Claim { held, covered })
    }

    fn cuts(&self, tokens: usize, path: &[Node], pages: usize) -> Cuts {
        let checkpoints = self.shape.places.saturating_sub(self.shape.sequences) as usize;
        let page = self.tree.page();
        Cuts::of(tokens, pages * page, path.len() * page, checkpoints)
    }

    /// Nodes of a prompt's pages, as far as they are known.
    fn path(&self, prompt: &[u32]) -> Vec<Node> {
        let mut path: Vec<Node> = Vec::new();
        let rest = if self.recurrent() { REST } else { 1 };
        if self.reuse == Reuse::Longest {
            for chunk in prompt[..prompt.len().saturating_sub(rest)].chunks_exact(self.tree.page())
            {
                let last = path.last().copied().unwrap_or(ROOT);
                let Some(node) = self.tree.child(last, chunk) else { break };
                path.push(node);
            }
        }
        path
    }

    /// How much of a path is used, and why not more.
    fn usable(&self, path: &[Node]) -> Found {
        let all = self.reach(path, Reading::Disk);
        let near = self.reach(path, Reading::Memory);
        let Reach { pages, .. } = all;
        let from_disk = |node: &Node, kind| {
            let copies = self.tree.copies(*node, kind).unwrap_or_default();
            match copies.disk {
                OnDisk::At(spot) if copies.device.is_none() && !copies.ram => spot.bytes,
                _ => 0,
            }
        };
        let bytes: u64 = path[..pages].iter().map(|node| from_disk(node, Kind::Page)).sum();
        let state = path[..pages].last().filter(|_| self.recurrent());
        let bytes = bytes + state.map_or(0, |node| from_disk(node, Kind::State));
        let saved = (pages - near.pages) * self.tree.page();
        if bytes == 0 || self.reading_is_faster(bytes, saved) {
            return Found { pages, readable: all.readable, slow: 0 };
        }
        Found { pages: near.pages, readable: all.readable, slow: pages - near.pages }
    }

    /// Pages of a path up to which everything can be had.
    fn reach(&self, path: &[Node], reading: Reading) -> Reach {
        let has = |node: Node, kind| {
            let copies = self.tree.copies(node, kind).unwrap_or_default();
            let disk = matches!(copies.disk, OnDisk::At(_)) && reading == Reading::Disk;
            copies.device.is_some() || copies.ram || disk
        };
        let missing = path.iter().position(|&node| !has(node, Kind::Page));
        let readable = missing.unwrap_or(path.len());
        if !self.recurrent() {
            return Reach { pages: readable, readable };
        }
        let stride = STRIDE / self.tree.page();
        let behind = |&pages: &usize| has(path[pages - 1], Kind::State);
        let checkpoints = (1..=readable / stride).rev().map(|n| n * stride);
        Reach { pages: checkpoints.into_iter().find(behind).unwrap_or(0), readable }
    }

    /// Before both rates are known, reading is tried.
    fn reading_is_faster(&self, bytes: u64, tokens: usize) -> bool {
        let read_rate = self.saving.as_ref().map_or(0.0, |saving| saving.read_rate);
        if read_rate == 0.0 || self.computed_rate == 0.0 {
            return true;
        }
        (bytes as f64 / read_rate) < tokens as f64 / self.computed_rate
    }

    /// What was found and why not more, in tokens.
    fn count(&self, prompt: usize, path: &[Node], found: &Found, taken: &[Option<u32>]) {
        let census = &*self.census;
        let page = self.tree.page();
        let add = |number: &AtomicU64, tokens: usize| {
            number.fetch_add(tokens as u64, Ordering::Relaxed);
        };
        let pages = found.pages;
        let from = |there: fn(&super::tree::Copies) -> bool| {
            let copies =
                path[..pages].iter().filter_map(|&node| self.tree.copies(node, Kind::Page));
            copies.filter(|copies| copies.device.is_none() && there(copies)).count()
        };
        let ram = from(|copies| copies.ram);
        add(&census.prefix_queries, prompt);
        add(&census.prefix_hits, pages * page);
        add(&census.prefix_hits_device, taken.iter().flatten().count() * page);
        add(&census.prefix_hits_ram, ram * page);
        add(&census.prefix_hits_disk, from(|copies| !copies.ram) * page);
        add(&census.prefix_misses_new, prompt - path.len() * page);
        add(&census.prefix_misses_forgotten, (path.len() - found.readable) * page);
        add(&census.prefix_misses_slow, found.slow * page);
        add(&census.prefix_misses_state, (found.readable - found.slow - pages) * page);
    }

    fn on_device(&self, node: Node) -> Option<u32> {
        self.tree.copies(node, Kind::Page)?.device
    }

    /// Where content is taken from; what host memory has is used by that.
    fn source(&mut self, node: Node, kind: Kind) -> Option<Source> {
        let copies = self.tree.copies(node, kind)?;
        if let Some(index) = copies.device {
            if kind == Kind::State {
                self.places.touch(index);
            }
            return Some(Source::Device(index));
        }
        if let Some(content) = self.ram.get(node, kind) {
            return Some(Source::Ram(content));
        }
        match copies.disk {
            OnDisk::At(spot) => Some(Source::Disk(spot)),
            _ => None,
        }
    }

    /// A page of the device holds a node's content, unless another one does already.
    fn name(&mut self, node: Node, page: u32) {
        if let Some(copies) = self.tree.copies_mut(node, Kind::Page)
            && copies.device.is_none()
        {
            copies.device = Some(page);
            self.pages.name(page, node);
        }
    }

    /// A page for new content; there is one, as somebody has counted before.
    fn new_page(&mut self, past: &mut dyn Past) -> u32 {
        self.try_page(past).expect("pages were counted before they were claimed")
    }

    fn try_page(&mut self, past: &mut dyn Past) -> Option<u32> {
        let (page, before) = self.pages.next()?;
        if let Some(node) = before {
            self.forget(past, node, Kind::Page, page);
        }
        Some(page)
    }

    fn place_of_sequence(&mut self, past: &mut dyn Past) -> u32 {
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

    /// Something of what a sequence waits for has come.
    pub fn arrive(
        &mut self,
        past: &mut dyn Past,
        held: &mut Held,
        index: usize,
        content: Option<&[u8]>,
    ) -> Arrival {
        let Some(loading) = &held.loading else { return Arrival::More };
        let (kind, node, own) = loading.items[index];
        let (last, covered) = (index + 1 == loading.items.len(), loading.covered);
        let Some(content) = content else {
            if let Some(copies) = self.tree.copies_mut(node, kind) {
                copies.disk = OnDisk::Nothing;
            }
            self.census.prefix_misses_damaged.fetch_add(covered as u64, Ordering::Relaxed);
            self.settle(node);
            return Arrival::Missing;
        };
        match kind {
            Kind::Page => {
                past.load(Kind::Page, held.pages[own], content);
                self.name(node, held.pages[own]);
            }
            Kind::State => past.load(Kind::State, held.place, content),
        }
        if !last {
            return Arrival::More;
        }
        held.loading = None;
        Arrival::Done(covered)
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

impl Held {
    /// The fetch that it waits for.
    pub fn awaits(&self) -> Option<u64> {
        self.loading.as_ref().map(|loading| loading.asked.fetch)
    }
}

/// How much of a path is of use.
struct Found {
    /// Pages that are taken.
    pages: usize,
    /// Pages that could be had somewhere.
    readable: usize,
    /// Pages that computing brings sooner than the disk.
    slow: usize,
}

struct Reach {
    pages: usize,
    readable: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Memory,
    Disk,
}
