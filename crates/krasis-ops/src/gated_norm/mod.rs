//! Output norm of the gated delta net, in place: each head of `dim` columns becomes
//! `rms_norm(x) · w · silu(gate)`, with the same `w [dim]` for all heads (Qwen3-Next).

use crate::add_rms_norm::{rms_norm, rms_norm_in_place};
use crate::cpu::{Cpu, vector_of};
use crate::reference::Reference;
use crate::silu_mul::silu;
use krasis_core::{Act, Mat, Weight};

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
    for row in 0..x.rows {
        let gates = inputs.row(gate, row).chunks_exact(dim);
        for (head, gate) in all[x.row_range(row)].chunks_exact_mut(dim).zip(gates) {
            rms_norm_in_place(head, w, eps);
            head.iter_mut().zip(gate).for_each(|(x, gate)| *x *= silu(*gate));
        }
    }
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
