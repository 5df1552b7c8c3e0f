//! The memory of the past on one or more devices, seen by what decides about it.

use super::tree::Kind;
use crate::runner::Rank;
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

/// The layers' memory on their devices. What is saved is in the order of the layers, so nobody can tell
/// from it how they were spread.
pub struct OnDevices<'a, D>(pub &'a mut [Rank<D>]);

/// What a page or a state takes in these layers.
pub fn bytes(caches: &[Cache], kind: Kind) -> Bytes {
    pieces(caches, kind, 0).map(|slot| Bytes(slot.len)).sum()
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

impl<D: Memory> Past for OnDevices<'_, D> {
    fn save(&mut self, kind: Kind, index: u32, to: &mut Vec<u8>) {
        to.clear();
        let mut piece = Vec::new();
        for Rank { device, network, .. } in &mut *self.0 {
            for slot in pieces(&network.caches, kind, index) {
                device.download_to(slot, &mut piece);
                to.extend_from_slice(&piece);
            }
        }
    }

    fn load(&mut self, kind: Kind, index: u32, mut from: &[u8]) {
        for Rank { device, network, .. } in &mut *self.0 {
            for slot in pieces(&network.caches, kind, index) {
                let (piece, rest) = from.split_at(slot.len as usize);
                device.upload(slot, piece);
                from = rest;
            }
        }
        assert!(from.is_empty(), "{} bytes more than a {kind:?} has", from.len());
    }

    fn copy_state(&mut self, from: u32, to: u32) {
        for Rank { device, network, .. } in &mut *self.0 {
            let of = |place| pieces(&network.caches, Kind::State, place);
            of(from).zip(of(to)).for_each(|(from, to)| device.copy(from, to));
        }
    }
}
