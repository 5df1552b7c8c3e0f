//! Rotary position embedding (Su et al., RoFormer, 2021), half-split pairing, in place.
//!
//! In each head of `dim` columns, `freqs [d/2]` turns the pairs `(i, i + d/2)` of the first `d`
//! columns by `position · freqs[i]`; cosine and sine are multiplied by `scale` (YaRN's attention
//! factor). The other columns pass through. Interleaved pairs (DeepSeek) are brought into this
//! order when the weights are loaded.

use crate::cpu::{Cpu, ROWS_WORTH_A_THREAD, vector_of};
use crate::reference::Reference;
use crate::step::Seqs;
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::Tiles;
use krasis_cpu::vector::rotate;

pub(crate) fn reference(
    d: &mut Reference,
    x: Mat<Act>,
    dim: u32,
    freqs: &Weight,
    scale: f32,
    seqs: &Seqs,
) {
    let freqs = d.vector(freqs);
    let half = freqs.len();
    let positions = d.arena.slice(seqs.positions).to_vec();
    let mut rows = d.rows(x);
    for (row, position) in rows.iter_mut().zip(positions) {
        for head in row.chunks_exact_mut(dim as usize) {
            for i in 0..half {
                let angle = position as f32 * freqs[i];
                let (sin, cos) = (angle.sin() * scale, angle.cos() * scale);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos - b * sin;
                head[i + half] = b * cos + a * sin;
            }
        }
    }
    d.put(x, &rows);
}

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, dim: u32, freqs: &Weight, scale: f32, seqs: &Seqs) {
    let (inputs, all) = d.arena.write(x.at.floats());
    let (freqs, positions) = (vector_of(freqs, &inputs), inputs.slice(seqs.positions));
    let half = freqs.len();
    let tiles = Tiles::new(all, x.stride as usize);
    let cols = x.first_col as usize..(x.first_col + x.cols) as usize;
    let own = (2 * half).next_multiple_of(16);
    let workers = Tiles::new(d.workers.take(own * d.team.threads()), own);
    let rows = x.rows as usize;
    d.team.each(rows.div_ceil(ROWS_WORTH_A_THREAD), |worker, task| {
        // SAFETY: a worker has one task at a time.
        let (cos, rest) = unsafe { workers.tile(worker, 0..own) }.split_at_mut(half);
        let sin = &mut rest[..half];
        let first = task * ROWS_WORTH_A_THREAD;
        for row in first..rows.min(first + ROWS_WORTH_A_THREAD) {
            // All heads of a token turn alike.
            for ((cos, sin), freq) in cos.iter_mut().zip(&mut *sin).zip(freqs) {
                let turn = (positions[row] as f32 * freq).sin_cos();
                (*sin, *cos) = (turn.0 * scale, turn.1 * scale);
            }
            // SAFETY: each task has its own rows.
            let row = unsafe { tiles.tile(row, cols.clone()) };
            for head in row.chunks_exact_mut(dim as usize) {
                let (first, second) = head[..2 * half].split_at_mut(half);
                rotate(first, second, cos, sin);
            }
        }
    });
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};

    cases![whole_and_partial_heads];

    fn whole_and_partial_heads(on: &mut dyn Judge) {
        for half in [8, 3] {
            let mut case = Case::new(7);
            let all = case.act(6, 3 * 16 + 5);
            let freqs = case.vector(half);
            let (seqs, _) = case.seqs(&[(0, 2), (977, 4)], 4);
            let heads = all.cols(5, 48);
            case.agree(on, &[all], 1e-5, |ops| ops.rope(heads, 16, &freqs, 1.25, &seqs));
        }
    }
}
