//! Attention in tiles: some rows of a sequence, times some query heads of one KV head, meet a block of
//! 64 positions that is read once. Scores and mixes are products of matrices ([`add_product`]), and
//! the softmax is taken as the blocks come (Dao et al., FlashAttention, 2022).
//!
//! A row's arithmetic is a function of its own position: blocks and parts lie at fixed positions, each
//! part of 512 positions is a softmax of its own, and parts are merged in order. So tiles may be of
//! any shape, and few rows with a long past may share its parts among the threads.
//!
//! A row by itself, with few heads, meets its past where it lies ([`super::few`]).
//!
//! Bound: 2 · (k + v dimensions) operations per query head and position, against peak. Decode reads
//! each position once per tile; eight heads of 128 dimensions keep the multipliers busy for 4,100
//! cycles with the 64 KiB of a block, which memory takes about as long to bring.

use super::past::{BLOCK, Past, padded, values_stride};
use super::plan::{PART, Tile, Work};
use crate::cpu::Cpu;
use crate::step::{KvStore, Seqs};
use krasis_core::{Act, Mat};
use krasis_cpu::floats::{Block, Floats, PAD, add_product};
use krasis_cpu::vector::{blend, exp2, scale, scaled, weigh};
use krasis_cpu::{Inputs, Isa, Tiles};
use std::ops::Range;

pub(crate) fn cpu(
    d: &mut Cpu,
    q: Mat<Act>,
    k: &KvStore,
    v: &KvStore,
    seqs: &Seqs,
    scale: f32,
    out: Mat<Act>,
) {
    attend(d, &[(q, k)], v, seqs, scale, out);
}

/// Memory that attention keeps from call to call.
#[derive(Default)]
pub(crate) struct Desk {
    work: Work,
    parts: Floats,
}

/// Attention whose keys are several stores side by side, each with the part of the queries that
/// meets it.
pub(crate) fn attend(
    d: &mut Cpu,
    keys: &[(Mat<Act>, &KvStore)],
    values: &KvStore,
    seqs: &Seqs,
    scale: f32,
    out: Mat<Act>,
) {
    let (inputs, all) = d.arena.write(out.whole().floats());
    let desk = &mut d.desk;
    let heads = out.cols as usize / values.dim as usize;
    let k_dim = keys.iter().map(|(_, store)| store.dim as usize).sum();
    let sizes = Sizes { k_dim, v_dim: values.dim as usize, v_width: padded(values.dim as usize) };
    let group = heads / values.heads as usize;
    let threads = d.team.threads();
    // Slots are planned for the largest step.
    let first_row = &inputs.slice(seqs.first_row)[..=seqs.count as usize];
    let positions = &inputs.slice(seqs.positions)[..out.rows as usize];
    desk.work.plan(first_row, positions, [values.heads as usize, group], sizes.row(), threads);
    let work = &desk.work;
    let call = Call {
        isa: d.isa,
        keys,
        values,
        sizes,
        group,
        // Scores are exponents of two.
        scale: scale * std::f32::consts::LOG2_E,
        pages: inputs.slice(seqs.pages),
        pages_max: seqs.pages_max as usize,
        positions,
        inputs,
    };
    let tiles = Tiles::new(all, out.cols as usize);

    // What each worker needs for itself, and in a plan of parts what each task leaves behind.
    let rows = work.rows_max();
    let own = call.sizes.desk(rows);
    let workers = Tiles::new(d.workers.take(own * threads), own);
    let slab = rows * call.sizes.state();
    let slabs =
        Tiles::new(desk.parts.take(if work.splits() { slab * work.tasks() } else { 0 }), slab);
    d.team.each(work.tasks(), |worker, task| {
        // SAFETY: a worker has one task at a time.
        let mut own = call.sizes.carve(rows, unsafe { workers.tile(worker, 0..own) });
        let (tile, parts, place) = work.task(task);
        call.load(tile, own.queries);
        if work.splits() {
            // SAFETY: each task has its own place.
            let state = unsafe { slabs.tile(place, 0..slab) };
            return call.part(tile, parts.start, &mut own, state);
        }
        let (total, rest) = std::mem::take(&mut own.states).split_at_mut(slab);
        for part in parts {
            if part == 0 {
                call.part(tile, part, &mut own, total);
            } else {
                call.part(tile, part, &mut own, rest);
                merge(total, rest, &call.sizes);
            }
        }
        call.finish(tile, total, &tiles);
    });
    if work.splits() {
        d.team.each(work.tiles().len(), |_, i| {
            let (tile, places) = (&work.tiles()[i], work.places(i));
            // SAFETY: each tile has places of its own, and its tasks are done.
            let total = unsafe { slabs.tile(places.start, 0..slab) };
            for place in places.skip(1) {
                // SAFETY: as above.
                merge(total, unsafe { slabs.tile(place, 0..slab) }, &call.sizes);
            }
            call.finish(tile, total, &tiles);
        });
    }
}

