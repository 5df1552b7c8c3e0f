//! The forward pass, written once for every device.
//!
//! A layer is two functions because an MoE layer has one point where the host decides: between
//! routing and combining it is the engine that runs the routed experts, wherever they live.

mod delta_net;
mod dense;
mod gqa;
mod mla;
pub mod moe;

use crate::buffers::Buffers;
use crate::cache::Cache;
use crate::model::{Ffn, Layer, Mixer, Model};
use krasis_core::{Act, Mat, Slot, Weight};
use krasis_ops::{Ops, Seqs};

/// What changes from one forward pass to the next, in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Tokens in this pass.
    pub rows: u32,
    /// `[rows]` their ids.
    pub tokens: Slot<u32>,
    /// Whose they are, and where their past is.
    pub seqs: Seqs,
}

/// Token ids to the residual stream.
pub fn embed<O: Ops>(o: &mut O, model: &Model<Weight>, step: &Step, b: &Buffers) {
    o.embed(step.tokens, &model.embed, b.residual);
}

/// A layer up to its routed experts: mixer, second norm, and either the dense MLP (into
/// `b.block`) or routing and the shared expert. `add` is what the layer before has left.
pub fn before_experts<O: Ops>(
    o: &mut O,
    layer: &Layer<Weight>,
    eps: f32,
    cache: &Cache,
    step: &Step,
    add: Option<Mat<Act>>,
    b: &Buffers,
) {
    o.add_rms_norm(add, b.residual, &layer.mixer_norm, eps, b.normed);
    match (&layer.mixer, cache) {
        (Mixer::Gqa(m), Cache::Gqa { k, v }) => gqa::gqa(o, m, eps, k, v, step, b),
        (Mixer::Mla(m), Cache::Mla { latent, rope }) => mla::mla(o, m, latent, rope, step, b),
        (Mixer::DeltaNet(m), Cache::DeltaNet { conv, state }) => {
            delta_net::delta_net(o, m, eps, conv, state, step, b)
        }
        _ => unreachable!("caches are planned from the same layers"),
    }
    o.add_rms_norm(Some(b.block), b.residual, &layer.ffn_norm, eps, b.normed);
    match &layer.ffn {
        Ffn::Dense(m) => dense::dense(o, m, b.normed, b.block, b),
        Ffn::Moe(m) => moe::route_and_share(o, m, b),
    }
}

/// The rest of a layer: what the routed experts computed goes into `b.block`.
pub fn after_experts<O: Ops>(o: &mut O, layer: &Layer<Weight>, b: &Buffers) {
    if let Ffn::Moe(m) = &layer.ffn {
        moe::combine(o, m, b);
    }
}

/// The end of the stack: the last layer's part joins the residual stream, and `b.normed` holds
/// every row normed for the output matrix.
pub fn finish<O: Ops>(o: &mut O, model: &Model<Weight>, b: &Buffers) {
    o.add_rms_norm(Some(b.block), b.residual, &model.norm, model.eps, b.normed);
}

/// Logits of some rows: `chosen [n]` of `b.normed` are gathered into `rows [n, hidden]` and
/// multiplied with the output matrix.
pub fn logits<O: Ops>(
    o: &mut O,
    model: &Model<Weight>,
    b: &Buffers,
    chosen: Slot<u32>,
    rows: Mat<Act>,
    out: Mat<Act>,
) {
    o.gather(b.normed, chosen, rows);
    o.linear(rows, &model.lm_head, None, out);
}
