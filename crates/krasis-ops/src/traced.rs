//! Any device with a watch: how long each operation keeps whoever calls it, and how much it was given.
//!
//! That is the time of the operation where devices compute while they are called. A GPU does so later, and
//! sends the same spans by itself. What a device would repeat at one go is given to it operation by
//! operation, or there would be nothing to see.

use crate::*;
use bytemuck::Pod;
use krasis_cpu::nodes::Read;
use krasis_cpu::{Homes, Keep};
use std::io;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Whose time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Track {
    /// The thread that calls.
    Host,
    /// Kernels of a GPU.
    Kernels,
    /// Its copies from host memory and back.
    Copies,
}

/// One call of an operation, a kernel or a copy.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Its name in [`Ops`] or [`Memory`], or the kernel's.
    pub name: &'static str,
    /// Whose time it is.
    pub track: Track,
    /// The layer that it belongs to.
    pub layer: Option<u32>,
    /// Rows of an operation, which are tokens or pairs of tokens and experts; blocks of a kernel; bytes
    /// of a copy.
    pub amount: u64,
    /// When it began.
    pub start: Instant,
    /// How long it took.
    pub time: Duration,
}

/// A device whose operations are timed; what is measured goes into a channel.
pub struct Traced<D> {
    /// The device.
    pub device: D,
    spans: Sender<Span>,
    layer: Option<u32>,
}

impl<D> Traced<D> {
    /// Puts a watch on a device.
    pub const fn new(device: D, spans: Sender<Span>) -> Traced<D> {
        Traced { device, spans, layer: None }
    }

    fn time<T>(&mut self, name: &'static str, rows: u32, call: impl FnOnce(&mut D) -> T) -> T {
        let start = Instant::now();
        let result = call(&mut self.device);
        // Nobody listens any more: then nobody wants to know.
        let (track, amount) = (Track::Host, u64::from(rows));
        let (layer, time) = (self.layer, start.elapsed());
        let _ = self.spans.send(Span { name, track, layer, amount, start, time });
        result
    }
}

impl<D: Memory> Memory for Traced<D> {
    const ACT_BYTES: u32 = D::ACT_BYTES;

    fn upload<T: Pod>(&mut self, at: Slot<T>, values: &[T]) {
        self.time("upload", values.len() as u32, |d| d.upload(at, values));
    }
    fn download_to<T: Pod>(&mut self, at: Slot<T>, to: &mut Vec<T>) {
        self.time("download", at.len as u32, |d| d.download_to(at, to));
    }
    fn download_with_act(
        &mut self,
        at: Slot<u32>,
        to: &mut Vec<u32>,
        from: Mat<Act>,
        numbers: &mut Vec<f32>,
    ) {
        self.time("download", from.rows, |d| d.download_with_act(at, to, from, numbers));
    }
    fn bring<'a>(&mut self, pieces: impl Iterator<Item = (Slot<u8>, &'a [u8])>, keep: &Keep) {
        let pieces: Vec<_> = pieces.collect();
        let bytes: usize = pieces.iter().map(|(_, from)| from.len()).sum();
        self.time("bring", bytes as u32, |d| d.bring(pieces.into_iter(), keep));
    }
    fn brought(&mut self) {
        self.device.brought();
    }
    fn layer(&mut self, layer: Option<u32>) {
        self.layer = layer;
        self.device.layer(layer);
    }
    fn homes(&self) -> Option<&Homes> {
        self.device.homes()
    }
    fn settle(&mut self) -> io::Result<()> {
        self.device.settle()
    }
    fn level(&mut self, reads: &[Read], most: usize) -> io::Result<usize> {
        self.device.level(reads, most)
    }
    fn lend(&mut self, at: Slot<u8>) -> Room {
        self.device.lend(at)
    }
    fn take_back(&mut self, at: Slot<u8>, room: Room) {
        self.time("take_back", at.len as u32, |d| d.take_back(at, room));
    }
    fn copy(&mut self, from: Slot<u8>, to: Slot<u8>) {
        self.time("copy", from.len as u32, |d| d.copy(from, to));
    }
    fn hand_over(&mut self, to: &mut Traced<D>, pieces: &[(Slot<u8>, Slot<u8>)]) {
        let bytes: u64 = pieces.iter().map(|(here, _)| here.len).sum();
        self.time("hand over", bytes as u32, |d| d.hand_over(&mut to.device, pieces));
    }
    fn upload_act(&mut self, to: Mat<Act>, values: &[f32]) {
        self.time("upload", to.rows, |d| d.upload_act(to, values));
    }
    fn download_act_to(&mut self, from: Mat<Act>, to: &mut Vec<f32>) {
        self.time("download", from.rows, |d| d.download_act_to(from, to));
    }
}

