//! Products of few BF16 rows, as fast as memory delivers the weight: the launches of `kernels/vector`.

use crate::activation::Activation;
use crate::cuda::Cuda;
use crate::lines::{self, Tiles};
use crate::machine::{Arg, Kernel, Limits, Machine, Shape};
use crate::ops::sortable;
use krasis_core::lines::{Bits, COLS, Lines};
use krasis_core::{Act, DType, Format, Mat, Weight};
use krasis_ops::{Bank, Routes};

/// Rows up to which every product of a weight that the kernels know is theirs, so that there are but
/// two orders in which a row may be summed. Up to here a step takes the time in which experts are
/// read, and an expert rarely has more than one tile of [`PAIRS`].
pub(crate) const FEW_ROWS: u32 = 64;

/// Pairs of an expert that meet it at once: columns of a product of matrices. So many tokens have no
/// more for any expert, and need not be sorted, which takes a launch.
const PAIRS: u32 = 8;

/// Rows that meet a weight at once in `linear_more`; `linear_few` takes eight.
const ROWS: u32 = 32;

/// What the kernels are compiled for.
pub(crate) const VARIANTS: [Format; 7] = [
    Format::Lines(lines::VARIANTS[0]),
    Format::Lines(lines::VARIANTS[1]),
    Format::Lines(lines::VARIANTS[2]),
    Format::Lines(lines::VARIANTS[3]),
    Format::Lines(lines::VARIANTS[4]),
    Format::Lines(lines::VARIANTS[5]),
    Format::Float(DType::Bf16),
];

/// Warps of a block, and outputs of a tile.
const WARPS: u32 = 8;
const TILE: u32 = 16;

/// Warps that keep the memory of a large GPU busy, with a few KiB under way each.
const BUSY_WARPS: u32 = 1536;

/// How a weight is multiplied, on a GPU of these limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Few {
    /// Index of its format.
    variant: u8,
    /// Bits of a weight, and columns that a warp takes at a time.
    bits: u32,
    unit_cols: u32,
    /// Scales of a unit's columns in one row.
    unit_scales: u32,
    /// Units of a warp that are on their way.
    stages: u32,
    /// Bytes of all units in shared memory.
    ring_bytes: u32,
    cols: u32,
    limits: Limits,
}

impl Few {
    /// For a weight of so many columns, if a row of activations fits into shared memory.
    pub fn new(format: Format, cols: u32, limits: Limits) -> Option<Few> {
        let variant = VARIANTS.iter().position(|of| *of == format)? as u8;
        let (bits, unit_cols, scales) = match format {
            Format::Lines(of) => (bits(of), COLS as u32, of.line_scales() as u32),
            _ => (16, 64, 0),
        };
        let stages = stages(limits);
        // UNIT_BYTES and SLOT_BYTES of the kernels.
        let ring_bytes = WARPS * stages * (unit_cols * TILE * bits / 8 + 32 * scales);
        let few =
            Few { variant, bits, unit_cols, unit_scales: scales, stages, ring_bytes, cols, limits };
        few.shared(1).le(&limits.shared_max).then_some(few)
    }

    /// Bytes of shared memory for so many rows, up to [`ROWS`].
    fn shared(self, rows: u32) -> u32 {
        let apart = if self.bits == 16 { 64 } else { 16 };
        let units = self.cols.div_ceil(self.unit_cols);
        let row = units * self.unit_cols * 2 + apart;
        let eighths = rows.div_ceil(8).next_power_of_two();
        let tile_sums = eighths * WARPS * 8 * 20 * 4;
        // Up to four rows of INT4 have sums of two tiles, and blocks may have fewer than is launched for.
        let bytes = |turns, rows| self.ring_bytes + turns * tile_sums + rows * row;
        match self.bits {
            4 => bytes(2, rows.min(4)).max(bytes(1, rows)),
            _ => bytes(1, rows),
        }
    }

    /// The most rows up to `rows` that fit.
    fn rows_together(self, rows: u32) -> u32 {
        let mut fitting = (1..=rows).rev();
        fitting.find(|rows| self.shared(*rows) <= self.limits.shared_max).expect("one row fits")
    }

    /// Warps that share each of `tiles` tiles that one row meets, and each others' sums: no more than
    /// make [`BUSY_WARPS`], for what they share takes time, and that have about as much to do. A
    /// function of the weight's shape, as it decides the order of a sum.
    fn split(self, tiles: u32) -> u32 {
        let units = self.cols.div_ceil(self.unit_cols);
        let idle = |split: u32| units.next_multiple_of(split) - units;
        let even = |split: &u32| 10 * idle(*split) <= units.next_multiple_of(*split);
        let splits = || [1, 2, 4, 8].into_iter().filter(even);
        // BF16 leaves time enough for it.
        let enough = splits().find(|split| self.bits < 16 && tiles * split >= BUSY_WARPS);
        enough.or(splits().next_back()).unwrap_or(1)
    }

