//! Every operation as launches: which kernel, how many blocks, which arguments; attention in
//! `attend.rs`, what comes before it in `heads.rs`, delta nets in `delta.rs`. Formulas stand in
//! krasis-ops, and shapes of blocks at the head of each kernel.

use crate::activation::Activation;
use crate::cuda::{BLOCK, Cuda};
use crate::lines::Tiles;
use crate::machine::{Arg, Kernel, Machine, Shape};
use crate::programs::{format_variant, kv_variant};
use crate::vector::FEW_ROWS;
use krasis_core::{Act, Format, Mat, Slot, Weight};
use krasis_ops::*;

/// Rows that a warp multiplies at a time: `VECTOR_ROWS` of `kernels/product.cuh`, for what `vector.rs`
/// leaves. More go to tensor cores, in every operation at the same border, so that there are but two
/// orders in which a row may be summed.
const VECTOR_ROWS: u32 = 8;

/// Warps of a block that makes an output each, and threads of one that makes a tile.
const VECTOR_WARPS: u32 = 4;
const TILE_THREADS: u32 = 128;

/// Rows and outputs of a tile: `TILE` of `kernels/product.cuh`.
const TILE: u32 = 64;

/// Experts that `kernels/sort.cu` and `kernels/route.cu` count.
pub(crate) const EXPERTS_MAX: u32 = 1024;

/// Threads of a block that reads a row in eights: `EIGHTS_MAX` of `kernels/residual.cu`.
const EIGHTS_MAX: u32 = 896;

/// Columns of a block: `PIECE` of `kernels/largest.cu`.
const LOGIT_PIECE: u32 = 2048;

/// Pairs of a block of `place`; `PLACED` of `kernels/sort.cu`.
const PLACED: u32 = 1024;

pub(crate) fn one(entry: &'static str) -> Kernel {
    Kernel { entry, variant: 0 }
}

fn of_format(entry: &'static str, w: &Weight) -> Kernel {
    Kernel { entry, variant: format_variant(w.format) }
}

fn of_store(entry: &'static str, store: &KvStore) -> Kernel {
    Kernel { entry, variant: kv_variant(store.dtype) }
}

/// Columns that share a scale; 1 for floats, which have none.
fn group(w: &Weight) -> u32 {
    match w.format {
        Format::Float(_) => 1,
        Format::Int8 { group } | Format::Int4 { group } => group,
        Format::Lines(lines) => lines.group() as u32,
    }
}

/// A bank in parts of as many experts as can be sorted, and the number of the first of each. Slots of
/// all layers' experts are more.
pub(crate) fn sortable(bank: &Bank) -> impl Iterator<Item = (u32, Bank)> {
    let bank = *bank;
    let firsts = (0..bank.experts).step_by(EXPERTS_MAX as usize);
    firsts.map(move |first| (first, bank.part(first, EXPERTS_MAX.min(bank.experts - first))))
}

fn shape(grid: [u32; 3], block: u32) -> Shape {
    Shape { grid, block, shared: 0 }
}

/// A thread per column, rows in x.
fn per_column(rows: u32, cols: u32) -> Shape {
    let block = cols.next_multiple_of(32).min(BLOCK);
    shape([rows, cols.div_ceil(block), 1], block)
}

/// A block per row of so many columns.
fn per_row(rows: u32, heads: u32, cols: u32) -> Shape {
    shape([rows, heads, 1], cols.next_multiple_of(32).min(BLOCK))
}

