//! The past as products want it: a block of keys with positions side by side, a block of values with
//! dimensions side by side, both as floats whatever the store's format.

use crate::step::KvStore;
use bytemuck::cast_slice;
use krasis_core::{DType, Format, KvDtype};
use krasis_cpu::floats::{PAD, ROWS_TRANSPOSED, transpose};
use krasis_cpu::vector::{decode_f8, decode_row};
use krasis_cpu::{Inputs, Isa};
use std::ops::Range;

/// Positions that are read before any row meets them.
pub(crate) const BLOCK: usize = 64;

/// Columns that a matrix of `cols` occupies.
pub(crate) const fn padded(cols: usize) -> usize {
    cols.next_multiple_of(PAD)
}

/// One head of a sequence's past.
pub(crate) struct Past<'a> {
    pub isa: Isa,
    pub pages: &'a [u32],
    pub head: u32,
    pub inputs: &'a Inputs<'a>,
}

impl Past<'_> {
    /// `to[i, j]` becomes element `i` at the `j`th position, rows of [`BLOCK`]. Columns behind the
    /// last position may hold anything.
    pub fn keys(&self, store: &KvStore, at: Range<usize>, vectors: &mut [f32], to: &mut [f32]) {
        let (dim, last) = (store.dim as usize, at.end - 1);
        let stored = self.stored(store);
        for (eight, first) in at.step_by(ROWS_TRANSPOSED).enumerate() {
            let mut scratch = vectors.chunks_exact_mut(dim);
            let rows = std::array::from_fn(|i| {
                let scratch = scratch.next().expect("eight vectors fit");
                self.vector(store, stored, last.min(first + i), scratch)
            });
            transpose(self.isa, rows, &mut to[eight * ROWS_TRANSPOSED..], BLOCK);
        }
    }

    /// `to[j, i]` becomes element `i` at the `j`th position, rows of the padded dimension.
    pub fn values(&self, store: &KvStore, at: Range<usize>, to: &mut [f32]) {
        let (dim, stored) = (store.dim as usize, self.stored(store));
        for (position, to) in at.zip(to.chunks_exact_mut(padded(dim))) {
            let (to, rest) = to.split_at_mut(dim);
            rest.fill(0.0);
            if store.dtype == KvDtype::F32 {
                to.copy_from_slice(self.vector(store, stored, position, &mut []));
            } else {
                self.vector(store, stored, position, to);
            }
        }
    }

    fn stored<'b>(&'b self, store: &KvStore) -> (&'b [u8], &'b [f32]) {
        (self.inputs.slice(store.data), self.inputs.slice(store.scales))
    }

    /// The vector at a position; `scratch` holds it unless it lies there as floats.
    fn vector<'b>(
        &self,
        store: &KvStore,
        (data, scales): (&'b [u8], &[f32]),
        position: usize,
        scratch: &'b mut [f32],
    ) -> &'b [f32] {
        let token = store.token(self.pages, position as u32);
        let at = token * store.heads as usize + self.head as usize;
        let bytes = store.dim as usize * store.dtype.bytes() as usize;
        let data = &data[at * bytes..][..bytes];
        match store.dtype {
            KvDtype::F32 => return cast_slice(data),
            KvDtype::Bf16 => decode_row(Format::Float(DType::Bf16), data, &[], scratch),
            KvDtype::F8E4M3 => decode_f8(data, scales[at], scratch),
        }
        scratch
    }
}
