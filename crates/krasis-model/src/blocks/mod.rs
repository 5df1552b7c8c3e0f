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

/// Token ids to the residual stream, and its norm for the first layer.
pub fn embed<O: Ops>(o: &mut O, model: &Model<Weight>, step: &Step, b: &Buffers) {
    o.embed(step.tokens, &model.embed, b.residual);
    o.add_rms_norm(None, b.residual, model.norm_before(0), model.eps, b.normed);
}

/// A layer from `b.normed` up to its routed experts: mixer, second norm, and either the dense MLP
/// (into `b.block`) or routing and the shared expert.
pub fn before_experts<O: Ops>(
    o: &mut O,
    layer: &Layer<Weight>,
    eps: f32,
    cache: &Cache,
    step: &Step,
    b: &Buffers,
) {
    match (&layer.mixer, cache) {
        (Mixer::Gqa(m), Cache::Gqa { k, v }) => gqa::gqa(o, m, eps, k, v, step, b),
        (Mixer::Mla(m), Cache::Mla { latent, rope }) => mla::mla(o, m, latent, rope, step, b),
        (Mixer::DeltaNet(m), Cache::DeltaNet { conv, state }) => {
            delta_net::delta_net(o, m, eps, conv, state, step, b)
        }
        _ => unreachable!("caches are planned from the same layers"),
    }
    match &layer.ffn {
        Ffn::Dense(m) => {
            o.add_rms_norm(Some(b.block), b.residual, &layer.ffn_norm, eps, b.normed);
            dense::dense(o, m, b.normed, b.block, b);
        }
        Ffn::Moe(m) => moe::route_and_share(o, m, &layer.ffn_norm, eps, b),
    }
}

/// The rest of a layer: what it has computed joins the residual stream, and `b.normed` is made ready
/// for the next layer, or after the last one for the output matrix.
pub fn after_experts<O: Ops>(o: &mut O, model: &Model<Weight>, index: usize, b: &Buffers) {
    let (norm, eps) = (model.norm_before(index + 1), model.eps);
    match &model.layers[index].ffn {
        Ffn::Dense(_) => o.add_rms_norm(Some(b.block), b.residual, norm, eps, b.normed),
        Ffn::Moe(m) => moe::combine(o, m, norm, eps, b),
    }
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
