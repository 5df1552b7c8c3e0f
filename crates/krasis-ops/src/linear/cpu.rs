//! The product as tiles. Floats: a block of weight rows is decoded to f32 once, then meets every
//! token row. Lines: activations become INT8 once, then the integer kernels do the rest.

use crate::cpu::{Cpu, Rows, matrix_of, vector_of};
use krasis_core::{Act, Format, Lines, Mat, Weight};
use krasis_cpu::Tiles;
use krasis_cpu::lines::{PANEL_BLOCKS, multiply};
use krasis_cpu::vector::{dot, dot4};
use std::ops::Range;

/// Weight rows decoded at a time: 16 rows of 4,096 inputs are 256 KiB, which a core's L2 holds
/// while all token rows pass by.
const BLOCK: usize = 16;

/// Bytes of lines below which waking a thread costs more than it saves.
pub(crate) const LINE_BYTES_WORTH_A_THREAD: usize = 1 << 16;

/// Multiplications below which waking a thread costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 15;

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, w: &Weight, bias: Option<&Weight>, out: Mat<Act>) {
    assert_eq!((w.rows, w.cols), (out.cols, x.cols), "weight [outputs, inputs]");
    if let Format::Lines(lines) = w.format {
        return in_lines(d, x, lines, w, bias, out);
    }
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

fn in_lines(
    d: &mut Cpu,
    x: Mat<Act>,
    lines: Lines,
    w: &Weight,
    bias: Option<&Weight>,
    out: Mat<Act>,
) {
    let (inputs, all) = d.arena.write(out.whole().floats());
    let (team, isa, outputs) = (&d.team, d.isa, out.cols as usize);
    d.tokens.fill(isa, team, lines, x.cols as usize, x.rows as usize, |i| inputs.row(x, i as u32));
    let (w, tokens) = (matrix_of(lines, w, &inputs), &d.tokens);
    let bias = bias.map(|bias| vector_of(bias, &inputs));
    let tiles = Tiles::new(all, outputs);
    // Several tokens share what is unpacked for a panel.
    let unit = if x.rows == 1 { 1 } else { PANEL_BLOCKS };
    let least = LINE_BYTES_WORTH_A_THREAD.div_ceil(unit * lines.block_bytes(w.cols()));
    team.split(w.blocks().div_ceil(unit), least, |units| {
        let blocks = units.start * unit..w.blocks().min(units.end * unit);
        multiply(isa, &w, blocks, tokens, tokens.all(), |row, first, sums| {
            // The last block may hold rows of padding.
            let sums = &sums[..sums.len().min(outputs - first)];
            // SAFETY: the ranges of `split` are disjoint, and tiles die at once.
            let tile = unsafe { tiles.tile(row, first..first + sums.len()) };
            tile.copy_from_slice(sums);
            if let Some(bias) = bias {
                tile.iter_mut().zip(&bias[first..]).for_each(|(out, bias)| *out += bias);
            }
        });
    });
}

/// Rows for which a weight row is decoded again and again, in the first cache and without memory of
/// its own, rather than once: as many sequences may decode without an allocation.
const FEW: usize = 8;

/// Hands `put(row, output, Σ x[row]·w[output])` for the given outputs of a weight and `count` rows.
pub(crate) fn products<'x>(
    w: &Rows,
    outputs: Range<usize>,
    cols: u32,
    count: usize,
    x: impl Fn(usize) -> &'x [f32],
    mut put: impl FnMut(usize, usize, f32),
) {
    if count <= FEW {
        let mut rows = [&[][..]; FEW];
        (0..count).for_each(|i| rows[i] = x(i));
        return w.dots(outputs, &rows[..count], put);
    }
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
