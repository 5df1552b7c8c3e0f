//! The reference device: every operation as the loop one would write on a blackboard, in f32.
//!
//! Inputs are copied out of the arena and results copied back, so the loops need no cleverness
//! about memory. It is slow on purpose, and the judge of every other device.

use crate::*;
use bytemuck::Pod;
use half::{bf16, f16};
use krasis_core::{DType, Format};
use krasis_cpu::Arena;

/// Plain loops over host memory.
pub struct Reference {
    pub(crate) arena: Arena,
}

impl Reference {
    /// A device over this memory.
    pub fn new(arena: Arena) -> Reference {
        Reference { arena }
    }

    /// A matrix as rows.
    pub(crate) fn rows(&self, mat: Mat<Act>) -> Vec<Vec<f32>> {
        let all = self.arena.slice(mat.at.floats());
        (0..mat.rows).map(|row| all[mat.row_range(row)].to_vec()).collect()
    }

    /// Overwrites a matrix.
    pub(crate) fn put(&mut self, mat: Mat<Act>, rows: &[Vec<f32>]) {
        assert_eq!(rows.len(), mat.rows as usize);
        let all = self.arena.slice_mut(mat.at.floats());
        for (row, values) in rows.iter().enumerate() {
            all[mat.row_range(row as u32)].copy_from_slice(values);
        }
    }

    /// A weight as rows of f32, number by number.
    pub(crate) fn weight(&self, w: &Weight) -> Vec<Vec<f32>> {
        (0..w.rows).map(|row| (0..w.cols).map(|col| self.element(w, row, col)).collect()).collect()
    }

    /// A weight of one row.
    pub(crate) fn vector(&self, w: &Weight) -> Vec<f32> {
        assert_eq!(w.rows, 1, "a vector is a weight of one row");
        self.weight(w).remove(0)
    }

    fn element(&self, w: &Weight, row: u32, col: u32) -> f32 {
        if let Format::Lines(lines) = w.format {
            let (data, scales) = (self.arena.slice(w.data), self.arena.slice(w.scales));
            let (cols, row, col) = (w.cols as usize, row as usize, col as usize);
            let (integer, scale) = lines.read(cols, row, col, data, scales);
            return integer as f32 * scale.to_f32();
        }
        let bytes = w.format.row_bytes(w.cols) as usize;
        let data = &self.arena.slice(w.data)[row as usize * bytes..][..bytes];
        let (row, col) = (row as usize, col as usize);
        let scale = |group: u32| {
            let scales = w.format.row_scales(w.cols) as usize;
            self.arena.slice(w.scales)[row * scales + col / group as usize].to_f32()
        };
        match w.format {
            Format::Lines(_) => unreachable!("read above"),
            Format::Float(DType::F32) => {
                f32::from_le_bytes(data[col * 4..][..4].try_into().unwrap())
            }
            Format::Float(DType::F16) => {
                f16::from_le_bytes(data[col * 2..][..2].try_into().unwrap()).to_f32()
            }
            Format::Float(DType::Bf16) => {
                bf16::from_le_bytes(data[col * 2..][..2].try_into().unwrap()).to_f32()
            }
            Format::Float(other) => {
                unreachable!("{other} weights are refused when they are loaded")
            }
            Format::Int8 { group } => f32::from(data[col] as i8) * scale(group),
            Format::Int4 { group } => {
                let nibble = (data[col / 2] >> (col % 2 * 4)) & 15;
                (f32::from(nibble) - 8.0) * scale(group)
            }
        }
    }
}

impl Memory for Reference {
    const ACT_BYTES: u32 = 4;
    fn upload<T: Pod>(&mut self, at: Slot<T>, values: &[T]) {
        self.arena.slice_mut(at)[..values.len()].copy_from_slice(values);
    }
    fn download_to<T: Pod>(&mut self, at: Slot<T>, to: &mut Vec<T>) {
        self.arena.download_to(at, to);
    }
    fn upload_act(&mut self, to: Mat<Act>, values: &[f32]) {
        self.arena.upload_act(to, values);
    }
    fn download_act_to(&mut self, from: Mat<Act>, to: &mut Vec<f32>) {
        *to = self.rows(from).concat();
    }
}

