//! The CPU device: the same operations as vector loops on a team of threads.

use crate::*;
use bytemuck::Pod;
use half::bf16;
use krasis_core::{DType, Format, Lines};
use krasis_cpu::floats::{Floats, dot_rows};
use krasis_cpu::lines::{Matrix, Tokens};
use krasis_cpu::nodes::Read;
use krasis_cpu::{Arena, Homes, Inputs, Isa, Keep, Team, vector};
use std::io;
use std::ops::Range;

/// Host memory and the threads that work on it.
pub struct Cpu {
    pub(crate) arena: Arena,
    pub(crate) team: Team,
    pub(crate) isa: Isa,
    /// Activations on their way to a weight in lines; kept because fresh memory costs page faults.
    pub(crate) tokens: Tokens,
    /// Who chose which expert; kept because a decode step allocates nothing.
    pub(crate) groups: experts::Groups,
    /// Where the blocks of those lie, in each matrix.
    pub(crate) runs: [experts::Runs; 3],
    /// What is between both products of experts, kept for the same reason.
    pub(crate) halves: experts::Halves,
    /// Each thread's own memory while an operation runs, kept for the same reason.
    pub(crate) workers: Floats,
    /// What attention keeps besides.
    pub(crate) desk: attend::Desk,
    /// By which the rows of the step at hand turn.
    pub(crate) angles: rope::Angles,
}

impl Cpu {
    /// A device over this memory.
    pub fn new(arena: Arena, team: Team) -> Cpu {
        Cpu::with_isa(arena, team, Isa::best())
    }

    /// A device that uses these instructions for products in integers.
    pub fn with_isa(arena: Arena, team: Team, isa: Isa) -> Cpu {
        Cpu {
            arena,
            team,
            isa,
            tokens: Tokens::new(),
            groups: experts::Groups::default(),
            runs: Default::default(),
            halves: experts::Halves::default(),
            workers: Floats::default(),
            desk: attend::Desk::default(),
            angles: rope::Angles::default(),
        }
    }

    /// Its memory, to be copied elsewhere.
    pub fn bytes(&self, at: Slot<u8>) -> &[u8] {
        self.arena.slice(at)
    }

    /// Numbers where they lie: whole rows.
    pub fn floats(&self, mat: Mat<Act>) -> &[f32] {
        self.arena.slice(mat.whole().floats())
    }

    /// [`Ops::experts`] for somebody else: a row for each pair; `inner` and `out` are scratch.
    pub fn experts_to(
        &mut self,
        x: Mat<Act>,
        routes: Routes,
        bank: &Bank,
        [inner, out]: [Mat<Act>; 2],
        paper: &Paper,
    ) {
        experts::cpu_to(self, x, routes, bank, [inner, out], paper);
    }

    /// Has its memory outlive it.
    pub fn keep(&self) -> Keep {
        self.arena.keep()
    }
}

/// Token rows below which small operations stay on one thread: a decode step's always do.
pub(crate) const ROWS_WORTH_A_THREAD: usize = 8;

/// A weight's rows, while an operation runs.
pub(crate) struct Rows<'a> {
    format: Format,
    cols: u32,
    data: &'a [u8],
    scales: &'a [bf16],
}

impl<'a> Rows<'a> {
    pub(crate) fn of(w: &Weight, inputs: &Inputs<'a>) -> Rows<'a> {
        let (data, scales) = (inputs.slice(w.data), inputs.slice(w.scales));
        Rows { format: w.format, cols: w.cols, data, scales }
    }

    /// Some rows as f32, one after the other. Rows of floats lie so, and short ones are many.
    pub(crate) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        if let Format::Float(_) = self.format {
            let bytes = self.format.row_bytes(self.cols) as usize;
            let data = &self.data[rows.start * bytes..rows.end * bytes];
            return vector::decode_row(self.format, data, &[], out);
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(self.cols as usize)) {
            self.decode(row, out);
        }
    }

