//! Routed experts: for every (token, choice) pair
//! `out[pair] = down[e] · (silu(gate[e] · x) · (up[e] · x))`, unweighted; [`crate::combine`] weighs.
//!
//! `inner` is scratch of one row of `inter` columns per pair. Bytes: the active experts once.

mod cpu;

use crate::linear::dot;
use crate::reference::Reference;
use crate::route::Routes;
use crate::silu_mul::silu;
pub(crate) use cpu::cpu;
use krasis_core::{Act, Mat, Weight};

/// The routed experts of one layer, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Bank {
    /// `[experts · (gate: inter | up: inter), hidden]`.
    pub gate_up: Weight,
    /// `[experts · hidden, inter]`.
    pub down: Weight,
    /// Experts in the bank.
    pub experts: u32,
    /// Rows of an expert's gate.
    pub inter: u32,
}

pub(crate) fn reference(
    d: &mut Reference,
    x: Mat<Act>,
    routes: Routes,
    bank: &Bank,
    _inner: Mat<Act>,
    out: Mat<Act>,
) {
    let (inter, hidden) = (bank.inter, bank.down.rows / bank.experts);
    let experts = d.arena.slice(routes.experts.whole()).to_vec();
    let top_k = routes.experts.cols as usize;
    let mut rows = Vec::new();
    for (row, x) in d.rows(x).iter().enumerate() {
        for &expert in &experts[row * top_k..][..top_k] {
            let gate = d.weight(&bank.gate_up.rows(expert * 2 * inter, inter));
            let up = d.weight(&bank.gate_up.rows(expert * 2 * inter + inter, inter));
            let down = d.weight(&bank.down.rows(expert * hidden, hidden));
            let inner: Vec<f32> =
                gate.iter().zip(&up).map(|(gate, up)| silu(dot(gate, x)) * dot(up, x)).collect();
            rows.push(down.iter().map(|down| dot(down, &inner)).collect());
        }
    }
    d.put(out, &rows);
}

#[cfg(test)]
mod tests {
    use super::Bank;
    use crate::Routes;
    use crate::testing::{Case, FORMATS};
    use krasis_core::Mat;

    #[test]
    fn pairs_in_every_format() {
        for format in FORMATS {
            for rows in [1, 7] {
                let (experts, inter, hidden, top_k) = (5, 40, 72, 3);
                let mut case = Case::new(17);
                let x = case.act(rows, hidden);
                let bank = Bank {
                    gate_up: case.weight(experts * 2 * inter, hidden, format),
                    down: case.weight(experts * hidden, inter, format),
                    experts,
                    inter,
                };
                let chosen: Vec<u32> =
                    (0..rows * top_k).map(|i| (i * i + i / 3) % experts).collect();
                let experts = Mat::new(case.u32s(&chosen), rows, top_k);
                let weights = case.act(rows, top_k);
                let weights = Mat::new(weights.at.floats(), rows, top_k);
                let routes = Routes { experts, weights };
                let (inner, out) =
                    (case.blank(rows * top_k, inter), case.blank(rows * top_k, hidden));
                case.agree(&[out], 3e-4, |ops| ops.experts(x, routes, &bank, inner, out));
            }
        }
    }
}
