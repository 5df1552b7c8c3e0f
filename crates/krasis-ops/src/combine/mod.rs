//! The end of an MoE layer: `out = scale · Σ_k weight[k] · pair[k] + shared · sigmoid(gate)`.
//!
//! The one place where the routing scale is applied and the shared expert added (once each).

use crate::Ops;
use crate::cpu::{Cpu, ROWS_WORTH_A_THREAD};
use crate::reference::Reference;
use crate::route::Routes;
use crate::sigmoid_gate::sigmoid;
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::Tiles;
use krasis_cpu::vector::add_scaled;

/// What every token's expert computed.
#[derive(Clone, Copy, Debug)]
pub struct SharedExpert {
    /// `[rows, hidden]`.
    pub out: Mat<Act>,
    /// `[rows, 1]` logits of its gate (Qwen3-Next); without one it is added as it is.
    pub gate: Option<Mat<Act>>,
}

impl SharedExpert {
    /// Those of the first `rows` tokens.
    pub fn first(self, rows: u32) -> SharedExpert {
        SharedExpert { out: self.out.first(rows), gate: self.gate.map(|gate| gate.first(rows)) }
    }
}

/// [`Ops::combine_rms_norm`] from its parts.
pub fn and_norm<O: Ops + ?Sized>(
    o: &mut O,
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
    o.combine(pairs, routes, scale, shared, block);
    o.add_rms_norm(Some(block), residual, w, eps, out);
}

pub(crate) fn reference(
    d: &mut Reference,
    pairs: Mat<Act>,
    routes: Routes,
    scale: f32,
    shared: Option<SharedExpert>,
    out: Mat<Act>,
) {
    let (pairs, top_k) = (d.rows(pairs), routes.weights.cols as usize);
    let weights = d.arena.slice(routes.weights.whole());
    let mut rows = vec![vec![0.0; out.cols as usize]; out.rows as usize];
    for (pair, (values, weight)) in pairs.iter().zip(weights).enumerate() {
        let row = &mut rows[pair / top_k];
        row.iter_mut().zip(values).for_each(|(sum, x)| *sum += scale * weight * x);
    }
    if let Some(shared) = shared {
        let gates = shared.gate.map(|gate| d.rows(gate));
        for (i, (row, values)) in rows.iter_mut().zip(d.rows(shared.out)).enumerate() {
            let share = gates.as_ref().map_or(1.0, |gates| sigmoid(gates[i][0]));
            row.iter_mut().zip(values).for_each(|(sum, x)| *sum += share * x);
        }
    }
    d.put(out, &rows);
}

pub(crate) fn cpu(
    d: &mut Cpu,
    pairs: Mat<Act>,
    routes: Routes,
    scale: f32,
    shared: Option<SharedExpert>,
    out: Mat<Act>,
) {
    let (inputs, all) = d.arena.write(out.whole().floats());
    let top_k = routes.weights.cols as usize;
    let weights = inputs.slice(routes.weights.whole());
    let cols = out.cols as usize;
    let tiles = Tiles::new(all, cols);
    d.team.split(out.rows as usize, ROWS_WORTH_A_THREAD, |range| {
        for row in range {
            // SAFETY: the ranges of `split` are disjoint.
            let sum = unsafe { tiles.tile(row, 0..cols) };
            sum.fill(0.0);
            for (k, weight) in weights[row * top_k..][..top_k].iter().enumerate() {
                add_scaled(sum, scale * weight, inputs.row(pairs, (row * top_k + k) as u32));
            }
            if let Some(shared) = shared {
                let gate = shared.gate.map_or(1.0, |gate| sigmoid(inputs.row(gate, row as u32)[0]));
                add_scaled(sum, gate, inputs.row(shared.out, row as u32));
            }
        }
    });
}

pub(crate) mod cases {
    use super::SharedExpert;
    use crate::Routes;
    use crate::testing::{Case, Judge};
    use krasis_core::Mat;

    cases![scale_is_for_routed_experts_alone, many_tokens, with_the_norm_behind_it];

    fn scale_is_for_routed_experts_alone(on: &mut dyn Judge) {
        let mut case = Case::new(18);
        let pairs = case.act_of(2, 1, &[1.0, 10.0]);
        let weights = case.floats_of(1, 2, &[0.5, 0.25]);
        let experts = Mat::new(case.u32s(&[0, 1]), 1, 2);
        let routes = Routes { experts, weights };
        let (shared, gate) = (case.act_of(1, 1, &[100.0]), case.act_of(1, 1, &[0.0]));
        let out = case.blank(1, 1);
        let mut result = |shared| {
            case.agree(on, &[out], 1e-4, |ops| ops.combine(pairs, routes, 2.0, shared, out))[0][0]
        };
        assert_eq!(result(None), 6.0);
        assert_eq!(result(Some(SharedExpert { out: shared, gate: None })), 106.0);
        assert_eq!(result(Some(SharedExpert { out: shared, gate: Some(gate) })), 56.0);
    }

    fn many_tokens(on: &mut dyn Judge) {
        let mut case = Case::new(19);
        let (pairs, weights) = (case.act(120, 33), case.random_floats(40, 3));
        let experts = Mat::new(case.u32s(&[0; 120]), 40, 3);
        let routes = Routes { experts, weights };
        let (shared, gate) = (case.act(40, 33), case.act(40, 1));
        let shared = Some(SharedExpert { out: shared, gate: Some(gate) });
        let out = case.blank(40, 33);
        case.agree(on, &[out], 1e-5, |ops| ops.combine(pairs, routes, 1.5, shared, out));
    }

    fn with_the_norm_behind_it(on: &mut dyn Judge) {
        for (cols, top_k, alone) in
            [(72, 3, false), (1096, 9, true), (2056, 8, true), (33, 2, false)]
        {
            let mut case = Case::new(20);
            let (pairs, weights) = (case.act(5 * top_k, cols), case.random_floats(5, top_k));
            let experts = Mat::new(case.u32s(&vec![0; 5 * top_k as usize]), 5, top_k);
            let routes = Routes { experts, weights };
            let (shared, gate) = (case.act(5, cols), case.act(5, 1));
            let shared = (!alone).then_some(SharedExpert { out: shared, gate: Some(gate) });
            let (residual, w) = (case.act(5, cols), case.vector(cols));
            let (block, out) = (case.blank(5, cols), case.blank(5, cols));
            case.agree(on, &[out, residual], 1e-5, |ops| {
                ops.combine_rms_norm(pairs, routes, 1.5, shared, block, residual, &w, 1e-3, out);
            });
        }
    }
}
