//! Pairs sorted by expert, so that each active expert's weights are read once for all its tokens;
//! two passes (gate and up, then down). Floats are cut into blocks of output rows; lines, in
//! [`super::lines`], into parts of equal cost. Experts that nobody asks for are not touched, not even
//! borrowed: they may be lent to somebody who fills them.

use super::Bank;
use super::groups::{Active, Groups};
use super::lines::{self, Job, Runs};
use crate::Paper;
use crate::cpu::{Cpu, Rows};
use crate::linear::products;
use crate::route::Routes;
use krasis_core::{Act, Format, Mat};
use krasis_cpu::Tiles;
use krasis_cpu::vector::silu;

/// Output rows of a task.
const BLOCK: usize = 32;

pub(crate) fn cpu(
    d: &mut Cpu,
    x: Mat<Act>,
    routes: Routes,
    bank: &Bank,
    inner: Mat<Act>,
    out: Mat<Act>,
) {
    let (groups, mut runs) = sorted(d, routes, bank);
    match lines::few_in_lines(&groups, bank) {
        Some(lines) => {
            let (inner, out_slot) = (inner.whole().floats(), out.whole().floats());
            let (inputs, inner, all) = d.arena.write_two(inner, out_slot);
            let tiles = Tiles::new(all, out.cols as usize);
            let put = |pair: usize, first: usize, sums: &[f32]| {
                // SAFETY: every output comes once, and tiles die at once.
                unsafe { tiles.tile(pair, first..first + sums.len()) }.copy_from_slice(sums);
            };
            let job = Job { team: &d.team, isa: d.isa, inputs, groups: &groups, bank };
            let kept = (&mut d.tokens, &mut d.halves, &mut runs);
            lines::few(&job, lines, x, kept, inner, put);
        }
        None => all(d, x, (&groups, &mut runs), bank, inner, out),
    }
    (d.groups, d.runs) = (groups, runs);
}

/// The same for somebody else; `out` is scratch.
pub(crate) fn cpu_to(
    d: &mut Cpu,
    x: Mat<Act>,
    routes: Routes,
    bank: &Bank,
    [inner, out]: [Mat<Act>; 2],
    paper: &Paper,
) {
    // SAFETY: each output of each pair comes once.
    let put = |pair: usize, first: usize, sums: &[f32]| unsafe { paper.put(pair, first, sums) };
    let (groups, mut runs) = sorted(d, routes, bank);
    match lines::few_in_lines(&groups, bank) {
        Some(lines) => {
            let (inputs, inner) = d.arena.write(inner.whole().floats());
            let job = Job { team: &d.team, isa: d.isa, inputs, groups: &groups, bank };
            let kept = (&mut d.tokens, &mut d.halves, &mut runs);
            lines::few(&job, lines, x, kept, inner, put);
        }
        None => {
            all(d, x, (&groups, &mut runs), bank, inner, out);
            let rows = d.arena.slice(out.whole().floats()).chunks_exact(out.cols as usize);
            let rows: Vec<&[f32]> = rows.collect();
            let pairs = groups.iter().flat_map(|active| active.pairs);
            pairs.for_each(|&pair| put(pair as usize, 0, rows[pair as usize]));
        }
    }
    (d.groups, d.runs) = (groups, runs);
}

/// The pairs by expert, and lists to be filled.
fn sorted(d: &mut Cpu, routes: Routes, bank: &Bank) -> (Groups, [Runs; 3]) {
    let mut groups = std::mem::take(&mut d.groups);
    groups.sort(d.arena.slice(routes.experts.whole()), routes.experts.cols, bank.experts);
    (groups, std::mem::take(&mut d.runs))
}

/// Any number of pairs: one product after the other.
fn all(
    d: &mut Cpu,
    x: Mat<Act>,
    (groups, [up_runs, _, down_runs]): (&Groups, &mut [Runs; 3]),
    bank: &Bank,
    inner: Mat<Act>,
    out: Mat<Act>,
) {
    match bank.gate_up.format {
        Format::Lines(format) => lines::gate_up(d, format, x, (groups, up_runs), bank, inner),
        _ => gate_up(d, x, groups, bank, inner),
    }
    match bank.down.format {
        Format::Lines(format) => lines::down(d, format, inner, (groups, down_runs), bank, out),
        _ => down(d, inner, groups, bank, out),
    }
}

