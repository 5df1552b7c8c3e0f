//! RMS norm of each head, in place: every `dim` columns of `x` are normed with the same `w [dim]`.
//! With `dim` equal to the columns of `x` it is a norm of whole rows (MLA's latents).

use crate::add_rms_norm::{rms_norm, rms_norm_in_place};
use crate::cpu::{Cpu, ROWS_WORTH_A_THREAD, vector_of};
use crate::reference::Reference;
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::Tiles;

pub(crate) fn reference(d: &mut Reference, x: Mat<Act>, dim: u32, w: &Weight, eps: f32) {
    let w = d.vector(w);
    let normed = |row: Vec<f32>| -> Vec<f32> {
        row.chunks_exact(dim as usize).flat_map(|head| rms_norm(head, &w, eps)).collect()
    };
    let rows: Vec<Vec<f32>> = d.rows(x).into_iter().map(normed).collect();
    d.put(x, &rows);
}

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, dim: u32, w: &Weight, eps: f32) {
    let (inputs, all) = d.arena.write(x.at.floats());
    let w = vector_of(w, &inputs);
    let tiles = Tiles::new(all, x.stride as usize);
    let cols = x.first_col as usize..(x.first_col + x.cols) as usize;
    d.team.split(x.rows as usize, ROWS_WORTH_A_THREAD, |range| {
        for row in range {
            // SAFETY: the ranges of `split` are disjoint.
            let row = unsafe { tiles.tile(row, cols.clone()) };
            for head in row.chunks_exact_mut(dim as usize) {
                rms_norm_in_place(head, w, eps);
            }
        }
    });
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};

    cases![heads_in_some_columns];

    fn heads_in_some_columns(on: &mut dyn Judge) {
        let mut case = Case::new(3);
        let all = case.act(4, 60);
        let w = case.vector(12);
        let heads = all.cols(12, 36);
        case.agree(on, &[all], 1e-5, |ops| ops.head_norm(heads, 12, &w, 1e-6));
    }
}
