//! The product per head on the CPU. Lines: each head's part of the activations becomes INT8, and the
//! integer kernels do the rest. Floats: a sum is taken in the order of the inputs, one after the other;
//! so it is the same whether a panel of weights is turned for all rows or read as it lies for one.
//! Outputs may be some columns of wider rows.

use crate::cpu::{Cpu, Rows, matrix_of};
use crate::linear::LINE_BYTES_WORTH_A_THREAD;
use krasis_core::lines::ROWS;
use krasis_core::{Act, DType, Format, Lines, Mat, Weight};
use krasis_cpu::Tiles;
use krasis_cpu::floats::{
    BF16_INPUTS, Block, PAD, ROWS_TRANSPOSED, add_product, bf16_rows, transpose,
};
use krasis_cpu::lines::{PANEL_BLOCKS, multiply};
use std::ops::Range;

/// Token rows whose sums are taken together.
const TOGETHER: usize = 64;

/// Token rows up to which BF16 weights are read as they lie: turning a panel takes as long as about
/// as many rows.
const FEW: usize = 8;

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, w: &Weight, heads: u32, out: Mat<Act>) {
    assert_eq!((w.rows, w.cols), (out.cols, x.cols / heads), "weight [heads · outputs, inputs]");
    let whole = (w.rows / heads).is_multiple_of(PAD as u32) && w.cols.is_multiple_of(BF16_INPUTS);
    match w.format {
        Format::Lines(lines) => in_lines(d, x, lines, w, heads, out),
        Format::Float(DType::Bf16) if whole && x.rows as usize <= FEW => {
            as_they_lie(d, x, w, heads, out);
        }
        _ => in_panels(d, x, w, heads, out),
    }
}

/// Where some outputs stand in a row of what `out` is a view of.
fn columns(out: Mat<Act>, outputs: Range<usize>) -> Range<usize> {
    let first = out.first_col as usize;
    first + outputs.start..first + outputs.end
}

fn in_lines(d: &mut Cpu, x: Mat<Act>, lines: Lines, w: &Weight, heads: u32, out: Mat<Act>) {
    let (inputs, all) = d.arena.write(out.at.floats());
    let (team, isa, count) = (&d.team, d.isa, x.rows as usize);
    let (per_head, cols) = ((w.rows / heads) as usize, w.cols as usize);
    // The parts of all tokens that meet the same head are neighbours.
    d.tokens.fill(isa, team, lines, cols, heads as usize * count, |i| {
        &inputs.row(x, (i % count) as u32)[i / count * cols..]
    });
    let (w, tokens) = (matrix_of(lines, w, &inputs), &d.tokens);
    let tiles = Tiles::new(all, out.stride as usize);
    // Several tokens share what is unpacked for a panel.
    let unit = if count == 1 { 1 } else { PANEL_BLOCKS };
    // A head may begin and end inside a block, whose other rows are not its own.
    let shared = if per_head.is_multiple_of(ROWS) { 0 } else { 1 };
    let units = (per_head.div_ceil(ROWS) + shared).div_ceil(unit);
    let least = LINE_BYTES_WORTH_A_THREAD.div_ceil(unit * lines.block_bytes(cols));
    team.split(heads as usize * units, least, |range| {
        for head in range.start / units..range.end.div_ceil(units) {
            let own = head * per_head..(head + 1) * per_head;
            let (first, end) = (own.start / ROWS, own.end.div_ceil(ROWS));
            let at = |task: usize| end.min(first + task.saturating_sub(head * units) * unit);
            let blocks = at(range.start)..at(range.end.min((head + 1) * units));
            let parts = &tokens.all()[head * count..][..count];
            multiply(isa, &w, blocks, tokens, parts, |row, first, sums| {
                let outputs = own.start.max(first)..own.end.min(first + sums.len());
                // SAFETY: each task has its own outputs, and tiles die at once.
                let tile = unsafe { tiles.tile(row, columns(out, outputs.clone())) };
                tile.copy_from_slice(&sums[outputs.start - first..outputs.end - first]);
            });
        }
    });
}

/// Few rows and weights in BF16: memory is the limit.
fn as_they_lie(d: &mut Cpu, x: Mat<Act>, w: &Weight, heads: u32, out: Mat<Act>) {
    let (inputs, all) = d.arena.write(out.at.floats());
    let (isa, tiles) = (d.isa, Tiles::new(all, out.stride as usize));
    let (cols, row_bytes) = (w.cols as usize, w.format.row_bytes(w.cols) as usize);
    let (data, panels) = (inputs.slice(w.data), (w.rows / heads) as usize / PAD);
    let least = LINE_BYTES_WORTH_A_THREAD.div_ceil(PAD * row_bytes);
    d.team.split(heads as usize * panels, least, |range| {
        for panel in range {
            let (head, first) = (panel / panels, panel * PAD);
            let weights = &data[first * row_bytes..];
            for row in 0..x.rows {
                let x = &inputs.row(x, row)[head * cols..][..cols];
                // SAFETY: each panel has its own outputs, and tiles die at once.
                let tile = unsafe { tiles.tile(row as usize, columns(out, first..first + PAD)) };
                bf16_rows(isa, weights, x, tile.try_into().expect("a panel's outputs"));
            }
        }
    });
}

/// A task is up to [`PAD`] outputs of a head: their weights are decoded and turned once, then meet all
/// tokens.
fn in_panels(d: &mut Cpu, x: Mat<Act>, w: &Weight, heads: u32, out: Mat<Act>) {
    let (inputs, all) = d.arena.write(out.at.floats());
    let (weights, tiles) = (Rows::of(w, &inputs), Tiles::new(all, out.stride as usize));
    let (per_head, cols) = ((w.rows / heads) as usize, w.cols as usize);
    let panels = per_head.div_ceil(PAD);
    let (isa, count) = (d.isa, x.rows as usize);
    let sizes = [(PAD + ROWS_TRANSPOSED) * cols, TOGETHER.min(count) * PAD];
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
        for first in (0..count).step_by(TOGETHER) {
            let rows = first..count.min(first + TOGETHER);
            sums.fill(0.0);
            let at = x.row_range(first as u32).start + head * cols;
            let x = Block { data: &tokens[at..], stride: x.stride as usize };
            let panel = Block { data: panel, stride: PAD };
            add_product(isa, (rows.len(), cols, outputs.len()), x, panel, sums, PAD);
            for (row, sums) in rows.zip(sums.chunks_exact(PAD)) {
                // SAFETY: each task has its own columns, and tiles die at once.
                let tile = unsafe { tiles.tile(row, columns(out, outputs.clone())) };
                tile.copy_from_slice(&sums[..outputs.len()]);
            }
        }
    });
}
