//! Output gate of attention (Qwen3-Next): `x = x · sigmoid(gate)`, in place, columns alike.

use crate::cpu::{Cpu, ROWS_WORTH_A_THREAD};
use crate::reference::Reference;
use krasis_core::{Act, Mat};
use krasis_cpu::Tiles;
use krasis_cpu::vector::times_sigmoid;

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
    let tiles = Tiles::new(all, x.stride as usize);
    let cols = x.first_col as usize..(x.first_col + x.cols) as usize;
    d.team.split(x.rows as usize, ROWS_WORTH_A_THREAD, |range| {
        for row in range {
            // SAFETY: the ranges of `split` are disjoint.
            let x = unsafe { tiles.tile(row, cols.clone()) };
            times_sigmoid(x, inputs.row(gate, row as u32));
        }
    });
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
