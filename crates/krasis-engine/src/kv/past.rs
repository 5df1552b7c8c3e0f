//! The device's memory of the past, seen by what decides about it.

use super::tree::Kind;
use krasis_core::{Bytes, Slot};
use krasis_model::Cache;
use krasis_ops::Memory;

/// Where pages and states lie. What is called here happens behind the forward passes before and before
/// those that come.
pub trait Past {
    /// Copies a page, or the state of a place, to the host, in place of what `to` holds.
    fn save(&mut self, kind: Kind, index: u32, to: &mut Vec<u8>);
    /// Copies it back, to any page or place.
    fn load(&mut self, kind: Kind, index: u32, from: &[u8]);
    /// Copies the state of a place to another one.
    fn copy_state(&mut self, from: u32, to: u32);
}

/// The layers' memory on a device.
pub struct OnDevice<'a, D> {
    /// The device.
    pub device: &'a mut D,
    /// What each layer remembers.
    pub caches: &'a [Cache],
}

fn pieces(caches: &[Cache], kind: Kind, index: u32) -> impl Iterator<Item = Slot<u8>> {
    let all = caches.iter().flat_map(move |cache| match kind {
        Kind::Page => cache.page(index),
        Kind::State => {
            let [a, b] = cache.place(index);
            [a, b, Slot::EMPTY, Slot::EMPTY]
        }
    });
    all.filter(|slot| !slot.is_empty())
}

impl<D> OnDevice<'_, D> {
    /// What a page or a state takes in all layers.
    pub fn bytes(caches: &[Cache], kind: Kind) -> Bytes {
        pieces(caches, kind, 0).map(|slot| Bytes(slot.len)).sum()
    }
}

impl<D: Memory> Past for OnDevice<'_, D> {
    fn save(&mut self, kind: Kind, index: u32, to: &mut Vec<u8>) {
        to.clear();
        let mut piece = Vec::new();
        for slot in pieces(self.caches, kind, index) {
            self.device.download_to(slot, &mut piece);
            to.extend_from_slice(&piece);
        }
    }

    fn load(&mut self, kind: Kind, index: u32, mut from: &[u8]) {
        for slot in pieces(self.caches, kind, index) {
            let (piece, rest) = from.split_at(slot.len as usize);
            self.device.upload(slot, piece);
            from = rest;
        }
        assert!(from.is_empty(), "{} bytes more than a {kind:?} has", from.len());
    }

    fn copy_state(&mut self, from: u32, to: u32) {
        let both = pieces(self.caches, Kind::State, from).zip(pieces(self.caches, Kind::State, to));
        both.for_each(|(from, to)| self.device.copy(from, to));
    }
}
