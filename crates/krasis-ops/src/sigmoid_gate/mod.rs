//! Output gate of attention (Qwen3-Next): `x = x · sigmoid(gate)`, in place, columns alike.

use crate::cpu::Cpu;
use crate::reference::Reference;
use krasis_core::{Act, Mat};

/// 1 / (1 + e⁻ˣ).
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

pub(crate) fn reference(d: &mut Reference, x: Mat<Act>, gate: Mat<Act>) {
    let mut rows = d.rows(x);
    for (row, gate) in rows.iter_mut().zip(d.rows(gate)) {
        row.iter_mut().zip(gate).for_each(|(x, gate)| *x *= sigmoid(gate));
    }
    d.put(x, &rows);
}

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, gate: Mat<Act>) {
    assert_eq!(x.cols, gate.cols, "a gate per column");
    let (inputs, all) = d.arena.write(x.at.floats());
    for row in 0..x.rows {
        let gate = inputs.row(gate, row);
        all[x.row_range(row)].iter_mut().zip(gate).for_each(|(x, gate)| *x *= sigmoid(*gate));
    }
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};

    cases![a_gate_per_column];

    fn a_gate_per_column(on: &mut dyn Judge) {
        let mut case = Case::new(11);
        let (x, all) = (case.act(3, 14), case.act(3, 30));
        let gate = all.cols(16, 14);
        case.agree(on, &[x], 1e-6, |ops| ops.sigmoid_gate(x, gate));
    }
}
