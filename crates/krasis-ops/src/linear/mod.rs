//! Matrix product with a weight: `out[r, o] = Σ_i x[r, i] · w[o, i] + bias[o]`, sums in f32.
//!
//! `w` is `[out.cols, x.cols]` in any format. Bytes: the weight once per call. Flops: 2·r·o·i.
//! A device may round `x` to INT8 with a scale per 128 columns if `w` is in lines.

mod cpu;

use crate::reference::Reference;
pub(crate) use cpu::{LINE_BYTES_WORTH_A_THREAD, cpu, products};
use krasis_core::{Act, Mat, Weight};

pub(crate) fn reference(
    d: &mut Reference,
    x: Mat<Act>,
    w: &Weight,
    bias: Option<&Weight>,
    out: Mat<Act>,
) {
    assert_eq!((w.rows, w.cols), (out.cols, x.cols), "weight [outputs, inputs]");
    let bias = bias.map_or(vec![0.0; w.rows as usize], |bias| d.vector(bias));
    let w = d.weight(w);
    let product = |x: &Vec<f32>| -> Vec<f32> {
        w.iter().zip(&bias).map(|(w, bias)| dot(x, w) + bias).collect()
    };
    let rows: Vec<Vec<f32>> = d.rows(x).iter().map(product).collect();
    d.put(out, &rows);
}

/// Σ a·b, one after the other.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) mod cases {
    use crate::testing::{Case, FORMATS, Judge, tolerance};

    cases![products_in_every_format_and_shape];

    fn products_in_every_format_and_shape(on: &mut dyn Judge) {
        for format in FORMATS {
            for (rows, outputs, inputs) in [
                (1, 1, 1),
                (1, 17, 72),
                (3, 40, 129),
                (8, 9, 32),
                (9, 33, 200),
                (2, 72, 256),
                (70, 130, 136),
                // Rows at multiples of 16 bytes: more columns than anyone has on their way at a time.
                (20, 264, 1160),
                // More than a tile of anyone's.
                (150, 264, 136),
            ] {
                let mut case = Case::new(4);
                // No sum is much larger than of 256 inputs, as what rounding may cost is absolute.
                let most = (256.0 / inputs as f32).min(1.0);
                let x: Vec<f32> = (0..rows * inputs).map(|_| case.float() * most).collect();
                let x = case.act_of(rows, inputs, &x);
                let w = case.weight(outputs, inputs, format);
                let bias = case.vector(outputs);
                let out = case.blank(rows, outputs);
                case.agree(on, &[out], tolerance(format, 1e-4, 0.03), |ops| {
                    ops.linear(x, &w, Some(&bias), out)
                });
                case.agree(on, &[out], tolerance(format, 1e-4, 0.03), |ops| {
                    ops.linear(x, &w, None, out)
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Case, Cpus, FORMATS, tolerance};

    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        for format in FORMATS {
            let mut case = Case::new(5);
            let (x, w) = (case.act(6, 75), case.weight(20, 75, format));
            let (together, alone) = (case.blank(6, 20), case.blank(1, 20));
            case.agree(&mut Cpus, &[alone], tolerance(format, 1e-4, 0.03), |ops| {
                ops.linear(x.first(1), &w, None, alone)
            });
            let mut cpu = case.cpu();
            crate::Ops::linear(&mut cpu, x, &w, None, together);
            crate::Ops::linear(&mut cpu, x.first(1), &w, None, alone);
            let (together, alone) = (
                crate::Memory::download_act(&mut cpu, together.first(1)),
                crate::Memory::download_act(&mut cpu, alone),
            );
            assert_eq!(together, alone, "bit for bit in {format}");
        }
    }
}