    /// Tiles of each team in `matrices` matrices of so many: what makes all blocks fit at once, as
    /// those of a second round would be alone with their latency; or as many as make rounds even, and
    /// about 64 KiB of each team, if there are many. More, if that makes rows of activations no more
    /// than half the bytes of the weights that they meet, and leaves two blocks for each multiprocessor.
    /// Blocks have `rows` rows usually, and room for `rows_max`.
    fn across(self, teams: u32, [rows, rows_max]: [u32; 2], tiles: u32, matrices: u32) -> u32 {
        // What BLOCKS of the kernels says, and shared memory, of which each block takes one KiB more.
        let blocks = match (rows_max <= 8, self.bits == 4 && self.unit_scales > 1) {
            (true, false) => 4,
            (true, true) => 3,
            (false, false) => 2,
            (false, true) => 1,
        };
        let together = (self.limits.shared_max + 1024) / (self.shared(rows_max) + 1024);
        let fitting = together.clamp(1, blocks);
        let round = teams * fitting * self.limits.processors;
        let most = if self.bits == 4 { 8 } else { 4 };
        let all = tiles * matrices;
        let even = all.div_ceil(round * all.div_ceil(round * most));
        let reuse = (2 * rows).div_ceil(self.bits * teams);
        let reuse = reuse.min(all / (teams * self.limits.processors * 2));
        even.max(reuse).min(tiles.div_ceil(teams))
    }
}

fn bits(of: Lines) -> u32 {
    match of.bits {
        Bits::Four => 4,
        Bits::Eight => 8,
    }
}

/// Shared memory of blocks that need `shared` bytes: as much as keeps a multiprocessor from taking more of
/// them than their number asks for. Blocks that begin while an earlier kernel runs are put where there is
/// room, and would fill the first multiprocessors while others stay idle.
fn spread(limits: Limits, grid: [u32; 3], shared: u32) -> u32 {
    let each = grid.iter().product::<u32>().div_ceil(limits.processors);
    // Of a multiprocessor, of which each block takes one KiB more.
    let all = limits.shared_max + 1024;
    let alone = all / (each + 1) + 1;
    shared.max(alone.next_multiple_of(128) - 1024).min(limits.shared_max)
}

/// GPUs with 99 KiB have room for fewer.
fn stages(limits: Limits) -> u32 {
    if limits.shared_max < 160 << 10 { 3 } else { 4 }
}

/// The macros of each variant.
pub(crate) fn defines(limits: Limits) -> Vec<Vec<String>> {
    let each = VARIANTS.iter().map(|format| match format {
        Format::Lines(of) => {
            vec![format!("-DBITS={}", bits(*of)), format!("-DGROUP={}", of.group())]
        }
        _ => vec!["-DBITS=16".to_owned()],
    });
    let stages = format!("-DSTAGES={}", stages(limits));
    each.map(|defines| [defines, vec![stages.clone()]].concat()).collect()
}

impl<A: Activation, M: Machine> Cuda<A, M> {
    /// How the kernels here multiply `x` with `w`, if they can: `x` is read by 16 bytes, and scales
    /// must be below 2⁸, which weights of a model are.
    pub(crate) fn few(&self, x: Mat<Act>, w: &Weight) -> Option<Few> {
        let bf16 = A::NAME == half::bf16::NAME;
        if !bf16 || !w.cols.is_multiple_of(8) || !self.aligned(x) {
            return None;
        }
        Few::new(w.format, w.cols, self.machine().limits())
    }

    /// `out = x · wᵀ + bias` of each of `heads` blocks of columns with its own rows of `w`.
    pub(crate) fn linear_few(
        &mut self,
        few: Few,
        x: Mat<Act>,
        w: &Weight,
        bias: Option<&Weight>,
        heads: u32,
        out: Mat<Act>,
    ) {
        let outputs = w.rows / heads;
        let parts = x.rows.div_ceil(few.rows_together(ROWS.min(x.rows)));
        let each = x.rows.div_ceil(parts);
        let tiles = outputs.div_ceil(TILE);
        let split = few.split(tiles * heads);
        let across = few.across(WARPS / split, [each, each], tiles, parts * heads);
        let args = [
            self.mat(x),
            x.stride.into(),
            self.slot(w.data),
            self.slot(w.scales),
            w.cols.into(),
            bias.map_or(Arg::NULL, |bias| self.vector(bias)),
            self.mat(out),
            out.stride.into(),
            x.rows.into(),
            each.into(),
            outputs.into(),
            split.into(),
            across.into(),
        ];
        let grid = [parts, tiles.div_ceil(across * WARPS / split), heads];
        let entry = if each <= 8 { "linear_few" } else { "linear_more" };
        self.launch_few(entry, few, grid, each, &args);
    }

    /// The routed experts of up to [`FEW_ROWS`] tokens.
    pub(crate) fn experts_few(
        &mut self,
        few: (Few, Few),
        x: Mat<Act>,
        routes: Routes,
        bank: &Bank,
        inner: Mat<Act>,
        out: Mat<Act>,
    ) {
        let together = PAIRS.min(x.rows);
        let together = few.0.rows_together(together).min(few.1.rows_together(together));
        if x.rows == together {
            let tiles = Tiles { sorted: Arg::NULL, tiles: Arg::NULL, most: out.rows };
            return self.experts_of_tiles(few, x, routes, tiles, together, bank, inner, out);
        }
        for (first, bank) in sortable(bank) {
            let tiles = self.sort_pairs(routes, first, bank.experts, together);
            self.experts_of_tiles(few, x, routes, tiles, together, &bank, inner, out);
        }
    }

