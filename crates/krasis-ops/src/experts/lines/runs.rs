//! The blocks of all active experts, one behind the other by what they cost: a list for each NUMA node of
//! those that lie there, so that threads read the memory of their own first. As pages take turns on nodes,
//! an expert of several pages is spread over nodes by its rows, and smaller ones even out. Who computes a
//! row never changes it.

use super::Job;
use crate::experts::groups::{Active, Groups};
use crate::linear::LINE_BYTES_WORTH_A_THREAD;
use krasis_cpu::Homes;
use krasis_cpu::lines::PANEL_BLOCKS;
use krasis_cpu::nodes::PIECE;
use std::ops::Range;

/// Tokens whose products take as long as reading the weights: a block of 4 KiB takes 760 cycles at
/// 15 GB/s, and a token's products with it 64.
pub(super) const TOKENS_PER_READ: usize = 12;

/// Lists of runs; kept because a decode step allocates nothing.
#[derive(Default)]
pub(crate) struct Runs {
    runs: Vec<Run>,
    /// Where the runs of each list end, and what they cost together.
    lists: Vec<(usize, usize)>,
    /// Of each list, for a team.
    totals: Vec<usize>,
}

/// Consecutive blocks of an expert that lie on one node.
struct Run {
    /// Which of the active ones it is.
    index: usize,
    blocks: Range<usize>,
    /// Blocks that are multiplied together: several tokens share what is unpacked for a panel.
    unit: usize,
    /// Of a unit, in bytes times [`TOKENS_PER_READ`].
    cost: usize,
    /// What the list's runs before it cost.
    start: usize,
}

/// Each expert's blocks in a matrix.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    /// How many.
    pub count: usize,
    /// Bytes of one there.
    pub bytes: usize,
    /// Bytes that are read for one, in all matrices.
    pub read: usize,
}

impl Run {
    fn units(&self) -> usize {
        self.blocks.len().div_ceil(self.unit)
    }
}

impl Runs {
    /// Lists the blocks of all active experts, whose first ones lie at `first(expert)`.
    pub(super) fn fill(
        &mut self,
        groups: &Groups,
        homes: &Homes,
        blocks: Blocks,
        first: impl Fn(u32) -> usize,
    ) {
        let Runs { runs, lists, totals } = self;
        runs.clear();
        lists.clear();
        totals.clear();
        for node in 0..homes.nodes().max(1) {
            let mut total = 0;
            for (index, active) in groups.iter().enumerate() {
                let unit = if active.pairs.len() == 1 { 1 } else { PANEL_BLOCKS };
                let cost = unit * blocks.read * (TOKENS_PER_READ + active.pairs.len());
                let mut push = |blocks: Range<usize>| {
                    let run = Run { index, blocks, unit, cost, start: total };
                    total += run.units() * cost;
                    runs.push(run);
                };
                if homes.nodes() == 0 {
                    push(0..blocks.count);
                    continue;
                }
                for (home, run) in on_nodes(homes, blocks, first(active.expert)) {
                    // What has no home is anybody's.
                    if home.unwrap_or(index % homes.nodes()) == node {
                        push(run);
                    }
                }
            }
            lists.push((runs.len(), total));
            totals.push(total);
        }
    }

    /// Has room for so many active experts, so that listing them allocates nothing.
    pub(super) fn reserve(&mut self, experts: usize, homes: &Homes, blocks: Blocks) {
        let pieces = if homes.nodes() == 0 { 0 } else { blocks.count * blocks.bytes / PIECE + 1 };
        self.runs.reserve((experts * (pieces + 1)).saturating_sub(self.runs.len()));
    }

    /// What all runs cost together.
    pub(super) fn sum(&self) -> usize {
        self.totals.iter().sum()
    }

    /// What the runs of each list cost together.
    pub(super) fn totals(&self) -> &[usize] {
        &self.totals
    }

    /// Hands out what begins in a part of a list's costs: `work(index, active, blocks)`.
    pub(super) fn part(
        &self,
        groups: &Groups,
        list: usize,
        part: Range<usize>,
        mut work: impl FnMut(usize, &Active, Range<usize>),
    ) {
        let first = if list == 0 { 0 } else { self.lists[list - 1].0 };
        let runs = &self.runs[first..self.lists[list].0];
        // The run before the first that begins behind may have units left.
        let from = runs.partition_point(|run| run.start < part.start).saturating_sub(1);
        for run in runs[from..].iter().take_while(|run| run.start < part.end) {
            // A unit belongs to the part in which it starts.
            let units = run.units();
            let before =
                |at: usize| units.min(at.saturating_sub(run.start).div_ceil(run.cost)) * run.unit;
            let Range { start, end } = run.blocks;
            let blocks = start + before(part.start)..end.min(start + before(part.end));
            if !blocks.is_empty() {
                work(run.index, &groups.get(run.index), blocks);
            }
        }
    }

