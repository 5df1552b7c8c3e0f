//! Experts in line layout on the CPU. The blocks of all active experts are one list ([`Runs`]), or one
//! for each NUMA node, cut into parts of equal cost, so that each thread walks few long stretches of
//! memory.

mod few;
mod runs;

pub(crate) use few::Halves;
pub(crate) use runs::Runs;
pub(super) use few::{few, few_in_lines};

use super::Bank;
use super::groups::{Active, Groups};
use crate::cpu::{Cpu, matrix_of};
use krasis_core::lines::ROWS;
use krasis_core::{Act, Lines, Mat};
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

impl<'a> Job<'a> {
    /// `inner = silu(gate · x) · (up · x)` for some blocks of an expert, in rows of `inner` by pair.
    fn gate_up_blocks(
        &self,
        lines: Lines,
        tokens: &Tokens,
        active: &Active,
        blocks: Range<usize>,
        inner: &Tiles<f32>,
    ) {
        let (isa, bank) = (self.isa, self.bank);
        let tile = |i: usize, row: usize, sums: usize| {
            // The last block may hold rows of padding.
            let cols = row..(bank.inter as usize).min(row + sums);
            // SAFETY: each block of an expert is multiplied once, and tiles die at once.
            unsafe { inner.tile(active.pairs[i] as usize, cols) }
        };
        let gate = matrix_of(lines, &bank.gate(active.expert), &self.inputs);
        multiply(isa, &gate, blocks.clone(), tokens, active.tokens, |i, row, sums| {
            silu(sums, tile(i, row, sums.len()));
        });
        let up = matrix_of(lines, &bank.up(active.expert), &self.inputs);
        multiply(isa, &up, blocks, tokens, active.tokens, |i, row, sums| {
            tile(i, row, sums.len()).iter_mut().zip(sums).for_each(|(out, sum)| *out *= sum);
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

    /// All blocks of gate and up. They are computed together, and go by where gate lies: up of the same
    /// rows is a part of a page further, so that a sixth of both is read from another node at most. There
    /// is room for so many active experts then.
    fn gate_up_runs(&self, lines: Lines, experts: usize, runs: &mut Runs) {
        let Bank { gate_up, inter, .. } = self.bank;
        let bytes = lines.block_bytes(gate_up.cols as usize);
        let count = (*inter as usize).div_ceil(ROWS);
        let blocks = Blocks { count, bytes, read: 2 * bytes };
        let first = |expert| self.bank.gate(expert).data.start as usize;
        runs.reserve(experts, self.inputs.homes(), blocks);
        runs.fill(self.groups, self.inputs.homes(), blocks, first);
    }

    /// All blocks of down.
    fn down_runs(&self, lines: Lines, experts: usize, runs: &mut Runs) {
        let Bank { gate_up, inter, .. } = self.bank;
        let bytes = lines.block_bytes(*inter as usize);
        let count = (gate_up.cols as usize).div_ceil(ROWS);
        let blocks = Blocks { count, bytes, read: bytes };
        let first = |expert| self.bank.down(expert).data.start as usize;
        runs.reserve(experts, self.inputs.homes(), blocks);
        runs.fill(self.groups, self.inputs.homes(), blocks, first);
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
    job.gate_up_runs(lines, groups.len(), runs);
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
    job.down_runs(lines, groups.len(), runs);
    runs.split(&job, |active, blocks| {
        job.down_blocks(lines, (tokens, active.pairs), active, blocks, |pair, first, sums| {
            // SAFETY: each block of an expert is multiplied once, and tiles die at once.
            unsafe { tiles.tile(pair, first..first + sums.len()) }.copy_from_slice(sums);
        });
    });
}
