//! Memory for a sequence, and in it what is known of its beginning.

use super::cuts::Cuts;
use super::disk::{Asked, Spot};
use super::past::Past;
use super::prefixes::{Held, Prefixes};
use super::ram::Content;
use super::tree::{Kind, Node, OnDisk, ROOT};
use std::sync::atomic::Ordering;

/// Content on its way from the disk.
#[derive(Debug)]
pub struct Loading {
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
        let worth = self.shape.cut_worth as usize;
        Cuts::of(tokens, pages * page, path.len() * page, checkpoints, worth)
    }

    pub(super) fn on_device(&self, node: Node) -> Option<u32> {
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
}

impl Held {
    /// The fetch that it waits for.
    pub fn awaits(&self) -> Option<u64> {
        self.loading.as_ref().map(|loading| loading.asked.fetch)
    }
}