    /// Row `row` as f32.
    pub(crate) fn decode(&self, row: usize, out: &mut [f32]) {
        if let Format::Lines(lines) = self.format {
            for (col, out) in out.iter_mut().enumerate() {
                let (integer, scale) =
                    lines.read(self.cols as usize, row, col, self.data, self.scales);
                *out = integer as f32 * scale.to_f32();
            }
            return;
        }
        let (data, scales) = self.stored(row);
        vector::decode_row(self.format, data, scales, out);
    }

    /// Whether rows of a matrix product are better decoded once than for every few vectors.
    pub(crate) fn decode_first(&self) -> bool {
        !matches!(self.format, Format::Float(DType::F32 | DType::Bf16))
    }

    /// `out[i, row] = Σ row · x[i]`, for a few x. Each row is read once.
    pub(crate) fn dots(&self, isa: Isa, rows: Range<usize>, x: &[&[f32]], out: &mut [f32]) {
        let bytes = self.format.row_bytes(self.cols) as usize;
        let scales = self.format.row_scales(self.cols) as usize;
        let data = &self.data[rows.start * bytes..rows.end * bytes];
        let scales = &self.scales[rows.start * scales..rows.end * scales];
        dot_rows(isa, self.format, data, scales, x, out);
    }

    fn stored(&self, row: usize) -> (&'a [u8], &'a [bf16]) {
        let bytes = self.format.row_bytes(self.cols) as usize;
        let scales = self.format.row_scales(self.cols) as usize;
        (&self.data[row * bytes..][..bytes], &self.scales[row * scales..][..scales])
    }
}

/// A weight in lines, while an operation runs.
pub(crate) fn matrix_of<'a>(lines: Lines, w: &Weight, inputs: &Inputs<'a>) -> Matrix<'a> {
    Matrix::new(lines, w.cols as usize, inputs.slice(w.data), inputs.slice(w.scales))
}

/// The numbers of a vector, which the loader keeps in f32.
pub(crate) fn vector_of<'a>(w: &Weight, inputs: &Inputs<'a>) -> &'a [f32] {
    assert_eq!((w.rows, w.format), (1, Format::Float(DType::F32)), "vectors are f32");
    inputs.slice(Slot::new(w.data.start, u64::from(w.cols)))
}

impl Memory for Cpu {
    const ACT_BYTES: u32 = 4;
    fn upload<T: Pod>(&mut self, at: Slot<T>, values: &[T]) {
        self.arena.upload(at, values);
    }
    fn download_to<T: Pod>(&mut self, at: Slot<T>, to: &mut Vec<T>) {
        self.arena.download_to(at, to);
    }
    fn copy(&mut self, from: Slot<u8>, to: Slot<u8>) {
        self.arena.copy(from, to);
    }
    fn hand_over(&mut self, to: &mut Cpu, pieces: &[(Slot<u8>, Slot<u8>)]) {
        self.arena.hand_over(&mut to.arena, pieces);
    }
    fn upload_act(&mut self, to: Mat<Act>, values: &[f32]) {
        self.arena.upload_act(to, values);
    }
    fn download_act_to(&mut self, from: Mat<Act>, to: &mut Vec<f32>) {
        self.arena.download_act_to(from, to);
    }
    fn lend(&mut self, at: Slot<u8>) -> Room {
        Room::There(self.arena.lend(at))
    }
    fn take_back(&mut self, at: Slot<u8>, room: Room) {
        match room {
            Room::There(lent) => self.arena.take_back(lent),
            Room::Apart(bytes) => self.upload(at, &bytes),
        }
    }
    fn homes(&self) -> Option<&Homes> {
        Some(self.arena.homes())
    }
    fn settle(&mut self) -> io::Result<()> {
        self.arena.settle()
    }
    fn level(&mut self, reads: &[Read], most: usize) -> io::Result<usize> {
        self.arena.level(reads, most)
    }
    fn receive(
        &mut self,
        slots: &[Slot<u8>],
        piece: usize,
        team: &Team,
        write: impl Fn(usize, u64, &mut [u8]) + Sync,
    ) {
        self.arena.receive(slots, piece, team, write);
    }
}

