//! Output norm of the gated delta net, in place: each head of `dim` columns becomes
//! `rms_norm(x) · w · silu(gate)`, with the same `w [dim]` for all heads (Qwen3-Next).

use crate::add_rms_norm::{rms_norm, rms_norm_in_place};
use crate::cpu::{Cpu, ROWS_WORTH_A_THREAD, vector_of};
use crate::reference::Reference;
use crate::silu_mul::silu;
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::Tiles;
use krasis_cpu::vector::times_silu;

pub(crate) fn reference(
    d: &mut Reference,
    x: Mat<Act>,
    gate: Mat<Act>,
    dim: u32,
    w: &Weight,
    eps: f32,
) {
    let w = d.vector(w);
    let mut rows = d.rows(x);
    for (row, gate) in rows.iter_mut().zip(d.rows(gate)) {
        for (head, gate) in row.chunks_exact_mut(dim as usize).zip(gate.chunks_exact(dim as usize))
        {
            let normed = rms_norm(head, &w, eps);
            (0..head.len()).for_each(|i| head[i] = normed[i] * silu(gate[i]));
        }
    }
    d.put(x, &rows);
}

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, gate: Mat<Act>, dim: u32, w: &Weight, eps: f32) {
    let (inputs, all) = d.arena.write(x.at.floats());
    let (w, dim) = (vector_of(w, &inputs), dim as usize);
    let tiles = Tiles::new(all, x.stride as usize);
    let cols = x.first_col as usize..(x.first_col + x.cols) as usize;
    d.team.split(x.rows as usize, ROWS_WORTH_A_THREAD, |range| {
        for row in range {
            // SAFETY: the ranges of `split` are disjoint.
            let heads = unsafe { tiles.tile(row, cols.clone()) };
            let gates = inputs.row(gate, row as u32).chunks_exact(dim);
            for (head, gate) in heads.chunks_exact_mut(dim).zip(gates) {
                rms_norm_in_place(head, w, eps);
                times_silu(head, gate);
            }
        }
    });
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};

    cases![heads_are_normed_alone];

    fn heads_are_normed_alone(on: &mut dyn Judge) {
        let mut case = Case::new(13);
        let (x, all, w) = (case.act(4, 36), case.act(4, 40), case.vector(12));
        let gate = all.cols(4, 36);
        case.agree(on, &[x], 1e-5, |ops| ops.gated_norm(x, gate, 12, &w, 1e-6));
    }
}