impl<A: Activation, M: Machine> Cuda<A, M> {
    /// `linear` of each of `heads` blocks of columns with its own rows of `w`.
    fn products(
        &mut self,
        x: Mat<Act>,
        w: &Weight,
        bias: Option<&Weight>,
        heads: u32,
        out: Mat<Act>,
    ) {
        assert_eq!(
            (w.rows, w.cols),
            (out.cols, x.cols / heads),
            "weight [heads · outputs, inputs]"
        );
        assert_eq!(x.rows, out.rows, "a row for each row");
        let outputs = w.rows / heads;
        // In lines, a head's part has to start with a block.
        if x.rows <= FEW_ROWS
            && (heads == 1 || outputs.is_multiple_of(8))
            && let Some(few) = self.few(x, w)
        {
            return self.linear_few(few, x, w, bias, heads, out);
        }
        // A head's part of a row has to start at 16 bytes, too.
        let aligned = self.aligned(x) && (heads == 1 || w.cols.is_multiple_of(8));
        let args = [
            self.mat(x),
            x.stride.into(),
            aligned.into(),
            self.slot(w.data),
            self.slot(w.scales),
            w.cols.into(),
            group(w).into(),
            bias.map_or(Arg::NULL, |bias| self.vector(bias)),
            self.mat(out),
            out.stride.into(),
            x.rows.into(),
            outputs.into(),
        ];
        if x.rows > VECTOR_ROWS
            && heads == 1
            && bias.is_none()
            && let Some(lines) = self.in_lines(x, w, out)
        {
            return self.linear_in_lines(x, w, lines, out);
        }
        let (entry, shape) = if x.rows <= VECTOR_ROWS {
            ("linear_vector", shape([outputs.div_ceil(VECTOR_WARPS), 1, heads], VECTOR_WARPS * 32))
        } else {
            let grid = [x.rows.div_ceil(TILE), outputs.div_ceil(TILE), heads];
            ("linear_tile", shape(grid, TILE_THREADS))
        };
        self.launch(of_format(entry, w), shape, &args);
    }

    /// A thread for each eight columns of a row, if all these views can be read so.
    pub(crate) fn in_eights(&self, views: &[Mat<Act>]) -> Option<Shape> {
        let Mat { rows, cols, .. } = views[0];
        let whole = cols.is_multiple_of(8) && cols <= 8 * EIGHTS_MAX;
        let aligned = whole && views.iter().all(|view| self.aligned(*view));
        aligned.then(|| shape([rows, 1, 1], (cols / 8).next_multiple_of(32)))
    }

    /// What is brought together behind the experts: their pairs, and the shared one.
    fn parts_args(
        &self,
        pairs: Mat<Act>,
        routes: Routes,
        scale: f32,
        shared: Option<SharedExpert>,
    ) -> Vec<Arg> {
        let mut args = vec![
            self.mat(pairs),
            pairs.stride.into(),
            self.slot(routes.weights.whole()),
            routes.weights.cols.into(),
            scale.into(),
        ];
        let gate = shared.and_then(|shared| shared.gate);
        for mat in [shared.map(|shared| shared.out), gate] {
            args.push(mat.map_or(Arg::NULL, |mat| self.mat(mat)));
            args.push(mat.map_or(0, |mat| mat.stride).into());
        }
        args
    }

    /// What both matrices of an expert are told of theirs.
    fn bank_args(&self, w: &Weight, rows: u32) -> [Arg; 5] {
        [
            self.slot(w.data),
            self.slot(w.scales),
            w.cols.into(),
            group(w).into(),
            Bank::rows_of(w.format, rows).into(),
        ]
    }

    /// A warp per pair and output: few tokens share hardly any expert.
    fn experts_by_pair(
        &mut self,
        x: Mat<Act>,
        routes: Routes,
        bank: &Bank,
        inner: Mat<Act>,
        out: Mat<Act>,
    ) {
        let chosen = self.slot(routes.experts.whole());
        let grid =
            |outputs: u32| shape([outputs.div_ceil(VECTOR_WARPS), out.rows, 1], VECTOR_WARPS * 32);
        let [data, scales, cols, group, rows] = self.bank_args(&bank.gate_up, bank.inter);
        let args = [
            self.mat(x),
            x.stride.into(),
            self.aligned(x).into(),
            chosen,
            routes.experts.cols.into(),
            data,
            scales,
            cols,
            group,
            rows,
            self.mat(inner),
            inner.stride.into(),
            bank.inter.into(),
        ];
        self.launch(of_format("gate_up_vector", &bank.gate_up), grid(bank.inter), &args);
        let [data, scales, cols, group, rows] = self.bank_args(&bank.down, out.cols);
        let args = [
            self.mat(inner),
            inner.stride.into(),
            self.aligned(inner).into(),
            chosen,
            data,
            scales,
            cols,
            group,
            rows,
            self.mat(out),
            out.stride.into(),
            out.cols.into(),
        ];
        self.launch(of_format("down_vector", &bank.down), grid(out.cols), &args);
    }