/// Dimensions of a call.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub k_dim: usize,
    pub v_dim: usize,
    v_width: usize,
}

/// A worker's memory, for one tile. Rows of a tile are `[token, head]`.
pub(super) struct Own<'a> {
    /// `[row, k]`, scaled.
    pub queries: &'a mut [f32],
    /// `[BLOCK / PAD, k, PAD]`.
    pub keys: &'a mut [f32],
    /// `[BLOCK, v]`.
    pub values: &'a mut [f32],
    /// `[row, BLOCK]`.
    pub scores: &'a mut [f32],
    /// Vectors on their way from the cache.
    vectors: &'a mut [f32],
    /// Two states of all rows.
    states: &'a mut [f32],
}

impl Sizes {
    /// Floats of a row's softmax under way: the mix, its largest score, and the sum of its weights.
    pub fn state(&self) -> usize {
        self.v_width + 16
    }

    /// Floats that a row of a tile occupies while blocks pass by.
    fn row(&self) -> usize {
        self.k_dim + self.state() + BLOCK
    }

    /// Floats of each piece of [`Own`].
    fn pieces(&self, rows: usize) -> [usize; 6] {
        let queries = (rows * self.k_dim).next_multiple_of(16);
        let vectors = padded(self.k_dim.max(self.v_dim)) * 8;
        let (keys, values) = (self.k_dim * BLOCK, values_stride(self.v_dim) * BLOCK);
        [queries, keys, values, rows * BLOCK, vectors, 2 * rows * self.state()]
    }

    /// Floats of a worker with tiles of up to `rows`.
    fn desk(&self, rows: usize) -> usize {
        self.pieces(rows).iter().sum()
    }

    fn carve<'a>(&self, rows: usize, all: &'a mut [f32]) -> Own<'a> {
        let mut rest = all;
        let [queries, keys, values, scores, vectors, states] = self.pieces(rows).map(|len| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            part
        });
        Own { queries, keys, values, scores, vectors, states }
    }
}

/// What all tasks of a call share.
pub(super) struct Call<'a> {
    pub isa: Isa,
    pub keys: &'a [(Mat<Act>, &'a KvStore)],
    pub values: &'a KvStore,
    pub sizes: Sizes,
    group: usize,
    scale: f32,
    pages: &'a [u32],
    pages_max: usize,
    positions: &'a [u32],
    inputs: Inputs<'a>,
}