impl Ops for Cpu {
    fn embed(&mut self, tokens: Slot<u32>, table: &Weight, out: Mat<Act>) {
        embed::cpu(self, tokens, table, out);
    }
    fn add_rms_norm(
        &mut self,
        add: Option<Mat<Act>>,
        residual: Mat<Act>,
        w: &Weight,
        eps: f32,
        out: Mat<Act>,
    ) {
        add_rms_norm::cpu(self, add, residual, w, eps, out);
    }
    fn head_norm(&mut self, x: Mat<Act>, dim: u32, w: &Weight, eps: f32) {
        head_norm::cpu(self, x, dim, w, eps);
    }
    fn linear(&mut self, x: Mat<Act>, w: &Weight, bias: Option<&Weight>, out: Mat<Act>) {
        linear::cpu(self, x, w, bias, out);
    }
    fn linear_heads(&mut self, x: Mat<Act>, w: &Weight, heads: u32, out: Mat<Act>) {
        linear_heads::cpu(self, x, w, heads, out);
    }
    fn rope(&mut self, x: Mat<Act>, dim: u32, freqs: &Weight, scale: f32, seqs: &Seqs) {
        rope::cpu(self, x, dim, freqs, scale, seqs);
    }
    fn kv_append(&mut self, x: Mat<Act>, store: &KvStore, seqs: &Seqs) {
        kv_append::cpu(self, x, store, seqs);
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
        attend::cpu(self, q, k, v, seqs, scale, out);
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
        mla_attend::cpu(self, q, q_rope, latent, rope, seqs, scale, out);
    }
    fn sigmoid_gate(&mut self, x: Mat<Act>, gate: Mat<Act>) {
        sigmoid_gate::cpu(self, x, gate);
    }
    fn causal_conv(
        &mut self,
        x: Mat<Act>,
        w: &Weight,
        state: &StateStore,
        seqs: &Seqs,
        out: Mat<Act>,
    ) {
        causal_conv::cpu(self, x, w, state, seqs, out);
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
        delta_rule::cpu(self, qkv, ba, heads, a_log, dt_bias, state, seqs, out);
    }
    fn gated_norm(&mut self, x: Mat<Act>, gate: Mat<Act>, dim: u32, w: &Weight, eps: f32) {
        gated_norm::cpu(self, x, gate, dim, w, eps);
    }
    fn silu_mul(&mut self, gate_up: Mat<Act>, out: Mat<Act>) {
        silu_mul::cpu(self, gate_up, out);
    }
    fn route(&mut self, logits: Mat<Act>, bias: Option<&Weight>, how: &Routing, out: Routes) {
        route::cpu(self, logits, bias, how, out);
    }
    fn experts(
        &mut self,
        x: Mat<Act>,
        routes: Routes,
        bank: &Bank,
        inner: Mat<Act>,
        out: Mat<Act>,
    ) {
        experts::cpu(self, x, routes, bank, inner, out);
    }
    fn combine(
        &mut self,
        pairs: Mat<Act>,
        routes: Routes,
        scale: f32,
        shared: Option<SharedExpert>,
        out: Mat<Act>,
    ) {
        combine::cpu(self, pairs, routes, scale, shared, out);
    }
    fn gather(&mut self, x: Mat<Act>, rows: Slot<u32>, out: Mat<Act>) {
        gather::cpu(self, x, rows, out);
    }
    fn largest(&mut self, x: Mat<Act>, scales: Slot<f32>, out: Mat<f32>) {
        largest::cpu(self, x, scales, out);
    }
    fn take_rows(&mut self, from: Mat<Act>, places: Slot<u32>, out: Mat<Act>) {
        take_rows::cpu(self, from, places, out);
    }
    fn place(&mut self, experts: Mat<u32>, slots: Slot<u32>, counts: Slot<u32>, out: Slot<u32>) {
        place::cpu(self, experts, slots, counts, out);
    }
}