    /// Pairs of `experts` from number `first` on, sorted by expert, and cut into tiles of up to
    /// `tile_rows` of the same; there expert `first` is number 0.
    pub(crate) fn sort_pairs(
        &mut self,
        routes: Routes,
        first: u32,
        experts: u32,
        tile_rows: u32,
    ) -> Tiles {
        let pairs = routes.experts.rows * routes.experts.cols;
        let tiles = self.tiles(pairs, experts, tile_rows);
        let chosen = self.slot(routes.experts.whole());
        let (first, experts) = (first.into(), experts.into());
        let args =
            [chosen, pairs.into(), first, experts, tile_rows.into(), tiles.sorted, tiles.tiles];
        self.launch(one("sort_pairs"), shape([1; 3], 1024), &args);
        tiles
    }

    /// Tiles of pairs of experts from number `first` on, in any format.
    fn experts_by_tile(
        &mut self,
        x: Mat<Act>,
        routes: Routes,
        first: u32,
        bank: &Bank,
        inner: Mat<Act>,
        out: Mat<Act>,
    ) {
        let Tiles { sorted, tiles, most } = self.sort_pairs(routes, first, bank.experts, TILE);
        let grid = |outputs: u32| shape([most, outputs.div_ceil(TILE), 1], TILE_THREADS);
        let [data, scales, cols, group, rows] = self.bank_args(&bank.gate_up, bank.inter);
        let args = [
            self.mat(x),
            x.stride.into(),
            self.aligned(x).into(),
            sorted,
            tiles,
            routes.experts.cols.into(),
            data,
            scales,
            cols,
            group,
            rows,
            self.mat(inner),
            inner.stride.into(),
            bank.inter.into(),
        ];
        self.launch(of_format("gate_up_tile", &bank.gate_up), grid(bank.inter), &args);
        let [data, scales, cols, group, rows] = self.bank_args(&bank.down, out.cols);
        let args = [
            self.mat(inner),
            inner.stride.into(),
            self.aligned(inner).into(),
            sorted,
            tiles,
            data,
            scales,
            cols,
            group,
            rows,
            self.mat(out),
            out.stride.into(),
            out.cols.into(),
        ];
        self.launch(of_format("down_tile", &bank.down), grid(out.cols), &args);
    }
}

impl<A: Activation, M: Machine> Ops for Cuda<A, M> {
    fn embed(&mut self, tokens: Slot<u32>, table: &Weight, out: Mat<Act>) {
        assert_eq!(table.cols, out.cols, "a table of rows");
        let args = [
            self.slot(tokens),
            self.slot(table.data),
            self.slot(table.scales),
            group(table).into(),
            self.mat(out),
            out.stride.into(),
            out.cols.into(),
        ];
        let shape = per_row(out.rows, 1, out.cols.div_ceil(8));
        self.launch(of_format("embed", table), shape, &args);
    }

    fn add_rms_norm(
        &mut self,
        add: Option<Mat<Act>>,
        residual: Mat<Act>,
        w: &Weight,
        eps: f32,
        out: Mat<Act>,
    ) {
        assert_eq!((residual.cols, w.cols), (out.cols, out.cols), "columns alike");
        let args = [
            add.map_or(Arg::NULL, |add| self.mat(add)),
            add.map_or(0, |add| add.stride).into(),
            self.mat(residual),
            residual.stride.into(),
            self.vector(w),
            eps.into(),
            self.mat(out),
            out.stride.into(),
            out.cols.into(),
        ];
        let kernel = match self.in_eights(&[add.unwrap_or(residual), residual, out]) {
            Some(shape) => (one("add_rms_norm_eights"), shape),
            None => (one("add_rms_norm"), per_row(out.rows, 1, out.cols)),
        };
        self.launch(kernel.0, kernel.1, &args);
    }