impl<D: Ops> Ops for Traced<D> {
    fn embed(&mut self, tokens: Slot<u32>, table: &Weight, out: Mat<Act>) {
        self.time("embed", out.rows, |d| d.embed(tokens, table, out));
    }
    fn add_rms_norm(
        &mut self,
        add: Option<Mat<Act>>,
        residual: Mat<Act>,
        w: &Weight,
        eps: f32,
        out: Mat<Act>,
    ) {
        self.time("add_rms_norm", out.rows, |d| d.add_rms_norm(add, residual, w, eps, out));
    }
    fn head_norm(&mut self, x: Mat<Act>, dim: u32, w: &Weight, eps: f32) {
        self.time("head_norm", x.rows, |d| d.head_norm(x, dim, w, eps));
    }
    fn linear(&mut self, x: Mat<Act>, w: &Weight, bias: Option<&Weight>, out: Mat<Act>) {
        self.time("linear", out.rows, |d| d.linear(x, w, bias, out));
    }
    fn linear_heads(&mut self, x: Mat<Act>, w: &Weight, heads: u32, out: Mat<Act>) {
        self.time("linear_heads", out.rows, |d| d.linear_heads(x, w, heads, out));
    }
    fn rope(&mut self, x: Mat<Act>, dim: u32, freqs: &Weight, scale: f32, seqs: &Seqs) {
        self.time("rope", x.rows, |d| d.rope(x, dim, freqs, scale, seqs));
    }
    fn kv_append(&mut self, x: Mat<Act>, store: &KvStore, seqs: &Seqs) {
        self.time("kv_append", x.rows, |d| d.kv_append(x, store, seqs));
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
        self.time("attend", out.rows, |d| d.attend(q, k, v, seqs, scale, out));
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
        self.time("mla_attend", out.rows, |d| {
            d.mla_attend(q, q_rope, latent, rope, seqs, scale, out)
        });
    }
    fn sigmoid_gate(&mut self, x: Mat<Act>, gate: Mat<Act>) {
        self.time("sigmoid_gate", x.rows, |d| d.sigmoid_gate(x, gate));
    }
    fn causal_conv(
        &mut self,
        x: Mat<Act>,
        w: &Weight,
        state: &StateStore,
        seqs: &Seqs,
        out: Mat<Act>,
    ) {
        self.time("causal_conv", out.rows, |d| d.causal_conv(x, w, state, seqs, out));
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
        self.time("delta_rule", out.rows, |d| {
            d.delta_rule(qkv, ba, heads, a_log, dt_bias, state, seqs, out)
        });
    }
    fn gated_norm(&mut self, x: Mat<Act>, gate: Mat<Act>, dim: u32, w: &Weight, eps: f32) {
        self.time("gated_norm", x.rows, |d| d.gated_norm(x, gate, dim, w, eps));
    }
    fn silu_mul(&mut self, gate_up: Mat<Act>, out: Mat<Act>) {
        self.time("silu_mul", out.rows, |d| d.silu_mul(gate_up, out));
    }
    fn route(&mut self, logits: Mat<Act>, bias: Option<&Weight>, how: &Routing, out: Routes) {
        self.time("route", logits.rows, |d| d.route(logits, bias, how, out));
    }
    fn experts(
        &mut self,
        x: Mat<Act>,
        routes: Routes,
        bank: &Bank,
        inner: Mat<Act>,
        out: Mat<Act>,
    ) {
        self.time("experts", out.rows, |d| d.experts(x, routes, bank, inner, out));
    }
    fn combine(
        &mut self,
        pairs: Mat<Act>,
        routes: Routes,
        scale: f32,
        shared: Option<SharedExpert>,
        out: Mat<Act>,
    ) {
        self.time("combine", out.rows, |d| d.combine(pairs, routes, scale, shared, out));
    }
    fn gather(&mut self, x: Mat<Act>, rows: Slot<u32>, out: Mat<Act>) {
        self.time("gather", out.rows, |d| d.gather(x, rows, out));
    }
    fn largest(&mut self, x: Mat<Act>, scales: Slot<f32>, out: Mat<f32>) {
        self.time("largest", out.rows, |d| d.largest(x, scales, out));
    }
    fn take_rows(&mut self, from: Mat<Act>, places: Slot<u32>, out: Mat<Act>) {
        self.time("take_rows", out.rows, |d| d.take_rows(from, places, out));
    }
    fn place(&mut self, experts: Mat<u32>, slots: Slot<u32>, counts: Slot<u32>, out: Slot<u32>) {
        self.time("place", experts.rows, |d| d.place(experts, slots, counts, out));
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
        self.time("router", x.rows, |d| d.router(x, w, bias, how, logits, out));
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
        self.time("norm_router", x.rows, |d| {
            d.norm_router(add, residual, norm, eps, x, w, bias, how, logits, out)
        });
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
        self.time("combine_rms_norm", out.rows, |d| {
            d.combine_rms_norm(pairs, routes, scale, shared, block, residual, w, eps, out)
        });
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
        self.time("gqa_heads", qkv[0].rows, |d| d.gqa_heads(qkv, norms, eps, turns, stores, seqs));
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
        self.time("mla_heads", q_rope.rows, |d| {
            d.mla_heads(q_rope, kept, norm, eps, turns, stores, seqs)
        });
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
        self.time("mla_mix", out.rows, |d| d.mla_mix(q, absorb, stores, seqs, scale, scratch, out));
    }
}