impl Call<'_> {
    /// Brings a tile's queries together, scaled.
    fn load(&self, tile: &Tile, queries: &mut [f32]) {
        let mut rows = queries.chunks_exact_mut(self.sizes.k_dim);
        for row in tile.rows.clone() {
            for head in self.heads(tile) {
                let mut to = rows.next().expect("a tile fits");
                for (q, store) in self.keys {
                    let dim = store.dim as usize;
                    let (part, rest) = to.split_at_mut(dim);
                    scaled(&self.inputs.row(*q, row as u32)[head * dim..][..dim], self.scale, part);
                    to = rest;
                }
            }
        }
    }

    /// The tile's query heads, among all.
    fn heads(&self, tile: &Tile) -> Range<usize> {
        let first = tile.kv_head * self.group;
        first + tile.heads.start..first + tile.heads.end
    }

    /// The softmax and mix of the positions of one part, from nothing.
    fn part(&self, tile: &Tile, part: usize, own: &mut Own, state: &mut [f32]) {
        let (stride, width) = (self.sizes.state(), self.sizes.v_width);
        for state in state[..tile.height() * stride].chunks_exact_mut(stride) {
            state[..width].fill(0.0);
            (state[width], state[width + 1]) = (f32::NEG_INFINITY, 0.0);
        }
        let pages = &self.pages[tile.seq * self.pages_max..][..self.pages_max];
        let (head, k_dim) = (tile.kv_head as u32, self.sizes.k_dim);
        let past = Past { isa: self.isa, pages, head, k_dim, inputs: &self.inputs };
        let end = (self.positions[tile.rows.end - 1] as usize + 1).min((part + 1) * PART);
        if self.is_few(tile) {
            let state = &mut state[..tile.height() * stride];
            return self.few(&past, part * PART..end, own, state);
        }
        for first in (part * PART..end).step_by(BLOCK) {
            let positions = first..end.min(first + BLOCK);
            let mut above = 0;
            for (_, store) in self.keys {
                past.keys(store, positions.clone(), own.vectors, &mut own.keys[above * PAD..]);
                above += store.dim as usize;
            }
            past.values(self.values, positions.clone(), own.values);
            let next = positions.end..end;
            self.keys.iter().for_each(|(_, store)| past.announce(store, next.clone()));
            past.announce(self.values, next);
            self.block(tile, positions, own, state);
        }
    }

    /// Rows that see equally many of a block's positions, together. No row reads a position
    /// behind its own, whatever lies there.
    fn block(&self, tile: &Tile, positions: Range<usize>, own: &mut Own, state: &mut [f32]) {
        let seen = |row: usize| {
            let own = self.positions[row] as usize + 1;
            own.clamp(positions.start, positions.end) - positions.start
        };
        let heads = tile.heads.len();
        let mut row = tile.rows.start;
        while row < tile.rows.end {
            let count = seen(row);
            let first = row;
            while row < tile.rows.end && seen(row) == count {
                row += 1;
            }
            let rows = (first - tile.rows.start) * heads..(row - tile.rows.start) * heads;
            self.mix(rows, count, own, state);
        }
    }

    /// The first `count` positions of a block meet some rows of a tile.
    fn mix(&self, rows: Range<usize>, count: usize, own: &mut Own, state: &mut [f32]) {
        let (k_dim, stride) = (self.sizes.k_dim, self.sizes.state());
        let queries = Block { data: &own.queries[rows.start * k_dim..], stride: k_dim };
        let scores = &mut own.scores[rows.start * BLOCK..rows.end * BLOCK];
        let states = &mut state[rows.start * stride..rows.end * stride];
        scores.fill(0.0);
        let panels = own.keys.chunks_exact(k_dim * PAD).map(|data| Block { data, stride: PAD });
        for (first, keys) in (0..count).step_by(PAD).zip(panels) {
            let size = (rows.len(), k_dim, PAD);
            add_product(self.isa, size, queries, keys, &mut scores[first..], BLOCK);
        }
        self.weigh(scores, count, states);
        let scores = Block { data: scores, stride: BLOCK };
        let values = Block { data: own.values, stride: values_stride(self.sizes.v_dim) };
        let size = (rows.len(), count, self.sizes.v_dim);
        add_product(self.isa, size, scores, values, states, stride);
    }

    /// Scores of the first `count` positions of a block become weights.
    pub fn weigh(&self, scores: &mut [f32], count: usize, states: &mut [f32]) {
        let states = states.chunks_exact_mut(self.sizes.state());
        for (scores, state) in scores.chunks_exact_mut(BLOCK).zip(states) {
            let (mixed, rest) = state.split_at_mut(self.sizes.v_width);
            let [top, total, ..] = rest else { unreachable!("a state ends with both") };
            let factor = weigh(&mut scores[..count], top, total);
            if factor != 1.0 {
                scale(mixed, factor);
            }
        }
    }

    /// Writes what a tile's rows have mixed.
    fn finish(&self, tile: &Tile, states: &[f32], out: &Tiles<f32>) {
        let (dim, width) = (self.sizes.v_dim, self.sizes.v_width);
        let mut states = states.chunks_exact(self.sizes.state());
        for row in tile.rows.clone() {
            for head in self.heads(tile) {
                let state = states.next().expect("a tile fits");
                // SAFETY: each tile has its own rows and heads.
                let out = unsafe { out.tile(row, head * dim..(head + 1) * dim) };
                scaled(&state[..dim], 1.0 / state[width + 1], out);
            }
        }
    }
}

/// Adds a later part to what came before it.
fn merge(totals: &mut [f32], parts: &[f32], sizes: &Sizes) {
    let (stride, width) = (sizes.state(), sizes.v_width);
    for (total, part) in totals.chunks_exact_mut(stride).zip(parts.chunks_exact(stride)) {
        // Rows in front of the part have seen nothing of it.
        if part[width + 1] == 0.0 {
            continue;
        }
        let top = total[width].max(part[width]);
        let (a, b) = (exp2(total[width] - top), exp2(part[width] - top));
        blend(&mut total[..width], a, &part[..width], b);
        total[width + 1] = a * total[width + 1] + b * part[width + 1];
        total[width] = top;
    }
}
