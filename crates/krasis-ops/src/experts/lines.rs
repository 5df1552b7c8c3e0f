//! Experts in line layout on the CPU. The blocks of all active experts are one list, cut into parts
//! of equal cost, so that each thread walks few long stretches of memory.

mod few;

pub(crate) use few::Halves;
pub(super) use few::{few, few_in_lines};

use super::Bank;
use super::groups::{Active, Groups};
use crate::cpu::{Cpu, matrix_of};
use crate::linear::LINE_BYTES_WORTH_A_THREAD;
use krasis_core::lines::ROWS;
use krasis_core::{Act, Lines, Mat};
use krasis_cpu::lines::{PANEL_BLOCKS, Tokens, multiply};
use krasis_cpu::vector::silu;
use krasis_cpu::{Inputs, Isa, Team, Tiles};
use std::ops::Range;

/// Tokens whose products take as long as reading the weights: a block of 4 KiB takes 760 cycles at
/// 15 GB/s, and a token's products with it 64.
const TOKENS_PER_READ: usize = 12;

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

    /// All blocks of gate and up.
    fn gate_up_list(&self, lines: Lines) -> List<'a> {
        let Bank { gate_up, inter, .. } = self.bank;
        let block_bytes = 2 * lines.block_bytes(gate_up.cols as usize);
        List { groups: self.groups, blocks: (*inter as usize).div_ceil(ROWS), block_bytes }
    }

    /// All blocks of down.
    fn down_list(&self, lines: Lines) -> List<'a> {
        let Bank { gate_up, inter, .. } = self.bank;
        let block_bytes = lines.block_bytes(*inter as usize);
        List { groups: self.groups, blocks: (gate_up.cols as usize).div_ceil(ROWS), block_bytes }
    }
}

/// `inner = silu(gate · x) · (up · x)` for every pair.
pub(super) fn gate_up(
    d: &mut Cpu,
    lines: Lines,
    x: Mat<Act>,
    groups: &Groups,
    bank: &Bank,
    inner: Mat<Act>,
) {
    let (inputs, all) = d.arena.write(inner.whole().floats());
    let (team, isa) = (&d.team, d.isa);
    d.tokens.fill(isa, team, lines, x.cols as usize, x.rows as usize, |i| inputs.row(x, i as u32));
    let (tokens, tiles) = (&d.tokens, Tiles::new(all, bank.inter as usize));
    let job = Job { team, isa, inputs, groups, bank };
    job.gate_up_list(lines).split(team, |active, blocks| {
        job.gate_up_blocks(lines, tokens, active, blocks, &tiles);
    });
}

/// `out = down · inner` for every pair.
pub(super) fn down(
    d: &mut Cpu,
    lines: Lines,
    inner: Mat<Act>,
    groups: &Groups,
    bank: &Bank,
    out: Mat<Act>,
) {
    let (inputs, all) = d.arena.write(out.whole().floats());
    let (team, isa) = (&d.team, d.isa);
    let cols = inner.cols as usize;
    d.tokens.fill(isa, team, lines, cols, inner.rows as usize, |i| inputs.row(inner, i as u32));
    let (tokens, tiles) = (&d.tokens, Tiles::new(all, out.cols as usize));
    let job = Job { team, isa, inputs, groups, bank };
    job.down_list(lines).split(team, |active, blocks| {
        job.down_blocks(lines, (tokens, active.pairs), active, blocks, |pair, first, sums| {
            // SAFETY: each block of an expert is multiplied once, and tiles die at once.
            unsafe { tiles.tile(pair, first..first + sums.len()) }.copy_from_slice(sums);
        });
    });
}

/// The blocks of every active expert, one behind the other by what they cost.
struct List<'a> {
    groups: &'a Groups,
    /// Blocks of an expert.
    blocks: usize,
    /// Bytes of each.
    block_bytes: usize,
}

impl List<'_> {
    /// Blocks that are multiplied together: several tokens share what is unpacked for a panel.
    fn unit(active: &Active) -> usize {
        if active.pairs.len() == 1 { 1 } else { PANEL_BLOCKS }
    }

    fn units(&self, active: &Active) -> usize {
        self.blocks.div_ceil(Self::unit(active))
    }

    /// Of a unit, in bytes times [`TOKENS_PER_READ`].
    fn cost(&self, active: &Active) -> usize {
        Self::unit(active) * self.block_bytes * (TOKENS_PER_READ + active.pairs.len())
    }

    fn total(&self) -> usize {
        self.groups.iter().map(|active| self.units(&active) * self.cost(&active)).sum()
    }

    /// Hands out what begins in a part of the costs: `work(index, active, blocks)`.
    fn part(&self, part: Range<usize>, mut work: impl FnMut(usize, &Active, Range<usize>)) {
        let mut start = 0;
        for (index, active) in self.groups.iter().enumerate() {
            // A unit belongs to the part in which it starts.
            let (units, cost, unit) =
                (self.units(&active), self.cost(&active), Self::unit(&active));
            let from = |at: usize| units.min(at.saturating_sub(start).div_ceil(cost));
            let (first, end) = (from(part.start) * unit, self.blocks.min(from(part.end) * unit));
            if first < end {
                work(index, &active, first..end);
            }
            start += units * cost;
        }
    }

    /// Hands out all of it to a team, each block once, in runs: `work(active, blocks)`.
    fn split(&self, team: &Team, work: impl Fn(&Active, Range<usize>) + Sync) {
        team.split(self.total(), TOKENS_PER_READ * LINE_BYTES_WORTH_A_THREAD, |part| {
            self.part(part, |_, active, blocks| work(active, blocks));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_block_of_every_expert_is_in_one_part() {
        for threads in [1, 2, 5] {
            for blocks in [1, 7, 8, 96, 250] {
                let pairs = [1, 3, 200, 1, 1, 17];
                let chosen: Vec<u32> =
                    (0..).zip(pairs).flat_map(|(expert, pairs)| vec![expert; pairs]).collect();
                let mut groups = Groups::default();
                groups.sort(&chosen, 1, 6);
                let seen = Mutex::new(vec![vec![0; blocks]; groups.len()]);
                let list = List { groups: &groups, blocks, block_bytes: 1 << 13 };
                list.split(&Team::new(Some(threads)), |active, blocks| {
                    let mut seen = seen.lock().unwrap();
                    blocks.for_each(|block| seen[active.expert as usize][block] += 1);
                });
                assert!(seen.into_inner().unwrap().iter().flatten().all(|&times| times == 1));
            }
        }
    }
}