    fn head_norm(&mut self, x: Mat<Act>, dim: u32, w: &Weight, eps: f32) {
        assert_eq!(w.cols, dim, "a weight per column of a head");
        let args = [self.mat(x), x.stride.into(), dim.into(), self.vector(w), eps.into()];
        self.launch(one("head_norm"), per_row(x.rows, x.cols / dim, dim), &args);
    }

    fn linear(&mut self, x: Mat<Act>, w: &Weight, bias: Option<&Weight>, out: Mat<Act>) {
        self.products(x, w, bias, 1, out);
    }

    fn linear_heads(&mut self, x: Mat<Act>, w: &Weight, heads: u32, out: Mat<Act>) {
        self.products(x, w, None, heads, out);
    }

    fn rope(&mut self, x: Mat<Act>, dim: u32, freqs: &Weight, scale: f32, seqs: &Seqs) {
        assert!(2 * freqs.cols <= dim, "{} pairs in heads of {dim}", freqs.cols);
        let args = [
            self.mat(x),
            x.stride.into(),
            (x.cols / dim).into(),
            dim.into(),
            self.vector(freqs),
            freqs.cols.into(),
            scale.into(),
            self.slot(seqs.positions),
        ];
        self.launch(one("rope"), per_column(x.rows, freqs.cols), &args);
    }

    fn kv_append(&mut self, x: Mat<Act>, store: &KvStore, seqs: &Seqs) {
        assert_eq!(x.cols, store.heads * store.dim, "columns [heads, dim]");
        let args = [
            self.mat(x),
            x.stride.into(),
            self.slot(store.data),
            self.slot(store.scales),
            store.heads.into(),
            store.dim.into(),
            store.page.into(),
            self.slot(seqs.row_seq),
            self.slot(seqs.positions),
            self.slot(seqs.pages),
            seqs.pages_max.into(),
            x.rows.into(),
        ];
        let grid = [(x.rows * store.heads).div_ceil(4), 1, 1];
        self.launch(of_store("kv_append", store), shape(grid, 128), &args);
    }

    fn attend(
        &mut self,
        q: Mat<Act>,
        k: &KvStore,
        v: &KvStore,
        seqs: &Seqs,
        scale: f32,
        out: Mat<Act>,
    ) {
        self.gqa(q, k, v, seqs, scale, out);
    }

    fn mla_attend(
        &mut self,
        q: Mat<Act>,
        q_rope: Mat<Act>,
        latent: &KvStore,
        rope: &KvStore,
        seqs: &Seqs,
        scale: f32,
        out: Mat<Act>,
    ) {
        self.mla(q, q_rope, latent, rope, seqs, scale, out);
    }

    fn sigmoid_gate(&mut self, x: Mat<Act>, gate: Mat<Act>) {
        assert_eq!(x.cols, gate.cols, "a gate per column");
        let args =
            [self.mat(x), x.stride.into(), self.mat(gate), gate.stride.into(), x.cols.into()];
        self.launch(one("sigmoid_gate"), per_column(x.rows, x.cols), &args);
    }

    fn causal_conv(
        &mut self,
        x: Mat<Act>,
        w: &Weight,
        state: &StateStore,
        seqs: &Seqs,
        out: Mat<Act>,
    ) {
        self.convolve(x, w, state, seqs, out);
    }

    fn delta_rule(
        &mut self,
        qkv: Mat<Act>,
        ba: Mat<Act>,
        heads: &DeltaHeads,
        a_log: &Weight,
        dt_bias: &Weight,
        state: &StateStore,
        seqs: &Seqs,
        out: Mat<Act>,
    ) {
        self.delta(qkv, ba, heads, a_log, dt_bias, state, seqs, out);
    }

    fn gated_norm(&mut self, x: Mat<Act>, gate: Mat<Act>, dim: u32, w: &Weight, eps: f32) {
        assert_eq!((x.cols, w.cols), (gate.cols, dim), "a gate per column, a weight per head's");
        let args = [
            self.mat(x),
            x.stride.into(),
            self.mat(gate),
            gate.stride.into(),
            dim.into(),
            self.vector(w),
            eps.into(),
        ];
        self.launch(one("gated_norm"), per_row(x.rows, x.cols / dim, dim), &args);
    }