    /// Hands out all lists to a team, each block once, in stretches: `work(active, blocks)`.
    pub(super) fn split(&self, job: &Job, work: impl Fn(&Active, Range<usize>) + Sync) {
        let least = TOKENS_PER_READ * LINE_BYTES_WORTH_A_THREAD;
        let part = |list: usize, part: Range<usize>| {
            self.part(job.groups, list, part, |_, active, blocks| work(active, blocks));
        };
        match self.totals[..] {
            [total] => job.team.split(total, least, |range| part(0, range)),
            _ => job.team.split_by_node(job.inputs.homes(), &self.totals, least, part),
        }
    }
}

/// Blocks from byte `first` of the arena on, in runs of those that lie on one node. A block that lies on two
/// pages goes by its middle.
fn on_nodes(
    homes: &Homes,
    blocks: Blocks,
    first: usize,
) -> impl Iterator<Item = (Option<usize>, Range<usize>)> {
    let middle = first + blocks.bytes / 2;
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = next;
        if start == blocks.count {
            return None;
        }
        let home = homes.at(middle + start * blocks.bytes);
        // Pages are longer than blocks are, or each block is a run.
        while next < blocks.count && homes.at(middle + next * blocks.bytes) == home {
            let piece_ends = ((middle + next * blocks.bytes) / PIECE + 1) * PIECE;
            next = blocks.count.min((piece_ends - middle).div_ceil(blocks.bytes));
        }
        Some((home, start..next))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use krasis_cpu::Kernel;
    use krasis_cpu::nodes::fake::FakeKernel;

    /// Pages of an arena at address 0 that take turns on so many nodes; none of one.
    fn homes(nodes: u32, pages: usize) -> Homes {
        let (kernel, numbers) = (FakeKernel::large_pages(), (0..nodes).collect::<Vec<u32>>());
        kernel.interleave(0..pages * PIECE, &numbers).unwrap();
        Homes::find(&kernel, 0, pages * PIECE, &numbers).unwrap().unwrap_or_default()
    }

    #[test]
    fn every_block_of_every_expert_is_in_one_part_of_the_list_of_its_node() {
        for nodes in [1, 2, 4] {
            for (count, bytes) in [(1, 100), (7, PIECE), (96, 8192), (250, 3 * PIECE / 100)] {
                let pairs = [1, 3, 200, 1, 1, 17];
                let chosen: Vec<u32> =
                    (0..).zip(pairs).flat_map(|(expert, pairs)| vec![expert; pairs]).collect();
                let mut groups = Groups::default();
                groups.sort(&chosen, 1, 6);
                let first = |expert: u32| 4096 + expert as usize * count * bytes;
                let homes = homes(nodes, (6 * count * bytes).div_ceil(PIECE) + 1);
                let blocks = Blocks { count, bytes, read: 2 * bytes };
                let mut runs = Runs::default();
                for _ in 0..2 {
                    runs.reserve(6, &homes, blocks);
                    let room = runs.runs.capacity();
                    runs.fill(&groups, &homes, blocks, first);
                    assert_eq!(runs.runs.capacity(), room, "{} runs", runs.runs.len());
                }
                let mut seen = vec![vec![0; count]; groups.len()];
                for (list, &total) in runs.totals().iter().enumerate() {
                    // In parts that begin and end anywhere.
                    for start in (0..total).step_by(total.div_ceil(7).max(1)) {
                        let part = start..total.min(start + total.div_ceil(7));
                        runs.part(&groups, list, part, |index, active, blocks| {
                            assert_eq!(active.expert as usize, index);
                            for block in blocks {
                                seen[index][block] += 1;
                                let middle = first(active.expert) + block * bytes + bytes / 2;
                                assert_eq!(homes.at(middle).unwrap_or(list), list);
                            }
                        });
                    }
                }
                assert!(seen.iter().flatten().all(|&times| times == 1), "{nodes}, {count}");
                assert_eq!(runs.totals().len(), nodes as usize);
            }
        }
    }

    #[test]
    fn large_experts_are_spread_evenly_over_nodes() {
        let mut groups = Groups::default();
        groups.sort(&[0, 1, 2, 3, 4, 5, 6, 7], 1, 10);
        // Qwen3-235B-A22B: gate of an expert is 3 MiB in INT4.
        let blocks = Blocks { count: 192, bytes: 16 << 10, read: 32 << 10 };
        for nodes in [2, 4] {
            let mut runs = Runs::default();
            runs.fill(&groups, &homes(nodes, 40), blocks, |expert| expert as usize * (6 << 20));
            let all: usize = runs.totals().iter().sum();
            let most = *runs.totals().iter().max().unwrap();
            assert!(most * nodes as usize <= all * 3 / 2, "{most} of {all} on one of {nodes}");
        }
    }
}
