//! Mixture of experts on either side of the routed experts.

use super::dense::dense;
use crate::buffers::Buffers;
use crate::model::Moe;
use krasis_core::{Mat, Weight};
use krasis_ops::{Ops, Routes, SharedExpert};

/// Norms the residual stream with what the mixer adds to it, chooses experts for that and runs the shared
/// one.
pub fn route_and_share<O: Ops>(o: &mut O, m: &Moe<Weight>, norm: &Weight, eps: f32, b: &Buffers) {
    let logits = b.router.mat(b.normed.rows, m.experts.count);
    let bias = m.router_bias.as_ref();
    let (how, routes) = (&m.routing, routes(m, b));
    o.norm_router(b.block, b.residual, norm, eps, b.normed, &m.router, bias, how, logits, routes);
    if let Some(shared) = &m.shared {
        dense(o, &shared.mlp, b.normed, b.shared, b);
        if let Some(gate) = &shared.gate {
            o.linear(b.normed, gate, None, b.shared_gate);
        }
    }
}

/// Brings routed and shared experts together in the residual stream, and norms it for what follows.
pub fn combine<O: Ops>(o: &mut O, m: &Moe<Weight>, norm: &Weight, eps: f32, b: &Buffers) {
    let routes = routes(m, b);
    let pairs = b.pairs.mat(b.block.rows * m.routing.top_k, b.block.cols);
    let shared = m
        .shared
        .as_ref()
        .map(|shared| SharedExpert { out: b.shared, gate: shared.gate.map(|_| b.shared_gate) });
    o.combine_rms_norm(pairs, routes, m.scale, shared, b.block, b.residual, norm, eps, b.normed);
}

/// The routes of this layer: layers may differ in `top_k`.
pub fn routes<W>(m: &Moe<W>, b: &Buffers) -> Routes {
    let all = b.routes.expect("routes are planned for models with experts");
    let (rows, top_k) = (all.experts.rows, m.routing.top_k);
    let len = u64::from(rows) * u64::from(top_k);
    Routes {
        experts: Mat::new(krasis_core::Slot::new(all.experts.at.start, len), rows, top_k),
        weights: Mat::new(krasis_core::Slot::new(all.weights.at.start, len), rows, top_k),
    }
}