    fn silu_mul(&mut self, gate_up: Mat<Act>, out: Mat<Act>) {
        assert_eq!(gate_up.cols, 2 * out.cols, "columns [gate | up]");
        let args = [
            self.mat(gate_up),
            gate_up.stride.into(),
            self.mat(out),
            out.stride.into(),
            out.cols.into(),
        ];
        self.launch(one("silu_mul"), per_column(out.rows, out.cols), &args);
    }

    fn route(&mut self, logits: Mat<Act>, bias: Option<&Weight>, how: &Routing, out: Routes) {
        self.chosen(logits, bias, how, out);
    }

    fn router(
        &mut self,
        x: Mat<Act>,
        w: &Weight,
        bias: Option<&Weight>,
        how: &Routing,
        logits: Mat<Act>,
        out: Routes,
    ) {
        match self.routes_few(x, w) {
            true => self.few_routed(x, w, bias, how, logits, out),
            false => route::router(self, x, w, bias, how, logits, out),
        }
    }

    fn norm_router(
        &mut self,
        add: Mat<Act>,
        residual: Mat<Act>,
        norm: &Weight,
        eps: f32,
        x: Mat<Act>,
        w: &Weight,
        bias: Option<&Weight>,
        how: &Routing,
        logits: Mat<Act>,
        out: Routes,
    ) {
        match self.norms_few(add, residual, x, w) {
            true => {
                self.few_normed(add, residual, norm, eps, x, w, bias, how, logits, out);
            }
            false => {
                route::normed_router(self, add, residual, norm, eps, x, w, bias, how, logits, out);
            }
        }
    }

    fn experts(
        &mut self,
        x: Mat<Act>,
        routes: Routes,
        bank: &Bank,
        inner: Mat<Act>,
        out: Mat<Act>,
    ) {
        assert_eq!((inner.rows, inner.cols), (out.rows, bank.inter), "a row of scratch per pair");
        assert_eq!((x.cols, out.cols), (bank.gate_up.cols, bank.gate_up.cols), "hidden");
        let lines = [self.in_lines(x, &bank.gate_up, inner), self.in_lines(inner, &bank.down, out)];
        let few = self.few(x, &bank.gate_up).zip(self.few(inner, &bank.down));
        let few = few.filter(|_| x.rows <= FEW_ROWS);
        match (few, lines) {
            (Some(few), _) => self.experts_few(few, x, routes, bank, inner, out),
            _ if x.rows <= VECTOR_ROWS => self.experts_by_pair(x, routes, bank, inner, out),
            // One list of tiles serves both, and its height is that of the bits.
            (None, [Some(gate_up), Some(down)]) if gate_up.bits == down.bits => {
                for (first, bank) in sortable(bank) {
                    let lines = [gate_up, down];
                    self.experts_in_lines(x, routes, first, &bank, lines, inner, out);
                }
            }
            _ => {
                for (first, bank) in sortable(bank) {
                    self.experts_by_tile(x, routes, first, &bank, inner, out);
                }
            }
        }
    }

    fn combine(
        &mut self,
        pairs: Mat<Act>,
        routes: Routes,
        scale: f32,
        shared: Option<SharedExpert>,
        out: Mat<Act>,
    ) {
        let mut args = self.parts_args(pairs, routes, scale, shared);
        args.extend([self.mat(out), out.stride.into(), out.cols.into()]);
        self.launch(one("combine"), per_column(out.rows, out.cols), &args);
    }

