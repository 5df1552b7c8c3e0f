//! Experts in line layout on the CPU. The blocks of all active experts are one list ([`Runs`]), or one
//! for each NUMA node, cut into parts of equal cost, so that each thread walks few long stretches of
//! memory.

mod few;
mod runs;

pub(crate) use few::Halves;
pub(super) use few::{few, few_in_lines};
pub(crate) use runs::Runs;

use super::Bank;
use super::groups::{Active, Groups};
use crate::cpu::{Cpu, matrix_of};
use krasis_core::lines::ROWS;
use krasis_core::{Act, Lines, Mat, Weight};
use krasis_cpu::lines::{Tokens, multiply};
use krasis_cpu::vector::silu;
use krasis_cpu::{Inputs, Isa, Team, Tiles};
use runs::Blocks;
use std::ops::Range;

/// Everything that both products of a layer's pairs need.
pub(super) struct Job<'a> {
    /// The threads.
    pub team: &'a Team,
    /// Their instructions.
    pub isa: Isa,
    /// Weights, and activations that nobody writes.
    pub inputs: Inputs<'a>,
    /// Who chose which expert.
    pub groups: &'a Groups,
    /// The weights.
    pub bank: &'a Bank,
}

/// A matrix of an expert, or two that are computed together.
#[derive(Clone, Copy)]
enum Part {
    GateUp,
    Gate,
    Up,
    Down,
}

impl Job<'_> {
    /// `inner = silu(gate · x) · (up · x)` for some blocks of an expert, in rows of `inner` by pair.
    fn gate_up_blocks(
        &self,
        lines: Lines,
        tokens: &Tokens,
        active: &Active,
        blocks: Range<usize>,
        inner: &Tiles<f32>,
    ) {
        let [gate, up] = [self.bank.gate(active.expert), self.bank.up(active.expert)];
        self.blocks_of(&gate, (lines, tokens), active, blocks.clone(), inner, silu);
        self.blocks_of(&up, (lines, tokens), active, blocks, inner, |sums, out| {
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out *= sum);
        });
    }

    /// `put(weight · x, rows of to)` for some blocks of an expert's gate or up.
    fn blocks_of(
        &self,
        weight: &Weight,
        (lines, tokens): (Lines, &Tokens),
        active: &Active,
        blocks: Range<usize>,
        to: &Tiles<f32>,
        put: impl Fn(&[f32], &mut [f32]),
    ) {
        let weight = matrix_of(lines, weight, &self.inputs);
        multiply(self.isa, &weight, blocks, tokens, active.tokens, |i, row, sums| {
            // The last block may hold rows of padding.
            let cols = row..(self.bank.inter as usize).min(row + sums.len());
            // SAFETY: each block of a matrix is multiplied once, and tiles die at once.
            put(sums, unsafe { to.tile(active.pairs[i] as usize, cols) });
        });
    }

    /// `down · inner` for some blocks of an expert, handed out as `put(pair, first output, sums)`; `rows`
    /// are those of `inner` in `tokens`.
    fn down_blocks(
        &self,
        lines: Lines,
        (tokens, rows): (&Tokens, &[u32]),
        active: &Active,
        blocks: Range<usize>,
        put: impl Fn(usize, usize, &[f32]),
    ) {
        let hidden = self.bank.gate_up.cols as usize;
        let down = matrix_of(lines, &self.bank.down(active.expert), &self.inputs);
        multiply(self.isa, &down, blocks, tokens, rows, |i, row, sums| {
            put(active.pairs[i] as usize, row, &sums[..sums.len().min(hidden - row)]);
        });
    }

    /// Lists all blocks of a part, with room for so many active experts. What is computed together goes by
    /// where gate lies.
    fn list(&self, lines: Lines, part: Part, experts: usize, runs: &mut Runs) {
        let Bank { gate_up, inter, .. } = self.bank;
        let (cols, rows) = match part {
            Part::Down => (*inter, gate_up.cols),
            Part::GateUp | Part::Gate | Part::Up => (gate_up.cols, *inter),
        };
        let bytes = lines.block_bytes(cols as usize);
        let read = if matches!(part, Part::GateUp) { 2 * bytes } else { bytes };
        let blocks = Blocks { count: (rows as usize).div_ceil(ROWS), bytes, read };
        let homes = self.inputs.homes();
        runs.reserve(experts, homes, blocks);
        runs.fill(self.groups, homes, blocks, |expert| {
            let weight = match part {
                Part::GateUp | Part::Gate => self.bank.gate(expert),
                Part::Up => self.bank.up(expert),
                Part::Down => self.bank.down(expert),
            };
            weight.data.start as usize
        });
    }
}

/// `inner = silu(gate · x) · (up · x)` for every pair.
pub(super) fn gate_up(
    d: &mut Cpu,
    lines: Lines,
    x: Mat<Act>,
    (groups, runs): (&Groups, &mut Runs),
    bank: &Bank,
    inner: Mat<Act>,
) {
    let (inputs, all) = d.arena.write(inner.whole().floats());
    let (team, isa) = (&d.team, d.isa);
    d.tokens.fill(isa, team, lines, x.cols as usize, x.rows as usize, |i| inputs.row(x, i as u32));
    let (tokens, tiles) = (&d.tokens, Tiles::new(all, bank.inter as usize));
    let job = Job { team, isa, inputs, groups, bank };
    job.list(lines, Part::GateUp, groups.len(), runs);
    runs.split(&job, |active, blocks| {
        job.gate_up_blocks(lines, tokens, active, blocks, &tiles);
    });
}

/// `out = down · inner` for every pair.
pub(super) fn down(
    d: &mut Cpu,
    lines: Lines,
    inner: Mat<Act>,
    (groups, runs): (&Groups, &mut Runs),
    bank: &Bank,
    out: Mat<Act>,
) {
    let (inputs, all) = d.arena.write(out.whole().floats());
    let (team, isa) = (&d.team, d.isa);
    let cols = inner.cols as usize;
    d.tokens.fill(isa, team, lines, cols, inner.rows as usize, |i| inputs.row(inner, i as u32));
    let (tokens, tiles) = (&d.tokens, Tiles::new(all, out.cols as usize));
    let job = Job { team, isa, inputs, groups, bank };
    job.list(lines, Part::Down, groups.len(), runs);
    runs.split(&job, |active, blocks| {
        job.down_blocks(lines, (tokens, active.pairs), active, blocks, |pair, first, sums| {
            // SAFETY: each block of an expert is multiplied once, and tiles die at once.
            unsafe { tiles.tile(pair, first..first + sums.len()) }.copy_from_slice(sums);
        });
    });
}
