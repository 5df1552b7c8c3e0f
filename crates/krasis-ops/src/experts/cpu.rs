//! Pairs sorted by expert, so that each active expert's weights are decoded once for all its
//! tokens; two passes (gate and up, then down), each cut into blocks of output rows.

use super::Bank;
use crate::cpu::{Cpu, Rows};
use crate::linear::products;
use crate::route::Routes;
use crate::silu_mul::silu;
use krasis_core::{Act, Mat};
use krasis_cpu::Tiles;

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
    let inter = bank.inter as usize;
    let hidden = (bank.down.rows / bank.experts) as usize;
    let top_k = routes.experts.cols as usize;
    let active = by_expert(d.arena.slice(routes.experts.whole()), bank.experts);

    let (inputs, all) = d.arena.write(inner.whole().floats());
    let (rows, tiles) = (Rows::of(&bank.gate_up, &inputs), Tiles::new(all, inter));
    let blocks = inter.div_ceil(BLOCK);
    d.team.split(active.len() * blocks, 1, |tasks| {
        for task in tasks {
            let (expert, pairs) = &active[task / blocks];
            let first = task % blocks * BLOCK;
            let count = BLOCK.min(inter - first);
            let token = |i: usize| inputs.row(x, (pairs[i] / top_k) as u32);
            let gate = expert * 2 * inter + first;
            products(&rows, gate..gate + count, x.cols, pairs.len(), token, |i, row, sum| {
                // SAFETY: each task has its own pairs and columns, and tiles die at once.
                *unsafe { tiles.cell(pairs[i], first + row - gate) } = silu(sum);
            });
            let up = gate + inter;
            products(&rows, up..up + count, x.cols, pairs.len(), token, |i, row, sum| {
                // SAFETY: as above.
                *unsafe { tiles.cell(pairs[i], first + row - up) } *= sum;
            });
        }
    });

    let (inputs, all) = d.arena.write(out.whole().floats());
    let (rows, tiles) = (Rows::of(&bank.down, &inputs), Tiles::new(all, hidden));
    let blocks = hidden.div_ceil(BLOCK);
    d.team.split(active.len() * blocks, 1, |tasks| {
        for task in tasks {
            let (expert, pairs) = &active[task / blocks];
            let first = task % blocks * BLOCK;
            let down = expert * hidden + first..expert * hidden + hidden.min(first + BLOCK);
            let pair = |i: usize| inputs.row(inner, pairs[i] as u32);
            products(&rows, down, inner.cols, pairs.len(), pair, |i, row, sum| {
                // SAFETY: as above.
                *unsafe { tiles.cell(pairs[i], row - expert * hidden) } = sum;
            });
        }
    });
}

/// The experts that any pair chose, each with its pairs in order.
fn by_expert(chosen: &[u32], experts: u32) -> Vec<(usize, Vec<usize>)> {
    let mut pairs = vec![Vec::new(); experts as usize];
    for (pair, &expert) in chosen.iter().enumerate() {
        pairs[expert as usize].push(pair);
    }
    pairs.into_iter().enumerate().filter(|(_, pairs)| !pairs.is_empty()).collect()
}
