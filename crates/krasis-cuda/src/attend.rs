//! Attention as launches: many rows in tiles, few rows with their past in splits, and what has
//! neither kernel a row at a time.

use crate::activation::Activation;
use crate::attention::{Choice, DECODE, LATENT, LATENT_ROPE, PREFILL, merge};
use crate::cuda::{BLOCK, Cuda};
use crate::machine::{Arg, Kernel, Machine, Shape};
use crate::programs::kv_variant;
use krasis_core::{Act, Mat};
use krasis_ops::{KvStore, Seqs};

/// Rows of any sequences that are few. As many as that fill a tile of tensor cores with two query
/// heads for each KV head.
const FEW_ROWS: u32 = 8;

/// Query heads of a block, and positions of a tile, of `kernels/attend.cu`.
const HEADS: u32 = 8;
const KEYS: u32 = 16;

/// Columns that a block of `attend_merge` brings together, and its threads.
const MERGE_COLUMNS: u32 = 128;
const MERGE_THREADS: u32 = 512;

/// Bytes of results that the last block of a tile brings together by itself, in about the time that
/// another launch takes: one multiprocessor reads some 64 bytes a clock.
const MERGE_BYTES: u32 = 160 << 10;

/// Bytes of shared memory that `kernels/attend.cu` takes; the sum is the same there.
fn shared(key_dim: u32, value_dim: u32) -> u32 {
    let key_stride = key_dim | 1;
    let tile_stride = key_stride.max(value_dim);
    4 * (HEADS * (key_stride + value_dim + KEYS + 3) + KEYS * tile_stride)
}

/// Rows in units of a block's: how many blocks they take at most, sequence by sequence.
fn tiles(rows: u32, heads: u32, block_rows: u32) -> u32 {
    rows * heads.div_ceil(block_rows)
}

fn of_store(entry: &'static str, store: &KvStore) -> Kernel {
    Kernel { entry, variant: kv_variant(store.dtype) }
}

impl<A: Activation, M: Machine> Cuda<A, M> {
    pub(crate) fn gqa(
        &mut self,
        q: Mat<Act>,
        k: &KvStore,
        v: &KvStore,
        seqs: &Seqs,
        scale: f32,
        out: Mat<Act>,
    ) {
        assert_eq!((k.heads, k.dtype, k.page), (v.heads, v.dtype, v.page), "stores alike");
        let group = out.cols / v.dim / k.heads;
        assert_eq!(q.cols, group * k.heads * k.dim, "query heads of the keys' size");
        let few = q.rows <= FEW_ROWS || q.rows == seqs.count;
        let family = if few { &DECODE } else { &PREFILL };
        let possible = A::BYTES == 2 && k.dim == v.dim;
        let choice = possible
            .then(|| family.choose(k.dim, k.dtype, group, self.machine().limits()))
            .flatten();
        match choice {
            Some(choice) if few => self.gqa_few(choice, q, k, v, seqs, scale, out),
            Some(choice) => self.gqa_many(choice, q, k, v, seqs, scale, out),
            None => self.gqa_any(q, k, v, seqs, scale, out),
        }
    }

    /// What both kernels of grouped heads are told, but for where partial results go.
    fn gqa_args(
        &self,
        q: Mat<Act>,
        k: &KvStore,
        v: &KvStore,
        seqs: &Seqs,
        scale: f32,
        out: Mat<Act>,
    ) -> Vec<Arg> {
        let mut args = vec![
            self.mat(q),
            q.stride.into(),
            self.slot(k.data),
            self.slot(k.scales),
            self.slot(v.data),
            self.slot(v.scales),
            k.heads.into(),
            (out.cols / v.dim / k.heads).into(),
        ];
        args.extend(self.seqs_args(k.page, seqs, q.rows));
        args.extend([scale.into(), self.mat(out), out.stride.into()]);
        args
    }

    fn seqs_args(&self, page: u32, seqs: &Seqs, rows: u32) -> [Arg; 7] {
        [
            page.into(),
            self.slot(seqs.first_row),
            self.slot(seqs.positions),
            self.slot(seqs.pages),
            seqs.pages_max.into(),
            seqs.count.into(),
            rows.into(),
        ]
    }

    fn gqa_many(
        &mut self,
        choice: Choice,
        q: Mat<Act>,
        k: &KvStore,
        v: &KvStore,
        seqs: &Seqs,
        scale: f32,
        out: Mat<Act>,
    ) {
        let group = out.cols / v.dim / k.heads;
        let mut args = self.gqa_args(q, k, v, seqs, scale, out);
        args.extend([Arg::NULL; 2]);
        // Each sequence may end in a tile that is not full.
        let tiles = q.rows * group / choice.block.rows_of_all() + seqs.count;
        self.launch_block(choice, [k.heads * tiles, 1, 1], &args);
    }

    fn gqa_few(
        &mut self,
        choice: Choice,
        q: Mat<Act>,
        k: &KvStore,
        v: &KvStore,
        seqs: &Seqs,
        scale: f32,
        out: Mat<Act>,
    ) {
        let group = out.cols / v.dim / k.heads;
        let mut args = self.gqa_args(q, k, v, seqs, scale, out);
        let tiles = tiles(q.rows, group, choice.block.rows());
        let splits = self.splits(choice, k.heads * tiles);
        let partial = self.partial(splits, v.dim, out);
        args.extend(partial);
        // The rows that a sequence has in a tile, if all have as many.
        let rows = (group * q.rows).min(choice.block.rows());
        let alone = splits == 1 || splits * rows * v.dim * 4 <= MERGE_BYTES;
        args.push(if alone { self.arrivals(k.heads * tiles) } else { Arg::NULL });
        self.launch_block(choice, [splits, k.heads, tiles], &args);
        if !alone {
            self.merge(partial, splits, v.dim, out);
        }
    }

