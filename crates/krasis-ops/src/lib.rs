//! What a device can compute: one folder per operation, holding its contract, the plain reference,
//! the CPU kernel and the tests that compare them.
//!
//! [`Ops`] is the table of contents. Operations write into planned slots, allocate nothing that
//! outlives the call, and treat every token row alone: a row's result never depends on how many
//! other rows came with it.

#[macro_use]
pub mod testing;

pub mod cpu;
pub mod memory;
pub mod reference;
pub mod step;
pub mod traced;

pub mod add_rms_norm;
pub mod attend;
pub mod causal_conv;
pub mod combine;
pub mod delta_rule;
pub mod embed;
pub mod experts;
pub mod gated_norm;
pub mod gather;
pub mod head_norm;
pub mod heads;
pub mod kv_append;
pub mod largest;
pub mod linear;
pub mod linear_heads;
pub mod mla_attend;
pub mod mla_mix;
pub mod place;
pub mod rope;
pub mod route;
pub mod sigmoid_gate;
pub mod silu_mul;
pub mod take_rows;

pub use combine::SharedExpert;
pub use cpu::Cpu;
pub use delta_rule::DeltaHeads;
pub use experts::{ABSENT, Bank};
pub use heads::Turns;
pub use krasis_cpu::{Keep, Tiles};
pub use largest::LARGEST_MAX;
pub use memory::{Aide, Memory, Nobody, Paper, Question, Room};
pub use reference::Reference;
pub use route::{GroupScore, Groups, Routes, Routing, Score};
pub use step::{KEYS_TOGETHER, KvStore, PROMPT_ROWS, Prompts, Seqs, StateStore};
pub use traced::{Span, Traced, Track};

use krasis_core::{Act, Mat, Slot, Weight};

