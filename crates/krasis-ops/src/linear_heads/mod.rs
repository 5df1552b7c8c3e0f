//! A product per head: `out[r, h, o] = Σ_i x[r, h, i] · w[h, o, i]`, `w` is `[heads·o, i]`.
//!
//! MLA's absorbed projections: a head's query into the latent space, and its latent mix out of it
//! (DeepSeek-V2, 2024, appendix on absorbing the up-projections).

mod cpu;

use crate::linear::dot;
use crate::reference::Reference;
pub(crate) use cpu::cpu;
use krasis_core::{Act, Mat, Weight};

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

pub(crate) mod cases {
    use crate::testing::{Case, FORMATS, Judge, tolerance};

    cases![a_product_per_head, heads_of_whole_blocks];

    fn a_product_per_head(on: &mut dyn Judge) {
        for format in FORMATS {
            for (rows, inputs) in [(5, 34), (20, 34), (20, 40)] {
                let mut case = Case::new(6);
                let all = case.act(rows, 3 * inputs + 8);
                let x = all.cols(8, 3 * inputs);
                let w = case.weight(3 * 21, inputs, format);
                let out = case.blank(rows, 3 * 21);
                case.agree(on, &[out], tolerance(format, 1e-4, 0.03), |ops| {
                    ops.linear_heads(x, &w, 3, out);
                });
            }
        }
    }

    fn heads_of_whole_blocks(on: &mut dyn Judge) {
        for format in FORMATS {
            for (rows, heads, outputs, inputs) in
                [(1, 2, 64, 128), (3, 5, 32, 136), (20, 2, 128, 48), (1, 3, 72, 40)]
            {
                let mut case = Case::new(26);
                let x = case.act(rows, heads * inputs);
                let w = case.weight(heads * outputs, inputs, format);
                let out = case.blank(rows, heads * outputs + 7).cols(3, heads * outputs);
                case.agree(on, &[out], tolerance(format, 1e-4, 0.03), |ops| {
                    ops.linear_heads(x, &w, heads, out);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Case, FORMATS};
    use crate::{Memory, Ops};

    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        for format in FORMATS {
            for (outputs, inputs) in [(64, 128), (21, 34)] {
                let mut case = Case::new(27);
                let (x, w) = (case.act(30, 2 * inputs), case.weight(2 * outputs, inputs, format));
                let (together, few) = (case.blank(30, 2 * outputs), case.blank(5, 2 * outputs));
                let alone = case.blank(1, 2 * outputs);
                let mut cpu = case.cpu();
                cpu.linear_heads(x, &w, 2, together);
                cpu.linear_heads(x.first(5), &w, 2, few);
                cpu.linear_heads(x.first(1), &w, 2, alone);
                for (alone, rows) in [(few, 5), (alone, 1)] {
                    let wanted = cpu.download_act(together.first(rows));
                    assert_eq!(cpu.download_act(alone), wanted, "{rows} rows in {format}");
                }
            }
        }
    }
}