impl Ops for Reference {
    fn embed(&mut self, tokens: Slot<u32>, table: &Weight, out: Mat<Act>) {
        embed::reference(self, tokens, table, out);
    }
    fn add_rms_norm(
        &mut self,
        add: Option<Mat<Act>>,
        residual: Mat<Act>,
        w: &Weight,
        eps: f32,
        out: Mat<Act>,
    ) {
        add_rms_norm::reference(self, add, residual, w, eps, out);
    }
    fn head_norm(&mut self, x: Mat<Act>, dim: u32, w: &Weight, eps: f32) {
        head_norm::reference(self, x, dim, w, eps);
    }
    fn linear(&mut self, x: Mat<Act>, w: &Weight, bias: Option<&Weight>, out: Mat<Act>) {
        linear::reference(self, x, w, bias, out);
    }
    fn linear_heads(&mut self, x: Mat<Act>, w: &Weight, heads: u32, out: Mat<Act>) {
        linear_heads::reference(self, x, w, heads, out);
    }
    fn rope(&mut self, x: Mat<Act>, dim: u32, freqs: &Weight, scale: f32, seqs: &Seqs) {
        rope::reference(self, x, dim, freqs, scale, seqs);
    }
    fn kv_append(&mut self, x: Mat<Act>, store: &KvStore, seqs: &Seqs) {
        kv_append::reference(self, x, store, seqs);
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
        attend::reference(self, q, k, v, seqs, scale, out);
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
        mla_attend::reference(self, q, q_rope, latent, rope, seqs, scale, out);
    }
    fn sigmoid_gate(&mut self, x: Mat<Act>, gate: Mat<Act>) {
        sigmoid_gate::reference(self, x, gate);
    }
    fn causal_conv(
        &mut self,
        x: Mat<Act>,
        w: &Weight,
        state: &StateStore,
        seqs: &Seqs,
        out: Mat<Act>,
    ) {
        causal_conv::reference(self, x, w, state, seqs, out);
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
        delta_rule::reference(self, qkv, ba, heads, a_log, dt_bias, state, seqs, out);
    }
    fn gated_norm(&mut self, x: Mat<Act>, gate: Mat<Act>, dim: u32, w: &Weight, eps: f32) {
        gated_norm::reference(self, x, gate, dim, w, eps);
    }
    fn silu_mul(&mut self, gate_up: Mat<Act>, out: Mat<Act>) {
        silu_mul::reference(self, gate_up, out);
    }
    fn route(&mut self, logits: Mat<Act>, bias: Option<&Weight>, how: &Routing, out: Routes) {
        route::reference(self, logits, bias, how, out);
    }
    fn experts(
        &mut self,
        x: Mat<Act>,
        routes: Routes,
        bank: &Bank,
        inner: Mat<Act>,
        out: Mat<Act>,
    ) {
        experts::reference(self, x, routes, bank, inner, out);
    }
    fn combine(
        &mut self,
        pairs: Mat<Act>,
        routes: Routes,
        scale: f32,
        shared: Option<SharedExpert>,
        out: Mat<Act>,
    ) {
        combine::reference(self, pairs, routes, scale, shared, out);
    }
    fn gather(&mut self, x: Mat<Act>, rows: Slot<u32>, out: Mat<Act>) {
        gather::reference(self, x, rows, out);
    }
    fn largest(&mut self, x: Mat<Act>, scales: Slot<f32>, out: Mat<f32>) {
        largest::reference(self, x, scales, out);
    }
    fn take_rows(&mut self, from: Mat<Act>, places: Slot<u32>, out: Mat<Act>) {
        take_rows::reference(self, from, places, out);
    }
    fn place(&mut self, experts: Mat<u32>, slots: Slot<u32>, counts: Slot<u32>, out: Slot<u32>) {
        place::reference(self, experts, slots, counts, out);
    }
}