/// The operations of a forward pass. Formulas, shapes and allowed aliasing stand in the module of
/// the same name. Rows are tokens, and all matrices of a call have the same number of rows unless
/// the module says otherwise.
pub trait Ops {
    /// `out = table[tokens]`.
    fn embed(&mut self, tokens: Slot<u32>, table: &Weight, out: Mat<Act>);
    /// `residual += add; out = rms_norm(residual) · w`.
    fn add_rms_norm(
        &mut self,
        add: Option<Mat<Act>>,
        residual: Mat<Act>,
        w: &Weight,
        eps: f32,
        out: Mat<Act>,
    );
    /// Each head of `dim` columns: `x = rms_norm(x) · w`, in place.
    fn head_norm(&mut self, x: Mat<Act>, dim: u32, w: &Weight, eps: f32);
    /// `out = x · wᵀ + bias`.
    fn linear(&mut self, x: Mat<Act>, w: &Weight, bias: Option<&Weight>, out: Mat<Act>);
    /// `linear` for each head with its own block of `w`.
    fn linear_heads(&mut self, x: Mat<Act>, w: &Weight, heads: u32, out: Mat<Act>);
    /// Rotates the first dimensions of each head of `dim` columns by the token's position, in place.
    fn rope(&mut self, x: Mat<Act>, dim: u32, freqs: &Weight, scale: f32, seqs: &Seqs);
    /// Stores each row's heads in the KV cache at the token's position.
    fn kv_append(&mut self, x: Mat<Act>, store: &KvStore, seqs: &Seqs);
    /// Causal attention of grouped query heads over the KV cache.
    fn attend(
        &mut self,
        q: Mat<Act>,
        k: &KvStore,
        v: &KvStore,
        seqs: &Seqs,
        scale: f32,
        out: Mat<Act>,
    );
    /// Causal latent attention: keys and values are one latent vector, plus a rotated key part.
    fn mla_attend(
        &mut self,
        q: Mat<Act>,
        q_rope: Mat<Act>,
        latent: &KvStore,
        rope: &KvStore,
        seqs: &Seqs,
        scale: f32,
        out: Mat<Act>,
    );
    /// `x = x · sigmoid(gate)`, in place.
    fn sigmoid_gate(&mut self, x: Mat<Act>, gate: Mat<Act>);
    /// Depthwise causal convolution along each sequence, then SiLU.
    fn causal_conv(
        &mut self,
        x: Mat<Act>,
        w: &Weight,
        state: &StateStore,
        seqs: &Seqs,
        out: Mat<Act>,
    );
    /// The gated delta rule along each sequence.
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
    );
    /// Each head of `dim` columns: `x = rms_norm(x) · w · silu(gate)`, in place.
    fn gated_norm(&mut self, x: Mat<Act>, gate: Mat<Act>, dim: u32, w: &Weight, eps: f32);
    /// `out = silu(gate) · up` of fused columns `[gate | up]`.
    fn silu_mul(&mut self, gate_up: Mat<Act>, out: Mat<Act>);
    /// Chooses the experts of each token and their weights.
    fn route(&mut self, logits: Mat<Act>, bias: Option<&Weight>, how: &Routing, out: Routes);
    /// Runs each token's routed experts; one row of `out` per (token, choice) pair.
    fn experts(&mut self, x: Mat<Act>, routes: Routes, bank: &Bank, inner: Mat<Act>, out: Mat<Act>);
    /// Sums the pairs of each token by their weights, scales, and adds the shared expert.
    fn combine(
        &mut self,
        pairs: Mat<Act>,
        routes: Routes,
        scale: f32,
        shared: Option<SharedExpert>,
        out: Mat<Act>,
    );
    /// `out[i] = x[rows[i]]`: the rows whose logits are wanted.
    fn gather(&mut self, x: Mat<Act>, rows: Slot<u32>, out: Mat<Act>);
    /// `out[i] = from[i]` where `places[i]` is not [`ABSENT`].
    fn take_rows(&mut self, from: Mat<Act>, places: Slot<u32>, out: Mat<Act>);
    /// The largest of each row in order, where they stand, and the sum of all weights.
    fn largest(&mut self, x: Mat<Act>, scales: Slot<f32>, out: Mat<f32>);
    /// `out[i] = slots[experts[i]]`, each counted if there is room for that.
    fn place(&mut self, experts: Mat<u32>, slots: Slot<u32>, counts: Slot<u32>, out: Slot<u32>);

    /// The router's logits, and [`Ops::route`] of them.
    fn router(
        &mut self,
        x: Mat<Act>,
        w: &Weight,
        bias: Option<&Weight>,
        how: &Routing,
        logits: Mat<Act>,
        out: Routes,
    ) {
        route::router(self, x, w, bias, how, logits, out);
    }
    /// [`Ops::add_rms_norm`], and [`Ops::router`] of its `x`.
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
        route::normed_router(self, add, residual, norm, eps, x, w, bias, how, logits, out);
    }
    /// [`Ops::combine`], what it makes joins the residual stream, and the norm that follows; what is
    /// left in `block` is nobody's.
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
        combine::and_norm(self, pairs, routes, scale, shared, block, residual, w, eps, out);
    }
    /// Queries, keys and values of grouped heads made ready for [`Ops::attend`]; see [`heads`].
    fn gqa_heads(
        &mut self,
        qkv: [Mat<Act>; 3],
        norms: Option<&[Weight; 2]>,
        eps: f32,
        turns: Turns,
        stores: [&KvStore; 2],
        seqs: &Seqs,
    ) {
        heads::gqa(self, qkv, norms, eps, turns, stores, seqs);
    }
    /// Rotated queries, latents and rotated keys made ready for [`Ops::mla_attend`]; see [`heads`].
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
        heads::mla(self, q_rope, kept, norm, eps, turns, stores, seqs);
    }
    /// Latent attention from queries to values; see [`mla_mix`].
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
        mla_mix::absorbed(self, q, absorb, stores, seqs, scale, scratch, out);
    }
}
