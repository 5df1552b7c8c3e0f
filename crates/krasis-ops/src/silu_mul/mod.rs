//! Gated activation (Shazeer, GLU variants, 2020): `out = silu(gate) · up`, `gate_up` is
//! `[rows, gate | up]`, `silu(x) = x · sigmoid(x)`.

use crate::cpu::{Cpu, ROWS_WORTH_A_THREAD};
use crate::reference::Reference;
use crate::sigmoid_gate::sigmoid;
use krasis_core::{Act, Mat};
use krasis_cpu::Tiles;
use krasis_cpu::vector::times_silu;

/// x · sigmoid(x).
pub(crate) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

pub(crate) fn reference(d: &mut Reference, gate_up: Mat<Act>, out: Mat<Act>) {
    let half = out.cols as usize;
    let activate = |row: &Vec<f32>| (0..half).map(|i| silu(row[i]) * row[half + i]).collect();
    let rows: Vec<Vec<f32>> = d.rows(gate_up).iter().map(activate).collect();
    d.put(out, &rows);
}

pub(crate) fn cpu(d: &mut Cpu, gate_up: Mat<Act>, out: Mat<Act>) {
    let half = out.cols as usize;
    let (inputs, all) = d.arena.write(out.whole().floats());
    let tiles = Tiles::new(all, half);
    d.team.split(out.rows as usize, ROWS_WORTH_A_THREAD, |range| {
        for row in range {
            // SAFETY: the ranges of `split` are disjoint.
            let out = unsafe { tiles.tile(row, 0..half) };
            let (gate, up) = inputs.row(gate_up, row as u32).split_at(half);
            out.copy_from_slice(up);
            times_silu(out, gate);
        }
    });
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};

    cases![gate_comes_first];

    fn gate_comes_first(on: &mut dyn Judge) {
        let mut case = Case::new(12);
        let (x, out) = (case.act(4, 26), case.blank(4, 13));
        case.agree(on, &[out], 1e-6, |ops| ops.silu_mul(x, out));
        let (x, out) = (case.act_of(1, 2, &[100.0, 3.0]), case.blank(1, 1));
        assert_eq!(case.agree(on, &[out], 1e-3, |ops| ops.silu_mul(x, out))[0], [300.0]);
    }
}
