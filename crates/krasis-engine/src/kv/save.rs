//! What is written to the disk and what has come of it, step by step beside the forward passes.

use super::disk::{Disk, Item, Listed, Piece, Report, SEGMENT_BYTES};
use super::past::Past;
use super::prefixes::Prefixes;
use super::tree::{Kind, Node, OnDisk, ROOT};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A state is written where it spares reading at least this part of its own bytes again in pages: those
/// of a long conversation are as large as all of its pages.
const STATE_PART: u64 = 8;

/// A disk that does nothing for so long is not waited for at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The disk, and what is to be written.
pub struct Saving {
    pub(super) disk: Disk,
    /// Nodes behind those that lead to them.
    queue: VecDeque<(Node, Kind)>,
    /// What each segment holds.
    segments: HashMap<u64, Vec<(Node, Kind)>>,
    /// Bytes that are read in a second, at best.
    pub(super) read_rate: f64,
}

impl Saving {
    /// Nothing is to be written yet.
    pub fn new(disk: Disk) -> Saving {
        Saving { disk, queue: VecDeque::new(), segments: HashMap::new(), read_rate: 0.0 }
    }
}

impl Prefixes {
    /// Knows what the disk has. Nodes that nothing leads to any more stay unknown.
    pub(super) fn restore(&mut self, mut listed: Vec<Listed>) {
        let names = listed.iter().map(|listed| listed.node.0);
        self.tree.skip_names(names.max().unwrap_or(0));
        // Those before have smaller names, and a node's page comes before its state.
        listed.sort_by_key(|listed| (listed.node, listed.kind));
        // The same tokens may have been computed and written again.
        let mut twins: HashMap<Node, Node> = HashMap::new();
        for Listed { kind, node, parent, tokens, spot } in listed {
            let of = |node: Node| twins.get(&node).copied().unwrap_or(node);
            let mut known = of(node);
            if kind == Kind::Page {
                match self.tree.child(of(parent), &tokens) {
                    Some(twin) => {
                        known = twin;
                        twins.insert(node, twin);
                    }
                    None => self.tree.insert(node, of(parent), &tokens),
                }
            }
            self.is_written(known, kind, spot);
        }
    }

    fn is_written(&mut self, node: Node, kind: Kind, spot: super::disk::Spot) {
        let Some(copies) = self.tree.copies_mut(node, kind) else { return };
        copies.disk = OnDisk::At(spot);
        let saving = self.saving.as_mut().expect("a disk has told");
        saving.segments.entry(spot.segment).or_default().push((node, kind));
        self.census.prefix_disk_bytes.fetch_add(spot.bytes, Ordering::Relaxed);
    }

    fn is_gone(&mut self, node: Node, kind: Kind) {
        if let Some(copies) = self.tree.copies_mut(node, kind) {
            copies.disk = OnDisk::Nothing;
        }
        self.settle(node);
    }

    /// What a sequence leaves behind is to be written, as far as it is not there.
    pub(super) fn save_later(&mut self, last: Node) {
        if self.saving.as_ref().is_none_or(|saving| saving.disk.is_closed()) {
            return;
        }
        let mut path = Vec::new();
        let mut node = last;
        while node != ROOT {
            let Some(parent) = self.tree.parent(node) else { return };
            path.push(node);
            node = parent;
        }
        let [page_bytes, state_bytes] = [Kind::Page, Kind::State].map(|kind| self.bytes(kind));
        let mut since = 0;
        for node in path.into_iter().rev() {
            since += page_bytes;
            for kind in [Kind::Page, Kind::State] {
                let copies = self.tree.copies(node, kind).unwrap_or_default();
                let near = kind == Kind::State && since * STATE_PART < state_bytes;
                let here = copies.device.is_some() || copies.ram;
                if copies.disk == OnDisk::Nothing && (near || !here) {
                    continue;
                }
                if kind == Kind::State {
                    since = 0;
                }
                if copies.disk == OnDisk::Nothing {
                    let saving = self.saving.as_mut().expect("there is a disk");
                    saving.queue.push_back((node, kind));
                }
            }
        }
    }

    /// Gives the disk one more segment, if it takes one: as much as keeps nobody waiting.
    pub fn save(&mut self, past: &mut dyn Past) {
        if self.saving.as_ref().is_none_or(|s| s.queue.is_empty() || !s.disk.has_room()) {
            return;
        }
        let (mut items, mut bytes) = (Vec::new(), 0);
        while bytes < SEGMENT_BYTES {
            let saving = self.saving.as_mut().expect("there is a disk");
            let Some((node, kind)) = saving.queue.pop_front() else { break };
            if let Some(item) = self.item(past, node, kind) {
                bytes += item.content.len() as u64;
                items.push(item);
            }
        }
        let Some(first) = items.first() else { return };
        let above = self.segments_to(first.parent);
        self.saving.as_mut().expect("there is a disk").disk.write(items, above);
    }

