//! A product per head: `out[r, h, o] = Σ_i x[r, h, i] · w[h, o, i]`, `w` is `[heads·o, i]`.
//!
//! MLA's absorbed projections: a head's query into the latent space, and its latent mix out of it
//! (DeepSeek-V2, 2024, appendix on absorbing the up-projections).

use crate::cpu::{Cpu, Rows};
use crate::linear::{dot, products};
use crate::reference::Reference;
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::Tiles;

pub(crate) fn reference(d: &mut Reference, x: Mat<Act>, w: &Weight, heads: u32, out: Mat<Act>) {
    assert_eq!((w.rows, w.cols), (out.cols, x.cols / heads), "weight [heads · outputs, inputs]");
    let (heads, inputs) = (heads as usize, w.cols as usize);
    let w = d.weight(w);
    let per_head = w.len() / heads;
    let product = |x: &Vec<f32>| -> Vec<f32> {
        let head = |o: usize| o / per_head * inputs;
        w.iter().enumerate().map(|(o, w)| dot(&x[head(o)..head(o) + inputs], w)).collect()
    };
    let rows: Vec<Vec<f32>> = d.rows(x).iter().map(product).collect();
    d.put(out, &rows);
}

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, w: &Weight, heads: u32, out: Mat<Act>) {
    assert_eq!((w.rows, w.cols), (out.cols, x.cols / heads), "weight [heads · outputs, inputs]");
    let (inputs, all) = d.arena.write(out.whole().floats());
    let (rows, tiles) = (Rows::of(w, &inputs), Tiles::new(all, out.cols as usize));
    let (per_head, cols) = ((w.rows / heads) as usize, w.cols as usize);
    d.team.split(heads as usize, 1, |range| {
        for head in range {
            let part = |row: usize| &inputs.row(x, row as u32)[head * cols..][..cols];
            let outputs = head * per_head..(head + 1) * per_head;
            products(&rows, outputs, w.cols, x.rows as usize, part, |row, output, sum| {
                // SAFETY: heads are disjoint columns, and tiles die at once.
                *unsafe { tiles.cell(row, output) } = sum;
            });
        }
    });
}

pub(crate) mod cases {
    use crate::testing::{Case, FORMATS, Judge};

    cases![a_product_per_head];

    fn a_product_per_head(on: &mut dyn Judge) {
        for format in FORMATS {
            for (rows, inputs) in [(5, 34), (20, 34), (20, 40)] {
                let mut case = Case::new(6);
                let all = case.act(rows, 3 * inputs + 8);
                let x = all.cols(8, 3 * inputs);
                let w = case.weight(3 * 21, inputs, format);
                let out = case.blank(rows, 3 * 21);
                case.agree(on, &[out], 1e-4, |ops| ops.linear_heads(x, &w, 3, out));
            }
        }
    }
}
