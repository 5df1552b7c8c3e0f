//! What each layer remembers of a sequence: KV pages for attention, state for delta nets.

use crate::model::{Layer, Mixer, Model};
use krasis_core::{Bytes, KvDtype, Layout, Slot};
use krasis_ops::{KvStore, StateStore};

/// The memory of one layer.
#[derive(Clone, Copy, Debug)]
pub enum Cache {
    /// Keys and values of grouped-query attention.
    Gqa {
        /// `[token, kv head, dim]`.
        k: KvStore,
        /// `[token, kv head, dim]`.
        v: KvStore,
    },
    /// What latent attention keeps.
    Mla {
        /// `[token, latent]`.
        latent: KvStore,
        /// `[token, rope]`.
        rope: KvStore,
    },
    /// What a delta net keeps, per sequence.
    DeltaNet {
        /// Last inputs of the convolution.
        conv: StateStore,
        /// The delta rule's matrices.
        state: StateStore,
    },
}

/// How much a model may remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// KV pages shared by all sequences.
    pub pages: u32,
    /// Tokens of a page.
    pub page: u32,
    /// Places for recurrent state: sequences at a time, and checkpoints.
    pub places: u32,
    /// Element type of KV pages.
    pub dtype: KvDtype,
}

impl Cache {
    /// Lays out the memory of every layer.
    pub fn plan<W>(model: &Model<W>, shape: CacheShape, layout: &mut Layout) -> Vec<Cache> {
        model.layers.iter().map(|layer| Cache::of(layer, shape, layout)).collect()
    }

    /// Bytes that one more page costs over all layers.
    pub fn page_bytes<W>(model: &Model<W>, page: u32, dtype: KvDtype) -> Bytes {
        let bytes = |pages| {
            let mut layout = Layout::new(0);
            Cache::plan(model, CacheShape { pages, page, places: 0, dtype }, &mut layout);
            layout.bytes().0
        };
        // Between two large sizes, alignment does not count.
        Bytes((bytes(1024) - bytes(0)) / 1024)
    }

    /// Bytes that one more place costs over all layers: nothing for models without recurrent state.
    pub fn place_bytes<W>(model: &Model<W>) -> Bytes {
        let state = |layer: &Layer<W>| match &layer.mixer {
            Mixer::DeltaNet(m) => (m.kernel - 1) * m.heads.channels() + m.heads.state(),
            Mixer::Gqa(_) | Mixer::Mla(_) => 0,
        };
        model.layers.iter().map(|layer| Bytes(4 * u64::from(state(layer)))).sum()
    }

    /// Where a page of this layer lies, piece by piece; some may be empty.
    pub fn page(&self, page: u32) -> [Slot<u8>; 4] {
        let (a, b) = match self {
            Cache::Gqa { k, v } => (k, v),
            Cache::Mla { latent, rope } => (latent, rope),
            Cache::DeltaNet { .. } => return [Slot::EMPTY; 4],
        };
        let ([a, a_scales], [b, b_scales]) = (a.page(page), b.page(page));
        [a, a_scales, b, b_scales]
    }

    /// Where the recurrent state of a place lies in this layer.
    pub fn place(&self, place: u32) -> [Slot<u8>; 2] {
        match self {
            Cache::DeltaNet { conv, state } => [conv.place(place), state.place(place)],
            Cache::Gqa { .. } | Cache::Mla { .. } => [Slot::EMPTY; 2],
        }
    }

    fn of<W>(layer: &Layer<W>, shape: CacheShape, layout: &mut Layout) -> Cache {
        match &layer.mixer {
            Mixer::Gqa(m) => Cache::Gqa {
                k: store(m.kv_heads, m.dim, shape, layout),
                v: store(m.kv_heads, m.dim, shape, layout),
            },
            Mixer::Mla(m) => Cache::Mla {
                latent: store(1, m.heads.latent, shape, layout),
                rope: store(1, m.heads.rope, shape, layout),
            },
            Mixer::DeltaNet(m) => Cache::DeltaNet {
                conv: places((m.kernel - 1) * m.heads.channels(), shape, layout),
                state: places(m.heads.state(), shape, layout),
            },
        }
    }
}

fn store(heads: u32, dim: u32, shape: CacheShape, layout: &mut Layout) -> KvStore {
    let vectors = u64::from(shape.pages) * u64::from(shape.page) * u64::from(heads);
    let scales = if shape.dtype == KvDtype::F8E4M3 { vectors } else { 0 };
    KvStore {
        data: layout.slot(vectors * u64::from(dim * shape.dtype.bytes())),
        scales: if scales == 0 { Slot::EMPTY } else { layout.slot(scales) },
        dtype: shape.dtype,
        heads,
        dim,
        page: shape.page,
    }
}

fn places(each: u32, shape: CacheShape, layout: &mut Layout) -> StateStore {
    StateStore { data: layout.slot(u64::from(each) * u64::from(shape.places)), each }
}
