//! A product per head: `out[r, h, o] = Σ_i x[r, h, i] · w[h, o, i]`, `w` is `[heads·o, i]`.
//!
//! MLA's absorbed projections: a head's query into the latent space, and its latent mix out of it
//! (DeepSeek-V2, 2024, appendix on absorbing the up-projections).

use crate::cpu::{Cpu, Rows};
use crate::linear::dot;
use crate::reference::Reference;
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::Tiles;
use krasis_cpu::floats::{Block, PAD, ROWS_TRANSPOSED, add_product, transpose};

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

/// Token rows whose sums are taken together.
const ROWS: usize = 64;

/// A task is up to [`PAD`] outputs of a head: their weights are decoded and transposed once, then meet
/// all tokens. A sum is taken in the order of the inputs, however many tokens there are.
pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, w: &Weight, heads: u32, out: Mat<Act>) {
    assert_eq!((w.rows, w.cols), (out.cols, x.cols / heads), "weight [heads · outputs, inputs]");
    let (inputs, all) = d.arena.write(out.whole().floats());
    let (weights, tiles) = (Rows::of(w, &inputs), Tiles::new(all, out.cols as usize));
    let (per_head, cols) = ((w.rows / heads) as usize, w.cols as usize);
    let panels = per_head.div_ceil(PAD);
    let (isa, count) = (d.isa, x.rows as usize);
    let sizes = [(PAD + ROWS_TRANSPOSED) * cols, ROWS.min(count) * PAD];
    let own = sizes.iter().sum::<usize>().next_multiple_of(16);
    let workers = Tiles::new(d.workers.take(own * d.team.threads()), own);
    let tokens = inputs.slice(x.at.floats());
    d.team.each(heads as usize * panels, |worker, task| {
        // SAFETY: a worker has one task at a time.
        let (panel, sums) = unsafe { workers.tile(worker, 0..own) }.split_at_mut(sizes[0]);
        let (panel, decoded) = panel.split_at_mut(PAD * cols);
        let (head, first) = (task / panels, task % panels * PAD);
        let outputs = head * per_head + first..head * per_head + per_head.min(first + PAD);
        for (eight, row) in outputs.clone().step_by(ROWS_TRANSPOSED).enumerate() {
            let mut places = decoded.chunks_exact_mut(cols);
            let rows = std::array::from_fn(|i| {
                let place = places.next().expect("eight rows fit");
                weights.decode((row + i).min(outputs.end - 1), place);
                &*place
            });
            transpose(isa, rows, &mut panel[eight * ROWS_TRANSPOSED..], PAD);
        }
        for first in (0..count).step_by(ROWS) {
            let rows = first..count.min(first + ROWS);
            sums.fill(0.0);
            let at = x.row_range(first as u32).start + head * cols;
            let x = Block { data: &tokens[at..], stride: x.stride as usize };
            let panel = Block { data: panel, stride: PAD };
            add_product(isa, (rows.len(), cols, outputs.len()), x, panel, sums, PAD);
            for (row, sums) in rows.zip(sums.chunks_exact(PAD)) {
                // SAFETY: each task has its own columns, and tiles die at once.
                let out = unsafe { tiles.tile(row, outputs.clone()) };
                out.copy_from_slice(&sums[..outputs.len()]);
            }
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
