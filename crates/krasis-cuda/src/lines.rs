//! Products of many BF16 rows with weights in lines: the launches of `kernels/moe/moe_gemm.cu`, and
//! the tiles that a GPU's shared memory holds.

use crate::activation::Activation;
use crate::cuda::{BLOCK, Cuda};
use crate::machine::{Arg, Kernel, Limits, Machine, Shape};
use krasis_core::lines::{Bits, Lines};
use krasis_core::{Act, Format, Mat, Weight};
use krasis_ops::{Bank, Routes};

/// What the kernels are compiled for.
pub const VARIANTS: [Lines; 6] = [
    Lines::new(Bits::Four, 128).unwrap(),
    Lines::new(Bits::Eight, 128).unwrap(),
    Lines::new(Bits::Four, 64).unwrap(),
    Lines::new(Bits::Eight, 64).unwrap(),
    Lines::new(Bits::Four, 32).unwrap(),
    Lines::new(Bits::Eight, 32).unwrap(),
];

/// A block's tile and how many lines of it are on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Rows of activations: whole steps of 16.
    pub rows: u32,
    /// Lines in shared memory.
    pub stages: u32,
}

impl Tiling {
    /// The tallest that fits, whatever the group: weights are unpacked once for each tile. 128 rows of
    /// INT8 are more than the compiler unrolls. The second ones are for GPUs with 99 KiB.
    pub fn new(bits: Bits, limits: Limits) -> Tiling {
        let best = match bits {
            Bits::Four => [(128, 3), (48, 3)],
            Bits::Eight => [(64, 3), (48, 2)],
        };
        let fits = |tiling: &Tiling| {
            let of = VARIANTS.into_iter().filter(|lines| lines.bits == bits);
            of.map(|lines| tiling.shared(lines)).all(|bytes| bytes <= limits.shared_max)
        };
        let mut tilings = best.map(|(rows, stages)| Tiling { rows, stages }).into_iter();
        tilings.find(fits).unwrap_or_else(|| {
            panic!("{} bytes of shared memory; Ampere has 99 KiB", limits.shared_max)
        })
    }

    /// Bytes of shared memory: `SHARED_BYTES` of the kernels.
    pub fn shared(self, of: Lines) -> u32 {
        let line = 8 * of.line_bytes() as u32;
        let stage = self.rows * 256 + 32 * (line + 16 * of.line_scales() as u32);
        self.stages * stage + (self.stages + 2) * (130 + self.rows) * 4 + 8
    }

    /// What tells the kernels.
    pub fn defines(self, of: Lines) -> Vec<String> {
        let bits = match of.bits {
            Bits::Four => 4,
            Bits::Eight => 8,
        };
        vec![
            format!("-DBITS={bits}"),
            format!("-DGROUP={}", of.group()),
            format!("-DTILE_ROWS={}", self.rows),
            format!("-DSTAGES={}", self.stages),
        ]
    }
}

/// Rows in the order of the matrices that they meet, and what is cut of them.
pub(crate) struct Tiles {
    /// The rows.
    pub sorted: Arg,
    /// How many tiles, then matrix, first of `sorted` and count of each.
    pub tiles: Arg,
    /// The most tiles that there may be.
    pub most: u32,
}

impl<A: Activation, M: Machine> Cuda<A, M> {
    /// How `w` lies if the kernels here can multiply `x` with it to `out`: operands are read and
    /// written by 16 bytes, and are BF16. Scales must be below 2⁸, which weights of a model are.
    pub(crate) fn in_lines(&self, x: Mat<Act>, w: &Weight, out: Mat<Act>) -> Option<Lines> {
        let bf16 = A::NAME == half::bf16::NAME;
        let whole = w.cols.is_multiple_of(8) && self.aligned(x) && self.aligned(out);
        match w.format {
            Format::Lines(lines) if bf16 && whole => Some(lines),
            _ => None,
        }
    }

    /// Room for `rows` rows of up to `matrices` matrices in tiles of up to `tile_rows`.
    pub(crate) fn tiles(&self, rows: u32, matrices: u32, tile_rows: u32) -> Tiles {
        // Each matrix may end in a tile that is not full.
        let most = (rows.div_ceil(tile_rows) + matrices).min(rows);
        let sorted_bytes = (u64::from(rows) * 4).next_multiple_of(16);
        let sorted = self.workspace(0, sorted_bytes);
        let tiles = self.workspace(sorted_bytes, 4 + 12 * u64::from(most));
        Tiles { sorted, tiles, most }
    }

