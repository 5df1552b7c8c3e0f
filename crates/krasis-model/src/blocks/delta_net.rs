//! Gated delta net: linear attention whose past is one matrix per head.

use super::Step;
use crate::buffers::Buffers;
use crate::model::DeltaNet;
use krasis_core::Weight;
use krasis_ops::{Ops, StateStore};

/// `b.normed` to `b.block`.
pub fn delta_net<O: Ops>(
    o: &mut O,
    m: &DeltaNet<Weight>,
    eps: f32,
    conv: &StateStore,
    state: &StateStore,
    s: &Step,
    b: &Buffers,
) {
    let h = m.heads;
    let input = b.wide.mat(s.rows, m.input_width());
    let z = input.cols(h.channels(), h.width());
    let ba = input.cols(h.channels() + h.width(), 2 * h.value);
    let qkv = b.middle.mat(s.rows, h.channels());
    let mixed = b.mixed.mat(s.rows, h.width());

    o.linear(b.normed, &m.input, None, input);
    o.causal_conv(input.cols(0, h.channels()), &m.conv, conv, &s.seqs, qkv);
    o.delta_rule(qkv, ba, &h, &m.a_log, &m.dt_bias, state, &s.seqs, mixed);
    o.gated_norm(mixed, z, h.value_dim, &m.norm, eps);
    o.linear(mixed, &m.out, None, b.block);
}
