//! A row by itself with few heads, as a step that decodes has them: its past is read where it lies, neither
//! turned nor copied, and each sum adds as it does for many rows ([`krasis_cpu::floats::add_scores`]).
//!
//! Bound: the past's bytes once from memory, and as many shuffles as loads to have keys of neighbouring
//! positions in a register.

use super::cpu::{Call, Own};
use super::past::{BLOCK, PART_GROUPS, Past};
use super::plan::Tile;
use crate::step::KvStore;
use bytemuck::cast_slice;
use krasis_core::{DType, KvDtype};
use krasis_cpu::floats::{Block, GROUP, Groups, add_mixed, add_scores};
use std::ops::Range;

/// Heads beyond which it is cheaper to turn keys once.
const HEADS_MAX: usize = 8;

/// Groups of a block.
const GROUPS: usize = BLOCK / GROUP;

/// Where the groups of a part begin, in one store.
struct Lying<'a> {
    store: &'a KvStore,
    starts: [usize; PART_GROUPS],
}

impl Call<'_> {
    /// Whether a tile is such a row, and groups of positions are a stride apart.
    pub(super) fn is_few(&self, tile: &Tile) -> bool {
        let fits = |store: &KvStore| {
            let whole = (store.page as usize).is_multiple_of(GROUP);
            whole && Groups::fit(DType::F32, store.dim as usize)
        };
        let keys = self.keys.iter().all(|(_, store)| fits(store));
        tile.rows.len() == 1 && tile.heads.len() <= HEADS_MAX && keys && fits(self.values)
    }

    /// The softmax and mix of some positions, whose first begins a part.
    pub(super) fn few(&self, past: &Past, at: Range<usize>, own: &mut Own, state: &mut [f32]) {
        let (k_dim, stride) = (self.sizes.k_dim, self.sizes.state());
        let heads = state.len() / stride;
        let scores = &mut own.scores[..heads * BLOCK];
        let lying = |store| Lying { store, starts: past.starts(store, at.clone()) };
        let (first, second) = (lying(self.keys[0].1), self.keys.get(1).map(|key| lying(key.1)));
        let values = lying(self.values);
        for (block, first_position) in at.clone().step_by(BLOCK).enumerate() {
            let positions = first_position..at.end.min(first_position + BLOCK);
            let count = positions.len();
            scores.fill(0.0);
            let mut above = 0;
            for keys in [Some(&first), second.as_ref()].into_iter().flatten() {
                let queries = Block { data: &own.queries[above..], stride: k_dim };
                keys.with(past, block, positions.clone(), own.keys, |keys| {
                    add_scores(self.isa, heads, queries, keys, scores, BLOCK);
                });
                above += keys.store.dim as usize;
            }
            self.weigh(scores, count, state);
            values.with(past, block, positions, own.values, |values| {
                let scores = Block { data: scores, stride: BLOCK };
                add_mixed(self.isa, (heads, count), scores, values, state, stride);
            });
        }
    }
}

impl Lying<'_> {
    /// Calls `work` with a block's positions as they lie, or decoded in `room`.
    fn with(
        &self,
        past: &Past,
        block: usize,
        positions: Range<usize>,
        room: &mut [f32],
        work: impl FnOnce(Groups),
    ) {
        let (store, dim) = (self.store, self.store.dim as usize);
        let count = positions.len().div_ceil(GROUP);
        let dtype = match store.dtype {
            KvDtype::F32 => DType::F32,
            KvDtype::Bf16 => DType::Bf16,
            KvDtype::F16 | KvDtype::F8E4M3 => {
                past.decode(store, positions, room);
                let starts: [usize; GROUPS] = std::array::from_fn(|group| 4 * group * GROUP * dim);
                let (data, starts) = (cast_slice(room), &starts[..count]);
                let (next, stride) = (&[][..], 4 * dim);
                return work(Groups { dtype: DType::F32, data, starts, next, stride, dim });
            }
        };
        let (starts, next) = self.starts[block * GROUPS..].split_at(count);
        let stride = store.heads as usize * dim * dtype.bytes();
        work(Groups { dtype, data: past.inputs.slice(store.data), starts, next, stride, dim });
    }
}
