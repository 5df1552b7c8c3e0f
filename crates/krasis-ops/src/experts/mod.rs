//! Routed experts: for every (token, choice) pair
//! `out[pair] = down[e] · (silu(gate[e] · x) · (up[e] · x))`, unweighted; [`crate::combine`] weighs.
//!
//! `inner` is scratch of one row of `inter` columns per pair. Bytes: the active experts once.
//!
//! A pair whose expert is [`ABSENT`] is left alone: its row of `out` stays as it was. So the pairs of
//! a token may be computed in several places, each having the experts that the others lack.

mod cpu;
mod groups;
mod lines;

use crate::linear::dot;
use crate::reference::Reference;
use crate::route::Routes;
use crate::silu_mul::silu;
pub(crate) use cpu::{cpu, cpu_to};
pub(crate) use groups::Groups;
use krasis_core::{Act, Format, Mat, Slot, Weight};
pub(crate) use lines::{Halves, Runs};

/// In the place of an expert: this pair is somebody else's.
pub const ABSENT: u32 = u32::MAX;

/// The routed experts of one layer, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Bank {
    /// `[experts · (gate: inter | up: inter), hidden]`, gate and up each up to whole blocks of rows.
    pub gate_up: Weight,
    /// `[experts · hidden, inter]`, each expert up to whole blocks of rows.
    pub down: Weight,
    /// Experts in the bank.
    pub experts: u32,
    /// Rows of an expert's gate.
    pub inter: u32,
}

impl Bank {
    /// Rows of a bank's part of so many in this format.
    pub fn rows_of(format: Format, rows: u32) -> u32 {
        rows.next_multiple_of(format.rows_together())
    }

    /// `[inter, hidden]` of an expert.
    pub fn gate(&self, expert: u32) -> Weight {
        self.gate_up.rows(2 * expert * self.gate_rows(), self.inter)
    }

    /// `[inter, hidden]` of an expert.
    pub fn up(&self, expert: u32) -> Weight {
        self.gate_up.rows((2 * expert + 1) * self.gate_rows(), self.inter)
    }

    /// `[hidden, inter]` of an expert.
    pub fn down(&self, expert: u32) -> Weight {
        let hidden = self.gate_up.cols;
        self.down.rows(expert * Bank::rows_of(self.down.format, hidden), hidden)
    }

    /// Experts `first..first + count` as a bank of their own.
    pub fn part(&self, first: u32, count: u32) -> Bank {
        let (up, down) = (2 * self.gate_rows(), Bank::rows_of(self.down.format, self.gate_up.cols));
        Bank {
            gate_up: self.gate_up.rows(first * up, count * up),
            down: self.down.rows(first * down, count * down),
            experts: count,
            inter: self.inter,
        }
    }

    /// Memory of some experts one behind the other: numbers and scales of gate and up, and of down.
    pub fn slots(&self, first: u32, count: u32) -> [Slot<u8>; 4] {
        let Bank { gate_up, down, .. } = self.part(first, count);
        [gate_up.data, gate_up.scales.bytes(), down.data, down.scales.bytes()]
    }

    fn gate_rows(&self) -> u32 {
        Bank::rows_of(self.gate_up.format, self.inter)
    }
}

pub(crate) fn reference(
    d: &mut Reference,
    x: Mat<Act>,
    routes: Routes,
    bank: &Bank,
    _inner: Mat<Act>,
    out: Mat<Act>,
) {
    let experts = d.arena.slice(routes.experts.whole()).to_vec();
    let top_k = routes.experts.cols as usize;
    let (x, mut rows) = (d.rows(x), d.rows(out));
    for (pair, &expert) in experts.iter().enumerate().filter(|(_, expert)| **expert != ABSENT) {
        let x = &x[pair / top_k];
        let (gate, up) = (d.weight(&bank.gate(expert)), d.weight(&bank.up(expert)));
        let down = d.weight(&bank.down(expert));
        let inner: Vec<f32> =
            gate.iter().zip(&up).map(|(gate, up)| silu(dot(gate, x)) * dot(up, x)).collect();
        rows[pair] = down.iter().map(|down| dot(down, &inner)).collect();
    }
    d.put(out, &rows);
}