    /// `out = x · wᵀ`: one expert's down, which all rows have chosen. Sorting them is a launch more
    /// for each product, but a smaller one than whatever needs many rows.
    pub(crate) fn linear_in_lines(&mut self, x: Mat<Act>, w: &Weight, lines: Lines, out: Mat<Act>) {
        let tile_rows = Tiling::new(lines.bits, self.machine().limits()).rows;
        let tiles = self.tiles(x.rows, 1, tile_rows);
        let args = [x.rows.into(), tile_rows.into(), tiles.sorted, tiles.tiles];
        let grid = [x.rows.div_ceil(BLOCK), 1, 1];
        let sort = Kernel { entry: "sort_rows", variant: 0 };
        self.launch(sort, Shape { grid, block: BLOCK, shared: 0 }, &args);
        self.down_in_lines(x, &tiles, w, lines, out);
    }

    /// The routed experts from number `first` on, over tiles of [`Tiling::rows`]; both weights have the
    /// same bits.
    pub(crate) fn experts_in_lines(
        &mut self,
        x: Mat<Act>,
        routes: Routes,
        first: u32,
        bank: &Bank,
        [gate_up, down]: [Lines; 2],
        inner: Mat<Act>,
        out: Mat<Act>,
    ) {
        let tile_rows = Tiling::new(gate_up.bits, self.machine().limits()).rows;
        let tiles = self.sort_pairs(routes, first, bank.experts, tile_rows);
        let args = [
            self.mat(x),
            x.stride.into(),
            tiles.sorted,
            tiles.tiles,
            routes.experts.cols.into(),
            self.slot(bank.gate_up.data),
            self.slot(bank.gate_up.scales),
            bank.gate_up.cols.into(),
            Bank::rows_of(bank.gate_up.format, bank.inter).into(),
            self.mat(inner),
            inner.stride.into(),
            bank.inter.into(),
        ];
        self.launch_in_lines("moe_gate_up", gate_up, &args);
        self.down_in_lines(inner, &tiles, &bank.down, down, out);
    }

    fn down_in_lines(
        &mut self,
        x: Mat<Act>,
        tiles: &Tiles,
        w: &Weight,
        lines: Lines,
        out: Mat<Act>,
    ) {
        let args = [
            self.mat(x),
            x.stride.into(),
            tiles.sorted,
            tiles.tiles,
            self.slot(w.data),
            self.slot(w.scales),
            w.cols.into(),
            Bank::rows_of(w.format, out.cols).into(),
            self.mat(out),
            out.stride.into(),
            out.cols.into(),
        ];
        self.launch_in_lines("moe_down", lines, &args);
    }

    /// A block on each multiprocessor, which takes tile after tile.
    fn launch_in_lines(&mut self, entry: &'static str, lines: Lines, args: &[Arg]) {
        let index = VARIANTS.iter().position(|of| *of == lines);
        let variant = index.expect("all groups are compiled") as u8;
        let (tiling, grid) = (
            Tiling::new(lines.bits, self.machine().limits()),
            [self.machine().limits().processors, 1, 1],
        );
        let shape = Shape { grid, block: 256, shared: tiling.shared(lines) };
        self.launch(Kernel { entry, variant }, shape, args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_every_gpu() {
        for (shared_max, four, eight) in [
            (99 << 10, (48, 3), (48, 2)),
            (163 << 10, (128, 3), (64, 3)),
            (227 << 10, (128, 3), (64, 3)),
        ] {
            let limits = Limits { processors: 1, shared_max };
            for (bits, (rows, stages)) in [(Bits::Four, four), (Bits::Eight, eight)] {
                assert_eq!(Tiling::new(bits, limits), Tiling { rows, stages });
            }
        }
        let tiling = Tiling { rows: 128, stages: 3 };
        assert_eq!(tiling.shared(VARIANTS[0]), 154_160, "SHARED_BYTES of the kernel's defaults");
    }
}
