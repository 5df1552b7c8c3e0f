//! Rotary position embedding (Su et al., RoFormer, 2021), half-split pairing, in place.
//!
//! In each head of `dim` columns, `freqs [d/2]` turns the pairs `(i, i + d/2)` of the first `d`
//! columns by `position · freqs[i]`; cosine and sine are multiplied by `scale` (YaRN's attention
//! factor). The other columns pass through. Interleaved pairs (DeepSeek) are brought into this
//! order when the weights are loaded.

use crate::cpu::{Cpu, ROWS_WORTH_A_THREAD, vector_of};
use crate::reference::Reference;
use crate::step::Seqs;
use bytemuck::cast_slice;
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::vector::rotate;
use krasis_cpu::{Team, Tiles};

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

/// The angles of a step's rows. Queries and keys of all layers turn by the same, as a rule, and a cosine
/// takes longer than turning a pair by it.
#[derive(Default)]
pub(crate) struct Angles {
    freqs: Vec<u32>,
    scale: u32,
    positions: Vec<u32>,
    /// `[row, cosines | sines]`.
    turns: Vec<f32>,
}

impl Angles {
    /// Makes them those of these rows, if they are not already.
    fn turn_to(&mut self, team: &Team, freqs: &[f32], scale: f32, positions: &[u32]) {
        let bits: &[u32] = cast_slice(freqs);
        if self.freqs == bits && self.scale == scale.to_bits() && self.positions == positions {
            return;
        }
        self.freqs.clear();
        self.freqs.extend_from_slice(bits);
        self.scale = scale.to_bits();
        self.positions.clear();
        self.positions.extend_from_slice(positions);
        let each = 2 * freqs.len();
        self.turns.resize(positions.len() * each, 0.0);
        if each == 0 {
            return;
        }
        let turns = Tiles::new(&mut self.turns, each);
        team.split(positions.len(), ROWS_WORTH_A_THREAD, |rows| {
            for row in rows {
                // SAFETY: the ranges of `split` are disjoint.
                let (cos, sin) = unsafe { turns.tile(row, 0..each) }.split_at_mut(freqs.len());
                for ((cos, sin), freq) in cos.iter_mut().zip(sin).zip(freqs) {
                    let turn = (positions[row] as f32 * freq).sin_cos();
                    (*sin, *cos) = (turn.0 * scale, turn.1 * scale);
                }
            }
        });
    }
}

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, dim: u32, freqs: &Weight, scale: f32, seqs: &Seqs) {
    let (inputs, all) = d.arena.write(x.at.floats());
    let (freqs, rows) = (vector_of(freqs, &inputs), x.rows as usize);
    let half = freqs.len();
    d.angles.turn_to(&d.team, freqs, scale, &inputs.slice(seqs.positions)[..rows]);
    let turns = &d.angles.turns;
    let tiles = Tiles::new(all, x.stride as usize);
    let cols = x.first_col as usize..(x.first_col + x.cols) as usize;
    d.team.split(rows, ROWS_WORTH_A_THREAD, |rows| {
        for row in rows {
            let (cos, sin) = turns[row * 2 * half..][..2 * half].split_at(half);
            // SAFETY: the ranges of `split` are disjoint.
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

#[cfg(test)]
mod tests {
    use crate::testing::Case;
    use crate::{Memory, Ops};

    /// What was kept of one call is no good for another: other positions, frequencies or factors.
    #[test]
    fn angles_are_those_of_the_call() {
        let mut case = Case::new(8);
        let x: Vec<f32> = (0..3 * 32).map(|_| case.float()).collect();
        let freqs = [8, 8, 4].map(|half| case.vector(half));
        let steps = [&[(3, 2), (0, 1)][..], &[(5, 3)]].map(|parts| case.seqs(parts, 4).0);
        let heads = case.act_of(3, 32, &x);
        let mut kept = case.cpu();
        for (freqs, scale, seqs) in [
            (&freqs[0], 1.0, &steps[0]),
            (&freqs[0], 1.0, &steps[0]),
            (&freqs[1], 1.0, &steps[0]),
            (&freqs[1], 0.5, &steps[0]),
            (&freqs[1], 0.5, &steps[1]),
            (&freqs[2], 0.5, &steps[1]),
        ] {
            let mut fresh = case.cpu();
            let turned = [&mut kept, &mut fresh].map(|d| {
                d.upload_act(heads, &x);
                d.rope(heads, 16, freqs, scale, seqs);
                d.download_act(heads)
            });
            assert_eq!(turned[0], turned[1]);
            assert_ne!(turned[0], x);
        }
    }
}
