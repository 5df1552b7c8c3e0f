//! Experts in line layout on the CPU. The blocks of all active experts are one list, cut into parts
//! of equal cost, so that each thread walks few long stretches of memory.

use super::Bank;
use super::groups::{Active, Groups};
use crate::cpu::{Cpu, matrix_of};
use crate::linear::LINE_BYTES_WORTH_A_THREAD;
use krasis_core::lines::ROWS;
use krasis_core::{Act, Lines, Mat};
use krasis_cpu::lines::{PANEL_BLOCKS, multiply};
use krasis_cpu::vector::silu;
use krasis_cpu::{Team, Tiles};
use std::ops::Range;

/// Tokens whose products take as long as reading the weights: a block of 4 KiB takes 760 cycles at
/// 15 GB/s, and a token's products with it 64.
const TOKENS_PER_READ: usize = 12;

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
    let (team, isa, inter) = (&d.team, d.isa, bank.inter as usize);
    d.tokens.fill(isa, team, lines, x.cols as usize, x.rows as usize, |i| inputs.row(x, i as u32));
    let (tokens, tiles) = (&d.tokens, Tiles::new(all, inter));
    let block_bytes = 2 * lines.block_bytes(x.cols as usize);
    each_part(team, groups, inter.div_ceil(ROWS), block_bytes, |active, blocks| {
        let tile = |i: usize, row: usize, sums: usize| {
            // The last block may hold rows of padding.
            let cols = row..inter.min(row + sums);
            // SAFETY: each part has its own pairs and columns, and tiles die at once.
            unsafe { tiles.tile(active.pairs[i] as usize, cols) }
        };
        let gate = matrix_of(lines, &bank.gate(active.expert), &inputs);
        multiply(isa, &gate, blocks.clone(), tokens, active.tokens, |i, row, sums| {
            silu(sums, tile(i, row, sums.len()));
        });
        let up = matrix_of(lines, &bank.up(active.expert), &inputs);
        multiply(isa, &up, blocks, tokens, active.tokens, |i, row, sums| {
            tile(i, row, sums.len()).iter_mut().zip(sums).for_each(|(out, sum)| *out *= sum);
        });
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
    let (team, isa, hidden) = (&d.team, d.isa, out.cols as usize);
    let cols = inner.cols as usize;
    d.tokens.fill(isa, team, lines, cols, inner.rows as usize, |i| inputs.row(inner, i as u32));
    let (tokens, tiles) = (&d.tokens, Tiles::new(all, hidden));
    let block_bytes = lines.block_bytes(cols);
    each_part(team, groups, hidden.div_ceil(ROWS), block_bytes, |active, blocks| {
        let down = matrix_of(lines, &bank.down(active.expert), &inputs);
        multiply(isa, &down, blocks, tokens, active.pairs, |i, row, sums| {
            let sums = &sums[..sums.len().min(hidden - row)];
            // SAFETY: each part has its own pairs and columns, and tiles die at once.
            let tile = unsafe { tiles.tile(active.pairs[i] as usize, row..row + sums.len()) };
            tile.copy_from_slice(sums);
        });
    });
}

/// Hands out the blocks of every active expert, each once, in runs: `work(active, blocks)`.
fn each_part(
    team: &Team,
    groups: &Groups,
    blocks: usize,
    block_bytes: usize,
    work: impl Fn(&Active, Range<usize>) + Sync,
) {
    // Several tokens share what is unpacked for a panel.
    let unit = |active: &Active| if active.pairs.len() == 1 { 1 } else { PANEL_BLOCKS };
    let cost = |active: &Active| unit(active) * (TOKENS_PER_READ + active.pairs.len());
    let units = |active: &Active| blocks.div_ceil(unit(active));
    let total = groups.iter().map(|active| units(&active) * cost(&active)).sum();
    let least = TOKENS_PER_READ * LINE_BYTES_WORTH_A_THREAD.div_ceil(block_bytes);
    team.split(total, least, |part| {
        let mut start = 0;
        for active in &mut groups.iter() {
            let active = &active;
            // A unit belongs to the part in which it starts.
            let (cost, unit) = (cost(active), unit(active));
            let from = |at: usize| units(active).min(at.saturating_sub(start).div_ceil(cost));
            let (first, end) = (from(part.start) * unit, blocks.min(from(part.end) * unit));
            if first < end {
                work(active, first..end);
            }
            start += units(active) * cost;
        }
    });
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
                each_part(&Team::new(Some(threads)), &groups, blocks, 1 << 13, |active, blocks| {
                    let mut seen = seen.lock().unwrap();
                    blocks.for_each(|block| seen[active.expert as usize][block] += 1);
                });
                assert!(seen.into_inner().unwrap().iter().flatten().all(|&times| times == 1));
            }
        }
    }
}