    /// What is to be written of a node, if it is still there and of use: the page before it is on the
    /// disk, or on its way.
    fn item(&mut self, past: &mut dyn Past, node: Node, kind: Kind) -> Option<Item> {
        let (parent, copies) = (self.tree.parent(node)?, self.tree.copies(node, kind)?);
        let needed = if kind == Kind::Page { parent } else { node };
        let kept = |copies: super::tree::Copies| copies.disk != OnDisk::Nothing;
        let needed = needed == ROOT || self.tree.copies(needed, Kind::Page).is_some_and(kept);
        if kept(copies) || !needed {
            return None;
        }
        let content = match copies.device {
            Some(index) => {
                let mut content = Vec::with_capacity(self.bytes(kind) as usize);
                past.save(kind, index, &mut content);
                Arc::new(content)
            }
            None => self.ram.get(node, kind)?,
        };
        // The next page of this segment is of use because this one is.
        self.tree.copies_mut(node, kind)?.disk = OnDisk::Coming;
        let tokens = self.tree.tokens(node)?.to_vec();
        Some(Item { kind, node, parent, tokens, content })
    }

    /// Segments of a prefix from its end to its beginning, which is used last by that.
    fn segments_to(&self, last: Node) -> Vec<u64> {
        let mut segments = Vec::new();
        let mut next = Some(last).filter(|&node| node != ROOT);
        while let Some(node) = next {
            for kind in [Kind::State, Kind::Page] {
                if let Some(OnDisk::At(spot)) = self.tree.copies(node, kind).map(|c| c.disk) {
                    segments.push(spot.segment);
                }
            }
            next = self.tree.parent(node).filter(|&node| node != ROOT);
        }
        segments.dedup();
        segments
    }

    /// A prefix is of use.
    pub(super) fn touch_segments(&mut self, path: &[Node]) {
        if let (Some(saving), Some(&last)) = (&self.saving, path.last()) {
            saving.disk.touch(self.segments_to(last));
        }
    }

    /// Hears what the disk has done, up to something that was asked for.
    pub fn next_piece(&mut self) -> Option<Piece> {
        loop {
            match self.saving.as_mut()?.disk.report()? {
                Report::Written(spots) => {
                    for (node, kind, spot) in spots {
                        self.is_written(node, kind, spot);
                    }
                }
                Report::Unwritten(items) => {
                    items.into_iter().for_each(|(node, kind)| self.is_gone(node, kind));
                }
                Report::Gone(segment) => {
                    let saving = self.saving.as_mut().expect("a disk has told");
                    for (node, kind) in saving.segments.remove(&segment).unwrap_or_default() {
                        let copies = self.tree.copies(node, kind).unwrap_or_default();
                        if let OnDisk::At(spot) = copies.disk
                            && spot.segment == segment
                        {
                            let bytes = &self.census.prefix_disk_bytes;
                            bytes.fetch_sub(spot.bytes, Ordering::Relaxed);
                            self.is_gone(node, kind);
                        }
                    }
                }
                Report::Closed => self.saving.as_mut().expect("a disk has told").queue.clear(),
                Report::Piece(piece) => {
                    let bytes = piece.content.as_ref().map_or(0, Vec::len);
                    let rate = bytes as f64 / piece.time.as_secs_f64().max(1e-9);
                    let saving = self.saving.as_mut().expect("a disk has told");
                    saving.read_rate = saving.read_rate.max(rate);
                    return Some(piece);
                }
            }
        }
    }

    /// Whether there is something to do for the disk, or to hear from it.
    pub fn has_errands(&self) -> bool {
        let errands = |saving: &Saving| !saving.queue.is_empty() || saving.disk.is_writing();
        self.saving.as_ref().is_some_and(errands)
    }

    /// Waits for the disk, but not for long.
    pub fn wait(&mut self, most: Duration) {
        if let Some(saving) = &mut self.saving {
            saving.disk.wait(most);
        }
    }

    /// Writes what is left to be written, for whoever comes next.
    pub fn close(&mut self, past: &mut dyn Past) {
        let start = Instant::now();
        while self.has_errands() && start.elapsed() < PATIENCE {
            self.save(past);
            self.wait(Duration::from_millis(20));
            while self.next_piece().is_some() {}
        }
    }
}
