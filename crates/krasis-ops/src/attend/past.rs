//! The past as products want it: a block of keys with positions side by side, a block of values with
//! dimensions side by side, both as floats whatever the store's format.

use super::plan::PART;
use crate::step::KvStore;
use bytemuck::cast_slice;
use krasis_core::{DType, Format, KvDtype};
use krasis_cpu::floats::{GROUP, PAD, ROWS_TRANSPOSED, prefetch, transpose};
use krasis_cpu::vector::{decode_f8, decode_row};
use krasis_cpu::{Inputs, Isa};
use std::ops::Range;

/// Positions that are read before any row meets them.
pub(crate) const BLOCK: usize = 64;

/// Groups of positions in a part.
pub(crate) const PART_GROUPS: usize = PART / GROUP;

/// Columns that a matrix of `cols` occupies.
pub(crate) const fn padded(cols: usize) -> usize {
    cols.next_multiple_of(PAD)
}

/// Floats from one row of a block of values to the next. Rows that are 1 KiB apart, or a multiple of it,
/// would share a few sets of the first cache and drive each other out of it.
pub(crate) const fn values_stride(dim: usize) -> usize {
    let width = padded(dim);
    if width.is_multiple_of(256) { width + 16 } else { width }
}

/// One head of a sequence's past.
pub(crate) struct Past<'a> {
    pub isa: Isa,
    pub pages: &'a [u32],
    pub head: u32,
    /// Elements of a key, those of all stores together.
    pub k_dim: usize,
    pub inputs: &'a Inputs<'a>,
}

/// Positions that are asked for ahead of the ones at work: some 100 ns of transposing.
const AHEAD: usize = 16;

/// A store's memory.
#[derive(Clone, Copy)]
struct Stored<'a> {
    store: &'a KvStore,
    data: &'a [u8],
    scales: &'a [f32],
}

impl Past<'_> {
    /// `to[i, j]` becomes element `i` at the `j`th position, in panels of [`PAD`] positions, each
    /// `[dim, PAD]`. Columns behind the last position may hold anything.
    pub fn keys(&self, store: &KvStore, at: Range<usize>, vectors: &mut [f32], to: &mut [f32]) {
        let (dim, last) = (store.dim as usize, at.end - 1);
        let stored = self.stored(store);
        for (eight, first) in at.clone().step_by(ROWS_TRANSPOSED).enumerate() {
            let soon = first + AHEAD..at.end.min(first + AHEAD + ROWS_TRANSPOSED);
            soon.for_each(|position| prefetch(self.bytes(&stored, position)));
            let mut scratch = vectors.chunks_exact_mut(dim);
            let rows = std::array::from_fn(|i| {
                let scratch = scratch.next().expect("eight vectors fit");
                self.vector(&stored, last.min(first + i), scratch)
            });
            let (panel, col) = (eight * ROWS_TRANSPOSED / PAD, eight * ROWS_TRANSPOSED % PAD);
            transpose(self.isa, rows, &mut to[panel * PAD * self.k_dim..][col..], PAD);
        }
    }

    /// `to[j, i]` becomes element `i` at the `j`th position, rows as far apart as
    /// [`values_stride`] says, padded with zeros.
    pub fn values(&self, store: &KvStore, at: Range<usize>, to: &mut [f32]) {
        let (dim, stored, end) = (store.dim as usize, self.stored(store), at.end);
        for (position, to) in at.zip(to.chunks_exact_mut(values_stride(dim))) {
            if position + AHEAD < end {
                prefetch(self.bytes(&stored, position + AHEAD));
            }
            let (to, rest) = to.split_at_mut(dim);
            rest.fill(0.0);
            if store.dtype == KvDtype::F32 {
                to.copy_from_slice(self.vector(&stored, position, &mut []));
            } else {
                self.vector(&stored, position, to);
            }
        }
    }

    /// `to[j, i]` becomes element `i` at the `j`th position, without padding.
    pub fn decode(&self, store: &KvStore, at: Range<usize>, to: &mut [f32]) {
        let stored = self.stored(store);
        for (position, to) in at.zip(to.chunks_exact_mut(store.dim as usize)) {
            self.vector(&stored, position, to);
        }
    }

    /// Where the vectors of every [`GROUP`] positions begin, whose first begins a part; behind the last,
    /// that of the last again.
    pub fn starts(&self, store: &KvStore, at: Range<usize>) -> [usize; PART_GROUPS] {
        let bytes = (store.dim * store.dtype.bytes()) as usize;
        let last = self.index(store, (at.end - 1) / GROUP * GROUP) * bytes;
        let mut starts = [last; PART_GROUPS];
        for (start, first) in starts.iter_mut().zip(at.step_by(GROUP)) {
            *start = self.index(store, first) * bytes;
        }
        starts
    }

    /// Asks for the first positions of a block.
    pub fn announce(&self, store: &KvStore, at: Range<usize>) {
        let stored = self.stored(store);
        at.take(AHEAD).for_each(|position| prefetch(self.bytes(&stored, position)));
    }

    fn stored<'b>(&'b self, store: &'b KvStore) -> Stored<'b> {
        let (data, scales) = (self.inputs.slice(store.data), self.inputs.slice(store.scales));
        Stored { store, data, scales }
    }

    /// Where the head lies among all heads of all tokens.
    fn index(&self, store: &KvStore, position: usize) -> usize {
        store.token(self.pages, position as u32) * store.heads as usize + self.head as usize
    }

    fn bytes<'b>(&self, stored: &Stored<'b>, position: usize) -> &'b [u8] {
        let bytes = stored.store.dim as usize * stored.store.dtype.bytes() as usize;
        &stored.data[self.index(stored.store, position) * bytes..][..bytes]
    }

    /// The vector at a position; `scratch` holds it unless it lies there as floats.
    fn vector<'b>(
        &self,
        stored: &Stored<'b>,
        position: usize,
        scratch: &'b mut [f32],
    ) -> &'b [f32] {
        let data = self.bytes(stored, position);
        match stored.store.dtype {
            KvDtype::F32 => return cast_slice(data),
            KvDtype::Bf16 => decode_row(Format::Float(DType::Bf16), data, &[], scratch),
            KvDtype::F16 => decode_row(Format::Float(DType::F16), data, &[], scratch),
            KvDtype::F8E4M3 => {
                decode_f8(data, stored.scales[self.index(stored.store, position)], scratch);
            }
        }
        scratch
    }
}