    /// Kernels of `kernels/attend.cu` take any shape, and all types.
    fn gqa_any(
        &mut self,
        q: Mat<Act>,
        k: &KvStore,
        v: &KvStore,
        seqs: &Seqs,
        scale: f32,
        out: Mat<Act>,
    ) {
        let group = out.cols / v.dim / k.heads;
        let mut args = vec![
            self.mat(q),
            q.stride.into(),
            self.slot(k.data),
            self.slot(k.scales),
            k.dim.into(),
            self.slot(v.data),
            self.slot(v.scales),
            v.dim.into(),
            k.heads.into(),
            group.into(),
        ];
        args.extend(self.row_by_row_args(k.page, seqs, scale, out));
        let grid = [q.rows, k.heads, group.div_ceil(HEADS)];
        let shape = Shape { grid, block: BLOCK, shared: shared(k.dim, v.dim) };
        self.launch(of_store("attend", k), shape, &args);
    }

    pub(crate) fn mla(
        &mut self,
        q: Mat<Act>,
        q_rope: Mat<Act>,
        latent: &KvStore,
        rope: &KvStore,
        seqs: &Seqs,
        scale: f32,
        out: Mat<Act>,
    ) {
        assert_eq!((latent.dtype, latent.page), (rope.dtype, rope.page), "stores alike");
        let heads = out.cols / latent.dim;
        assert_eq!((q.cols, q_rope.cols), (out.cols, heads * rope.dim), "query heads alike");
        let possible = A::BYTES == 2 && rope.dim == LATENT_ROPE;
        let choice = possible
            .then(|| LATENT.choose(latent.dim, latent.dtype, heads, self.machine().limits()))
            .flatten();
        let Some(choice) = choice else {
            return self.mla_any(q, q_rope, latent, rope, seqs, scale, out);
        };
        let mut args = vec![
            self.mat(q),
            q.stride.into(),
            self.mat(q_rope),
            q_rope.stride.into(),
            self.slot(latent.data),
            self.slot(latent.scales),
            self.slot(rope.data),
            self.slot(rope.scales),
            heads.into(),
        ];
        args.extend(self.seqs_args(latent.page, seqs, q.rows));
        args.extend([scale.into(), self.mat(out), out.stride.into()]);
        let tiles = tiles(q.rows, heads, choice.block.rows());
        let splits = self.splits(choice, tiles);
        let partial = self.partial(splits, latent.dim, out);
        args.extend(partial);
        self.launch_block(choice, [splits, 1, tiles], &args);
        if splits > 1 {
            self.merge(partial, splits, latent.dim, out);
        }
    }

    fn mla_any(
        &mut self,
        q: Mat<Act>,
        q_rope: Mat<Act>,
        latent: &KvStore,
        rope: &KvStore,
        seqs: &Seqs,
        scale: f32,
        out: Mat<Act>,
    ) {
        let heads = out.cols / latent.dim;
        let mut args = vec![
            self.mat(q),
            q.stride.into(),
            self.mat(q_rope),
            q_rope.stride.into(),
            self.slot(latent.data),
            self.slot(latent.scales),
            latent.dim.into(),
            self.slot(rope.data),
            self.slot(rope.scales),
            rope.dim.into(),
            heads.into(),
        ];
        args.extend(self.row_by_row_args(latent.page, seqs, scale, out));
        let shared = shared(latent.dim + rope.dim, latent.dim);
        let grid = [q.rows, 1, heads.div_ceil(HEADS)];
        self.launch(of_store("mla_attend", latent), Shape { grid, block: BLOCK, shared }, &args);
    }

    /// What both kernels that take a row at a time are told last.
    fn row_by_row_args(&self, page: u32, seqs: &Seqs, scale: f32, out: Mat<Act>) -> [Arg; 8] {
        [
            page.into(),
            self.slot(seqs.row_seq),
            self.slot(seqs.positions),
            self.slot(seqs.pages),
            seqs.pages_max.into(),
            scale.into(),
            self.mat(out),
            out.stride.into(),
        ]
    }

    pub(crate) fn launch_block(&mut self, choice: Choice, grid: [u32; 3], args: &[Arg]) {
        let Choice { kernel, block } = choice;
        let shape = Shape { grid, block: block.threads(), shared: block.shared };
        self.launch(kernel, shape, args);
    }

    /// Splits of each of so many pasts: as many as the GPU has room for, whatever their length, so that a
    /// step's launches depend on nothing but its rows.
    fn splits(&self, choice: Choice, pasts: u32) -> u32 {
        let places = self.machine().limits().processors * choice.block.blocks;
        (places / pasts.max(1)).max(1)
    }

    /// Where splits leave their results. A single one has the whole past and writes to `out` itself.
    fn partial(&self, splits: u32, dim: u32, out: Mat<Act>) -> [Arg; 2] {
        if splits == 1 {
            return [Arg::NULL; 2];
        }
        let results = u64::from(splits) * u64::from(out.rows * out.cols / dim);
        let sums = self.workspace(0, results * u64::from(dim) * 4);
        [sums, self.workspace(results * u64::from(dim) * 4, results * 8)]
    }

    /// Brings splits together.
    fn merge(&mut self, [sums, totals]: [Arg; 2], splits: u32, dim: u32, out: Mat<Act>) {
        let (rows, heads) = (out.rows, out.cols / dim);
        let args = [
            sums,
            totals,
            splits.into(),
            rows.into(),
            heads.into(),
            self.mat(out),
            out.stride.into(),
        ];
        let grid = [rows * heads, dim.div_ceil(MERGE_COLUMNS), 1];
        self.launch(merge(dim), Shape { grid, block: MERGE_THREADS, shared: 0 }, &args);
    }
}