    fn combine_rms_norm(
        &mut self,
        pairs: Mat<Act>,
        routes: Routes,
        scale: f32,
        shared: Option<SharedExpert>,
        block: Mat<Act>,
        residual: Mat<Act>,
        w: &Weight,
        eps: f32,
        out: Mat<Act>,
    ) {
        assert_eq!((residual.cols, w.cols), (out.cols, out.cols), "columns alike");
        let every = shared.map_or(residual, |shared| shared.out);
        let Some(shape) = self.in_eights(&[out, residual, pairs, every]) else {
            return combine::and_norm(
                self, pairs, routes, scale, shared, block, residual, w, eps, out,
            );
        };
        let mut args = self.parts_args(pairs, routes, scale, shared);
        args.extend([self.mat(residual), residual.stride.into(), self.vector(w), eps.into()]);
        args.extend([self.mat(out), out.stride.into(), out.cols.into()]);
        self.launch(one("combine_rms_norm"), shape, &args);
    }

    fn gather(&mut self, x: Mat<Act>, rows: Slot<u32>, out: Mat<Act>) {
        assert_eq!(x.cols, out.cols, "columns alike");
        let args = [
            self.mat(x),
            x.stride.into(),
            self.slot(rows),
            self.mat(out),
            out.stride.into(),
            out.cols.into(),
        ];
        self.launch(one("gather"), per_column(out.rows, out.cols), &args);
    }

    fn take_rows(&mut self, from: Mat<Act>, places: Slot<u32>, out: Mat<Act>) {
        assert_eq!((from.rows, from.cols), (out.rows, out.cols), "shapes alike");
        let args = [
            self.mat(out),
            out.stride.into(),
            self.mat(from),
            from.stride.into(),
            self.slot(places),
            out.cols.into(),
        ];
        self.launch(one("take_rows"), per_column(out.rows, out.cols), &args);
    }

    fn largest(&mut self, x: Mat<Act>, scales: Slot<f32>, out: Mat<f32>) {
        let k = largest::found(x.cols, out);
        let pieces = x.cols.div_ceil(LOGIT_PIECE);
        let all = u64::from(x.rows) * u64::from(pieces);
        let keys = self.workspace(0, all * u64::from(LARGEST_MAX) * 8);
        let sums = self.workspace(all * u64::from(LARGEST_MAX) * 8, all * 8);
        let scales = self.slot(scales);
        let args = [self.mat(x), x.stride.into(), x.cols.into(), scales, keys, sums];
        self.launch(one("largest_pieces"), shape([pieces, x.rows, 1], BLOCK), &args);
        let to = self.slot(out.whole());
        let args = [keys, sums, pieces.into(), scales, k.into(), to, out.cols.into()];
        self.launch(one("largest_merge"), shape([x.rows, 1, 1], BLOCK), &args);
    }

    fn place(&mut self, experts: Mat<u32>, slots: Slot<u32>, counts: Slot<u32>, out: Slot<u32>) {
        let pairs = experts.whole();
        let args = [
            self.slot(pairs),
            (pairs.len as u32).into(),
            self.slot(slots),
            self.slot(counts),
            (slots.len as u32).into(),
            self.slot(out),
        ];
        let blocks = (pairs.len as u32).div_ceil(PLACED);
        self.launch(one("place"), shape([blocks, 1, 1], BLOCK), &args);
    }

    fn gqa_heads(
        &mut self,
        qkv: [Mat<Act>; 3],
        norms: Option<&[Weight; 2]>,
        eps: f32,
        turns: Turns,
        stores: [&KvStore; 2],
        seqs: &Seqs,
    ) {
        self.grouped_heads(qkv, norms, eps, turns, stores, seqs);
    }

    fn mla_heads(
        &mut self,
        q_rope: Mat<Act>,
        kept: [Mat<Act>; 2],
        norm: &Weight,
        eps: f32,
        turns: Turns,
        stores: [&KvStore; 2],
        seqs: &Seqs,
    ) {
        self.latent_heads(q_rope, kept, norm, eps, turns, stores, seqs);
    }

    fn mla_mix(
        &mut self,
        q: [Mat<Act>; 2],
        absorb: [&Weight; 2],
        stores: [&KvStore; 2],
        seqs: &Seqs,
        scale: f32,
        scratch: [Slot<Act>; 2],
        out: Mat<Act>,
    ) {
        self.latent_mix(q, absorb, stores, seqs, scale, scratch, out);
    }
}