    /// Up to `together` pairs of an expert at once: those of a tile, or without tiles any.
    fn experts_of_tiles(
        &mut self,
        (gate_up, down): (Few, Few),
        x: Mat<Act>,
        routes: Routes,
        Tiles { sorted, tiles, most: matrices }: Tiles,
        together: u32,
        bank: &Bank,
        inner: Mat<Act>,
        out: Mat<Act>,
    ) {
        let (chosen, top_k) = (self.slot(routes.experts.whole()), routes.experts.cols);
        // Most tiles are far from full.
        let rows = [together.div_ceil(2), together];
        let halves = bank.inter.div_ceil(8);
        let split = gate_up.split(halves * top_k);
        let across = gate_up.across(WARPS / split, rows, halves, matrices);
        let args = [
            self.mat(x),
            x.stride.into(),
            chosen,
            sorted,
            tiles,
            together.into(),
            top_k.into(),
            self.slot(bank.gate_up.data),
            self.slot(bank.gate_up.scales),
            bank.gate_up.cols.into(),
            Bank::rows_of(bank.gate_up.format, bank.inter).into(),
            self.mat(inner),
            inner.stride.into(),
            bank.inter.into(),
            split.into(),
            across.into(),
        ];
        let grid = [halves.div_ceil(across * WARPS / split), matrices, 1];
        self.launch_few("gate_up_few", gate_up, grid, together, &args);
        let wide = out.cols.div_ceil(TILE);
        let split = down.split(wide * top_k);
        let across = down.across(WARPS / split, rows, wide, matrices);
        let args = [
            self.mat(inner),
            inner.stride.into(),
            chosen,
            sorted,
            tiles,
            together.into(),
            self.slot(bank.down.data),
            self.slot(bank.down.scales),
            bank.down.cols.into(),
            Bank::rows_of(bank.down.format, out.cols).into(),
            self.mat(out),
            out.stride.into(),
            out.cols.into(),
            split.into(),
            across.into(),
        ];
        let grid = [wide.div_ceil(across * WARPS / split), matrices, 1];
        self.launch_few("down_few", down, grid, together, &args);
    }

    fn launch_few(
        &mut self,
        entry: &'static str,
        few: Few,
        grid: [u32; 3],
        rows: u32,
        args: &[Arg],
    ) {
        let shared = spread(self.machine().limits(), grid, few.shared(rows));
        let shape = Shape { grid, block: WARPS * 32, shared };
        self.launch(Kernel { entry, variant: few.variant }, shape, args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Limits = Limits { processors: 132, shared_max: 227 << 10 };
    const SMALL: Limits = Limits { processors: 84, shared_max: 99 << 10 };

    fn int4(cols: u32) -> Few {
        Few::new(VARIANTS[0], cols, H200).unwrap()
    }

    #[test]
    fn warps_of_a_tile_have_as_much_to_do_as_each_other() {
        for (cols, split) in [(2048, 8), (768, 2), (1408, 4), (512, 4), (128, 1), (10_944, 8)] {
            assert_eq!(int4(cols).split(1), split, "{cols} columns");
        }
    }

    #[test]
    fn tiles_are_shared_no_more_than_keeps_memory_busy() {
        // A projection, the eight experts of a token of Qwen3-30B, and its head.
        for (tiles, split) in [(320, 8), (768, 2), (9496, 1)] {
            assert_eq!(int4(2048).split(tiles), split, "{tiles} tiles");
        }
    }

    #[test]
    fn a_tile_of_experts_fits_every_gpu() {
        for (format, cols, limits, rows) in [
            (VARIANTS[0], 2048, H200, 8),
            (VARIANTS[0], 2048, SMALL, 8),
            (VARIANTS[1], 7168, H200, 8),
            (VARIANTS[1], 7168, SMALL, 3),
            (VARIANTS[6], 10_944, H200, 7),
        ] {
            let few = Few::new(format, cols, limits).unwrap();
            assert_eq!(few.rows_together(PAIRS), rows, "{cols} columns of {format}");
        }
        assert_eq!(Few::new(VARIANTS[6], 65_536, SMALL), None, "nor does every row");
    }

    #[test]
    fn blocks_fit_at_once_or_are_many() {
        // The eight experts of a token of Qwen3-30B; its head for one row, and a projection for eight.
        assert_eq!(int4(2048).across(2, [1, 1], 96, 8), 1);
        assert_eq!(int4(768).across(4, [1, 1], 128, 8), 1);
        assert_eq!(int4(2048).across(8, [1, 1], 9496, 1), 3);
        assert_eq!(int4(2048).across(1, [8, 8], 1280, 1), 4);
        assert_eq!(int4(2048).across(1, [1, 1], 8, 1), 1);
    }
}
