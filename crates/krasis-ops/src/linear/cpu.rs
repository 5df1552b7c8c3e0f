//! The product as tiles. Floats: a block of weight rows meets every token row, several at a time, as it
//! lies or decoded to f32. Lines: activations become INT8 once, then the integer kernels do the rest.

use crate::cpu::{Cpu, Rows, matrix_of, vector_of};
use bytemuck::cast_slice;
use krasis_core::{Act, DType, Format, Lines, Mat, Weight};
use krasis_cpu::floats::{X_TOGETHER, dot_rows};
use krasis_cpu::lines::{PANEL_BLOCKS, multiply};
use krasis_cpu::{Isa, Tiles};
use std::ops::Range;

/// Weight rows that all token rows pass by at a time. 32 rows of 4,096 inputs are 256 KiB of BF16, which
/// a core's second cache holds meanwhile.
const BLOCK: usize = 32;

/// Outputs that stay on a thread: few vectors take whole tiles of rows.
const UNIT: usize = 16;

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
    let outputs = w.rows as usize;
    let least = WORTH_A_THREAD.div_ceil(UNIT * x.len().max(1));
    d.team.split(outputs.div_ceil(UNIT), least, |units| {
        let outputs = units.start * UNIT..outputs.min(units.end * UNIT);
        let row = |row| inputs.row(x, row as u32);
        products(d.isa, &rows, outputs, x.rows as usize, row, |row, first, sums| {
            // SAFETY: the ranges of `split` are disjoint, and tiles die at once.
            let tile = unsafe { tiles.tile(row, first..first + sums.len()) };
            tile.copy_from_slice(sums);
            if let Some(bias) = bias {
                tile.iter_mut().zip(&bias[first..]).for_each(|(out, bias)| *out += bias);
            }
        });
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

/// Vectors for which a row of integers is decoded again and again, in the first cache and without memory
/// of its own, rather than once: as many sequences may decode without an allocation.
const FEW: usize = X_TOGETHER;

/// Hands `put(row, output, Σ x[row]·w[output..])` for the given outputs of a weight and `count` rows: the
/// sums of up to [`BLOCK`] outputs at a time.
pub(crate) fn products<'x>(
    isa: Isa,
    w: &Rows,
    outputs: Range<usize>,
    count: usize,
    x: impl Fn(usize) -> &'x [f32],
    mut put: impl FnMut(usize, usize, &[f32]),
) {
    let (mut few, many): ([&[f32]; FEW], Vec<&[f32]>);
    let rows = if count <= FEW {
        few = [&[]; FEW];
        few.iter_mut().zip(0..count).for_each(|(row, i)| *row = x(i));
        &few[..count]
    } else {
        many = (0..count).map(x).collect();
        &many[..]
    };
    let cols = rows.first().map_or(0, |row| row.len());
    let mut decoded = vec![];
    if count > FEW && w.decode_first() {
        decoded.resize(BLOCK.min(outputs.len()) * cols, 0.0);
    }
    for first in outputs.clone().step_by(BLOCK) {
        let block = first..outputs.end.min(first + BLOCK);
        for (output, row) in block.clone().zip(decoded.chunks_exact_mut(cols.max(1))) {
            w.decode(output, row);
        }
        for (chunk, x) in rows.chunks(X_TOGETHER).enumerate() {
            let mut sums = [0.0; X_TOGETHER * BLOCK];
            let sums = &mut sums[..x.len() * block.len()];
            if decoded.is_empty() {
                w.dots(isa, block.clone(), x, sums);
            } else {
                let data = cast_slice(&decoded[..block.len() * cols]);
                dot_rows(isa, Format::Float(DType::F32), data, &[], x, sums);
            }
            for (row, sums) in (chunk * X_TOGETHER..).zip(sums.chunks_exact(block.len())) {
                put(row, first, sums);
            }
        }
    }
}
