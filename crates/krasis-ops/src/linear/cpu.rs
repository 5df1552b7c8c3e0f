//! The product as tiles: a block of weight rows is decoded to f32 once, then meets every token row.

use crate::cpu::{Cpu, Rows, vector_of};
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::Tiles;
use krasis_cpu::vector::{dot, dot4};
use std::ops::Range;

/// Weight rows decoded at a time: 16 rows of 4,096 inputs are 256 KiB, which a core's L2 holds
/// while all token rows pass by.
const BLOCK: usize = 16;

/// Multiplications below which waking a thread costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 15;

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, w: &Weight, bias: Option<&Weight>, out: Mat<Act>) {
    assert_eq!((w.rows, w.cols), (out.cols, x.cols), "weight [outputs, inputs]");
    let (inputs, all) = d.arena.write(out.whole().floats());
    let rows = Rows::of(w, &inputs);
    let bias = bias.map(|bias| vector_of(bias, &inputs));
    let tiles = Tiles::new(all, out.cols as usize);
    let least = WORTH_A_THREAD.div_ceil(x.len().max(1));
    d.team.split(w.rows as usize, least, |outputs| {
        products(
            &rows,
            outputs,
            x.cols,
            x.rows as usize,
            |row| inputs.row(x, row as u32),
            |row, output, sum| {
                // SAFETY: the ranges of `split` are disjoint, and tiles die at once.
                let cell = unsafe { tiles.cell(row, output) };
                *cell = sum + bias.map_or(0.0, |bias| bias[output]);
            },
        );
    });
}

/// Hands `put(row, output, Σ x[row]·w[output])` for the given outputs of a weight and `count` rows.
pub(crate) fn products<'x>(
    w: &Rows,
    outputs: Range<usize>,
    cols: u32,
    count: usize,
    x: impl Fn(usize) -> &'x [f32],
    mut put: impl FnMut(usize, usize, f32),
) {
    let cols = cols as usize;
    let mut decoded = vec![0.0; BLOCK.min(outputs.len()) * cols];
    for first in outputs.clone().step_by(BLOCK) {
        let block = first..outputs.end.min(first + BLOCK);
        for (output, row) in block.clone().zip(decoded.chunks_exact_mut(cols)) {
            w.decode(output, row);
        }
        let mut row = 0;
        while row + 4 <= count {
            let four = [x(row), x(row + 1), x(row + 2), x(row + 3)];
            for (output, w) in block.clone().zip(decoded.chunks_exact(cols)) {
                let sums = dot4(w, four);
                (0..4).for_each(|i| put(row + i, output, sums[i]));
            }
            row += 4;
        }
        for row in row..count {
            for (output, w) in block.clone().zip(decoded.chunks_exact(cols)) {
                put(row, output, dot(w, x(row)));
            }
        }
    }
}
