//! Residual addition and RMS norm (Zhang and Sennrich, 2019):
//! `residual += add; out = residual · rsqrt(mean(residual²) + eps) · w`.
//!
//! Without `add` the residual is only read. `out` must not overlap `residual`.

use crate::cpu::{Cpu, ROWS_WORTH_A_THREAD, vector_of};
use crate::reference::Reference;
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::Tiles;
use krasis_cpu::vector::dot;

/// `x · rsqrt(mean(x²) + eps) · w`, the norm of all models (those with `1 + w` load it so).
pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    x.iter().zip(w).map(|(x, w)| x / (mean + eps).sqrt() * w).collect()
}

/// [`rms_norm`] in place, vectorised.
pub(crate) fn rms_norm_in_place(x: &mut [f32], w: &[f32], eps: f32) {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    x.iter_mut().zip(w).for_each(|(x, w)| *x *= scale * w);
}

pub(crate) fn reference(
    d: &mut Reference,
    add: Option<Mat<Act>>,
    residual: Mat<Act>,
    w: &Weight,
    eps: f32,
    out: Mat<Act>,
) {
    let mut rows = d.rows(residual);
    if let Some(add) = add {
        for (row, add) in rows.iter_mut().zip(d.rows(add)) {
            row.iter_mut().zip(add).for_each(|(x, add)| *x += add);
        }
        d.put(residual, &rows);
    }
    let w = d.vector(w);
    let normed: Vec<Vec<f32>> = rows.iter().map(|row| rms_norm(row, &w, eps)).collect();
    d.put(out, &normed);
}

pub(crate) fn cpu(
    d: &mut Cpu,
    add: Option<Mat<Act>>,
    residual: Mat<Act>,
    w: &Weight,
    eps: f32,
    out: Mat<Act>,
) {
    let (inputs, rows, normed) = d.arena.write_two(residual.whole().floats(), out.whole().floats());
    let w = vector_of(w, &inputs);
    let cols = out.cols as usize;
    let (rows, normed) = (Tiles::new(rows, cols), Tiles::new(normed, cols));
    d.team.split(out.rows as usize, ROWS_WORTH_A_THREAD, |range| {
        for i in range {
            // SAFETY: the ranges of `split` are disjoint.
            let (row, normed) = unsafe { (rows.tile(i, 0..cols), normed.tile(i, 0..cols)) };
            if let Some(add) = add {
                row.iter_mut().zip(inputs.row(add, i as u32)).for_each(|(x, add)| *x += add);
            }
            normed.copy_from_slice(row);
            rms_norm_in_place(normed, w, eps);
        }
    });
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};

    cases![sum_and_norm, epsilon_is_inside_the_root];

    fn sum_and_norm(on: &mut dyn Judge) {
        for (rows, cols) in [(1, 1), (1, 33), (5, 72), (40, 24)] {
            let mut case = Case::new(2);
            let (add, residual, w) =
                (case.act(rows, cols), case.act(rows, cols), case.vector(cols));
            let out = case.blank(rows, cols);
            case.agree(on, &[out, residual], 1e-5, |ops| {
                ops.add_rms_norm(Some(add), residual, &w, 1e-3, out);
            });
            case.agree(on, &[out, residual], 1e-5, |ops| {
                ops.add_rms_norm(None, residual, &w, 1e-3, out)
            });
        }
    }

    fn epsilon_is_inside_the_root(on: &mut dyn Judge) {
        let mut case = Case::new(0);
        let residual = case.act_of(1, 2, &[3.0, 4.0]);
        let w = case.vector(2);
        let ones = case.floats_of(1, 2, &[1.0, 1.0]);
        let w = krasis_core::Weight { data: krasis_core::Slot::new(ones.at.start, 8), ..w };
        let out = case.blank(1, 2);
        // mean of squares 12.5, plus 3.5, is 16.
        let got =
            case.agree(on, &[out], 1e-6, |ops| ops.add_rms_norm(None, residual, &w, 3.5, out));
        assert_eq!(got[0], [0.75, 1.0]);
    }
}