pub(crate) mod cases {
    use super::{ABSENT, Bank};
    use crate::Routes;
    use crate::testing::{Case, FORMATS, Judge, tolerance};
    use krasis_core::lines::{Bits, Lines};
    use krasis_core::{DType, Format, Mat};

    cases![
        pairs_in_every_format,
        few_rows_in_blocks,
        many_rows_in_lines,
        absent_experts,
        experts_of_all_layers
    ];

    fn pairs_in_every_format(on: &mut dyn Judge) {
        for format in FORMATS {
            for rows in [1, 2, 7, 40, 130] {
                // Small enough that sums are of size one, where the tolerance is absolute: larger
                // ones cancel, and what is left of them says little.
                check(on, format, [rows, 37, 75], 8.0, &[0, 1, 2, 3, 4]);
            }
        }
    }

    /// Shapes that a device may read by 16 bytes at a time; fewer pairs than it sorts, or a few tiles.
    fn few_rows_in_blocks(on: &mut dyn Judge) {
        let lines = |bits, group| Format::Lines(Lines::new(bits, group).unwrap());
        for format in [Format::Float(DType::Bf16), lines(Bits::Four, 128), lines(Bits::Eight, 32)] {
            for rows in [1, 5, 20] {
                check(on, format, [rows, 40, 200], 6.0, &[0, 1, 4]);
            }
        }
    }

    /// Shapes that a device may read by 16 bytes at a time; several tiles to an expert, and none.
    fn many_rows_in_lines(on: &mut dyn Judge) {
        for bits in [Bits::Four, Bits::Eight] {
            for group in [32, 64, 128] {
                let format = Format::Lines(Lines::new(bits, group).unwrap());
                check(on, format, [40, 72, 136], 4.0, &[0, 2, 3]);
                check(on, format, [200, 192, 256], 6.0, &[1, 2, 4]);
            }
        }
    }

    /// What a pair without its expert had before is still there.
    fn absent_experts(on: &mut dyn Judge) {
        for format in FORMATS {
            for rows in [1, 3, 40, 130] {
                check(on, format, [rows, 37, 75], 8.0, &[ABSENT, 1, ABSENT, 3, 4]);
                check(on, format, [rows, 40, 128], 8.0, &[ABSENT]);
            }
        }
    }

    /// More than a device may sort at a time.
    fn experts_of_all_layers(on: &mut dyn Judge) {
        let lines = Format::Lines(Lines::new(Bits::Four, 32).unwrap());
        for format in [Format::Float(DType::Bf16), lines] {
            for rows in [1, 12, 70] {
                check(on, format, [rows, 8, 32], 4.0, &[0, 1100, ABSENT, 1023, 1024, 2050]);
            }
        }
    }

    /// Five experts or more, of which those in `chosen` get pairs; activations are up to `1 / small`.
    fn check(
        on: &mut dyn Judge,
        format: Format,
        [rows, inter, hidden]: [u32; 3],
        small: f32,
        chosen: &[u32],
    ) {
        let last = chosen.iter().filter(|&&expert| expert != ABSENT).max().unwrap_or(&0);
        let (experts, top_k) = (5.max(last + 1), 3);
        let rows_of = |rows| Bank::rows_of(format, rows);
        let mut case = Case::new(17);
        let x: Vec<f32> = (0..rows * hidden).map(|_| case.float() / small).collect();
        let x = case.act_of(rows, hidden, &x);
        let bank = Bank {
            gate_up: case.weight(experts * 2 * rows_of(inter), hidden, format),
            down: case.weight(experts * rows_of(hidden), inter, format),
            experts,
            inter,
        };
        let of = |i: u32| chosen[((i * i + i / 3) % chosen.len() as u32) as usize];
        let experts: Vec<u32> = (0..rows * top_k).map(of).collect();
        let experts = Mat::new(case.u32s(&experts), rows, top_k);
        let weights = case.random_floats(rows, top_k);
        let routes = Routes { experts, weights };
        let inner = case.blank(rows * top_k, inter);
        let out = match chosen.contains(&ABSENT) {
            true => case.act(rows * top_k, hidden),
            false => case.blank(rows * top_k, hidden),
        };
        case.agree(on, &[out], tolerance(format, 6e-5, 0.03), |ops| {
            ops.experts(x, routes, &bank, inner, out)
        });
    }
}
