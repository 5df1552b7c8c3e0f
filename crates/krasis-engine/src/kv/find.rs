//! How much of a prompt is known, where that lies, and why it is not more.

use super::cuts::{REST, STRIDE};
use super::options::Reuse;
use super::prefixes::Prefixes;
use super::tree::{Copies, Kind, Node, OnDisk, ROOT};
use std::sync::atomic::{AtomicU64, Ordering};

/// How much of a path is of use.
pub struct Found {
    /// Pages that are taken.
    pub pages: usize,
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

impl Prefixes {
    /// Nodes of a prompt's pages, as far as they are known.
    pub(super) fn path(&self, prompt: &[u32]) -> Vec<Node> {
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
    pub(super) fn usable(&self, path: &[Node]) -> Found {
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
    pub(super) fn count(&self, prompt: usize, path: &[Node], found: &Found, taken: &[Option<u32>]) {
        let census = &*self.census;
        let page = self.tree.page();
        let add = |number: &AtomicU64, tokens: usize| {
            number.fetch_add(tokens as u64, Ordering::Relaxed);
        };
        let pages = found.pages;
        let from = |there: fn(&Copies) -> bool| {
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
}