fn gate_up(d: &mut Cpu, x: Mat<Act>, groups: &Groups, bank: &Bank, inner: Mat<Act>) {
    let inter = bank.inter as usize;
    let (inputs, all) = d.arena.write(inner.whole().floats());
    let (isa, tiles) = (d.isa, Tiles::new(all, inter));
    let blocks = inter.div_ceil(BLOCK);
    d.team.split(groups.len() * blocks, 1, |tasks| {
        for task in tasks {
            let Active { expert, pairs, tokens } = groups.get(task / blocks);
            let first = task % blocks * BLOCK;
            let count = BLOCK.min(inter - first);
            let token = |i: usize| inputs.row(x, tokens[i]);
            let gate = Rows::of(&bank.gate(expert), &inputs);
            let outputs = first..first + count;
            products(isa, &gate, outputs.clone(), pairs.len(), token, |i, first, sums| {
                let cols = first..first + sums.len();
                // SAFETY: each task has its own pairs and columns, and tiles die at once.
                silu(sums, unsafe { tiles.tile(pairs[i] as usize, cols) });
            });
            let up = Rows::of(&bank.up(expert), &inputs);
            products(isa, &up, outputs, pairs.len(), token, |i, first, sums| {
                let cols = first..first + sums.len();
                // SAFETY: as above.
                let tile = unsafe { tiles.tile(pairs[i] as usize, cols) };
                tile.iter_mut().zip(sums).for_each(|(gate, up)| *gate *= up);
            });
        }
    });
}

fn down(d: &mut Cpu, inner: Mat<Act>, groups: &Groups, bank: &Bank, out: Mat<Act>) {
    let hidden = out.cols as usize;
    let (inputs, all) = d.arena.write(out.whole().floats());
    let (isa, tiles) = (d.isa, Tiles::new(all, hidden));
    let blocks = hidden.div_ceil(BLOCK);
    d.team.split(groups.len() * blocks, 1, |tasks| {
        for task in tasks {
            let Active { expert, pairs, .. } = groups.get(task / blocks);
            let first = task % blocks * BLOCK;
            let down = Rows::of(&bank.down(expert), &inputs);
            let rows = first..hidden.min(first + BLOCK);
            let pair = |i: usize| inputs.row(inner, pairs[i]);
            products(isa, &down, rows, pairs.len(), pair, |i, first, sums| {
                let cols = first..first + sums.len();
                // SAFETY: as above.
                unsafe { tiles.tile(pairs[i] as usize, cols) }.copy_from_slice(sums);
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::experts::Bank;
    use crate::testing::Case;
    use crate::{Cpu, Memory, Ops, Routes};
    use krasis_core::lines::{Bits, Lines};
    use krasis_core::{Format, Mat};
    use krasis_cpu::nodes::fake::FakeKernel;
    use krasis_cpu::{Kernel, Placement, Team};
    use std::sync::Arc;

    /// Experts on three pages and more, whose gate and up lie on different ones.
    #[test]
    fn several_nodes_compute_what_one_does() {
        let format = Format::Lines(Lines::new(Bits::Four, 128).unwrap());
        let (experts, inter, hidden, top_k) = (8, 501, 1024, 3);
        for rows in [1, 3, 40] {
            let mut case = Case::new(5);
            let x = case.act(rows, hidden);
            let bank = Bank {
                gate_up: case.weight(experts * 2 * Bank::rows_of(format, inter), hidden, format),
                down: case.weight(experts * hidden, inter, format),
                experts,
                inter,
            };
            let chosen: Vec<u32> = (0..rows * top_k).map(|i| (i * i + i / 3) % experts).collect();
            let routes = Routes {
                experts: Mat::new(case.u32s(&chosen), rows, top_k),
                weights: case.random_floats(rows, top_k),
            };
            let (inner, out) = (case.blank(rows * top_k, inter), case.blank(rows * top_k, hidden));
            let run = |nodes: u32| {
                let mut arena = case.arena();
                let kernel: Arc<dyn Kernel> = Arc::new(FakeKernel::large_pages());
                arena.place(&Placement::Interleave((0..nodes).collect()), &kernel).unwrap();
                arena.settle().unwrap();
                assert_eq!(arena.homes().nodes(), if nodes == 1 { 0 } else { nodes as usize });
                let mut cpu = Cpu::new(arena, Team::new(Some(3)));
                // Lists are kept from one call to the next.
                cpu.experts(x, routes, &bank, inner, out);
                cpu.experts(x, routes, &bank, inner, out);
                cpu.download_act(out)
            };
            let wanted = run(1);
            assert!(wanted.iter().all(|number| number.is_finite()));
            assert!(run(2) == wanted && run(4) == wanted, "{rows} rows");
        }
    }
}
