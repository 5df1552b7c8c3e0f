//! The gated MLP of dense layers and shared experts.

use crate::buffers::Buffers;
use crate::model::Dense;
use krasis_core::{Act, Mat, Weight};
use krasis_ops::Ops;

/// `out = down · (silu(gate · x) · (up · x))`.
pub fn dense<O: Ops>(o: &mut O, m: &Dense<Weight>, x: Mat<Act>, out: Mat<Act>, b: &Buffers) {
    let gate_up = b.gate_up.mat(x.rows, 2 * m.inter);
    let inner = b.inner.mat(x.rows, m.inter);
    o.linear(x, &m.gate_up, None, gate_up);
    o.silu_mul(gate_up, inner);
    o.linear(inner, &m.down, None, out);
}
