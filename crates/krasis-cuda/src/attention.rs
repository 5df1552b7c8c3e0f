//! The kernels of `kernels/attend`: the shapes of heads that there are some for, how their blocks
//! are built, and which of them a GPU takes. Other shapes have `kernels/attend.cu`.
//!
//! Blocks were chosen by measuring an H200; those behind them are for GPUs with less shared memory.

use crate::machine::{Kernel, Limits};
use krasis_core::KvDtype::{self, Bf16, F8E4M3};

/// One way to build a kernel.
#[derive(Debug)]
pub struct Block {
    /// Elements of a key's head and a value's, or of a latent.
    dim: u32,
    /// What keys and values are kept in.
    dtype: KvDtype,
    /// Query heads that make it better than those behind it.
    heads_min: u32,
    /// Its warps.
    warps: u32,
    /// Rows of a warp's product, in units of 16.
    tall: u32,
    /// How many of them share a multiprocessor.
    pub blocks: u32,
    /// Bytes of shared memory; the source asserts the same number.
    pub shared: u32,
    /// Further macros, as the head of the source explains them.
    macros: &'static str,
}

/// A kernel and how it is launched.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The kernel.
    pub kernel: Kernel,
    /// Its block.
    pub block: &'static Block,
}

/// An entry and all ways to build it, the best ones first.
pub struct Family {
    /// The entry.
    entry: &'static str,
    /// Macros of dimensions; `@` stands for [`Block::dim`].
    dims: &'static str,
    /// Its blocks.
    blocks: &'static [Block],
}

const fn block(
    (dim, dtype): (u32, KvDtype),
    (warps, tall, blocks): (u32, u32, u32),
    shared: u32,
    macros: &'static str,
) -> Block {
    Block { dim, dtype, heads_min: 0, warps, tall, blocks, shared, macros }
}

/// Many rows.
pub const PREFILL: Family = Family {
    entry: "attend_prefill",
    dims: "-DKEY_DIM=@ -DVALUE_DIM=@",
    blocks: &[
        block((64, Bf16), (4, 2, 2), 75_776, "-DKEYS=96"),
        block((64, Bf16), (4, 2, 1), 56_832, "-DKEYS=64"),
        block((128, Bf16), (4, 2, 2), 88_320, "-DKEYS=48"),
        block((128, Bf16), (4, 2, 1), 88_320, "-DKEYS=48"),
        block((256, Bf16), (8, 1, 1), 102_656, "-DKEYS=48 -DSTAY=1"),
        block((256, Bf16), (8, 1, 1), 68_608, "-DKEYS=32 -DSTAY=1"),
        block((64, F8E4M3), (4, 2, 1), 55_808, "-DKEYS=64"),
        block((128, F8E4M3), (8, 2, 1), 140_288, "-DKEYS=64"),
        block((128, F8E4M3), (4, 2, 1), 70_144, "-DKEYS=32"),
        block((256, F8E4M3), (8, 1, 1), 101_888, "-DKEYS=48 -DSTAY=1"),
        block((256, F8E4M3), (8, 1, 1), 68_608, "-DKEYS=32 -DSTAY=1"),
    ],
};

/// Few rows over long pasts.
pub const DECODE: Family = Family {
    entry: "attend_decode",
    dims: "-DKEY_DIM=@ -DVALUE_DIM=@",
    blocks: &[
        block((64, Bf16), (8, 1, 1), 149_760, "-DSTAGES=4"),
        block((64, Bf16), (8, 1, 1), 76_032, "-DSTAGES=2"),
        block((128, Bf16), (8, 1, 1), 143_616, "-DSTAGES=2"),
        block((128, Bf16), (4, 1, 1), 73_984, "-DSTAGES=2"),
        block((256, Bf16), (6, 1, 1), 211_200, "-DSTAGES=2"),
        block((256, Bf16), (4, 1, 1), 143_616, "-DSTAGES=2"),
        block((256, Bf16), (2, 1, 1), 76_032, "-DSTAGES=2"),
        block((64, F8E4M3), (8, 1, 1), 96_512, "-DSTAGES=4"),
        block((128, F8E4M3), (8, 1, 1), 164_096, "-DSTAGES=4"),
        block((128, F8E4M3), (4, 1, 1), 44_288, "-DSTAGES=2"),
        block((256, F8E4M3), (6, 1, 1), 172_032, "-DSTAGES=3"),
        block((256, F8E4M3), (4, 1, 1), 81_152, "-DSTAGES=2"),
    ],
};

/// Rotated elements of a key whose latent has `Block::dim`.
pub const LATENT_ROPE: u32 = 64;

/// Latent attention.
pub const LATENT: Family = Family {
    entry: "mla_attend_decode",
    dims: "-DLATENT=@ -DROPE=64",
    blocks: &[
        Block { heads_min: 64, ..block((512, Bf16), (8, 2, 1), 193_152, "-DKEYS=64 -DSTAGES=2") },
        block((512, Bf16), (8, 1, 1), 172_096, "-DKEYS=64 -DSTAGES=2 -DSTAY=1"),
        block((512, Bf16), (4, 1, 1), 95_552, "-DKEYS=32 -DSTAGES=2"),
        block((512, F8E4M3), (8, 1, 1), 172_096, "-DKEYS=64 -DSTAGES=2 -DSTAY=1"),
        block((512, F8E4M3), (4, 1, 1), 95_552, "-DKEYS=32 -DSTAGES=2"),
    ],
};

/// Latent attention of many rows, over keys of so many elements with the rotated ones and values of
/// [`EXPANDED_VALUE`].
pub const EXPANDED: Family = Family {
    entry: "mla_prefill",
    dims: "-DKEY_DIM=@ -DVALUE_DIM=128 -DROPE=64",
    blocks: &[
        block((192, Bf16), (8, 2, 1), 189_456, "-DKEYS=64"),
        block((192, Bf16), (8, 2, 1), 146_448, "-DKEYS=32"),
        block((192, Bf16), (4, 2, 1), 94_736, "-DKEYS=32"),
    ],
};

/// Elements of a value, and of a key but for its rotated ones, that there are expanded heads of.
pub const EXPANDED_VALUE: u32 = 128;

/// Elements of a latent that heads are expanded from.
pub const EXPANDED_LATENT: u32 = 512;

/// How `mla_expand` is built.
pub const EXPAND: &str = "-DLATENT=512 -DSHARED_BYTES=87552";

/// The shared memory that it takes.
pub const EXPAND_SHARED: u32 = 87_552;

/// Elements of a head's output that `attend_merge` is built for.
const MERGED: [u32; 4] = [64, 128, 256, 512];

/// What brings the splits of a head's output together.
pub fn merge(dim: u32) -> Kernel {
    let variant = MERGED.iter().position(|merged| *merged == dim);
    let variant = variant.unwrap_or_else(|| panic!("nothing merges heads of {dim}"));
    Kernel { entry: "attend_merge", variant: variant as u8 }
}

/// The macros of each of its variants.
pub fn merges() -> Vec<Vec<String>> {
    MERGED.iter().map(|dim| vec![format!("-DVALUE_DIM={dim}")]).collect()
}

impl Block {
    /// Threads.
    pub fn threads(&self) -> u32 {
        32 * self.warps
    }

    /// Rows of one product: those of a block whose warps share their rows.
    pub fn rows(&self) -> u32 {
        16 * self.tall
    }

    /// Rows of a block whose warps have rows of their own.
    pub fn rows_of_all(&self) -> u32 {
        self.warps * self.rows()
    }

    fn fits(&self, limits: Limits) -> bool {
        // The driver takes a KiB of each block, and one block may have all but that KiB.
        self.blocks * (self.shared + 1024) <= limits.shared_max + 1024
    }

    fn serves(&self, dim: u32, dtype: KvDtype, heads: u32) -> bool {
        (self.dim, self.dtype) == (dim, dtype) && heads >= self.heads_min
    }
}

impl Family {
    /// What a GPU of these limits takes for heads of `dim` elements: nothing if it has nothing.
    pub fn choose(&self, dim: u32, dtype: KvDtype, heads: u32, limits: Limits) -> Option<Choice> {
        let mut blocks = (0..).zip(self.blocks);
        let (variant, block) =
            blocks.find(|(_, block)| block.serves(dim, dtype, heads) && block.fits(limits))?;
        Some(Choice { kernel: Kernel { entry: self.entry, variant }, block })
    }

    /// The macros of each variant.
    pub fn defines(&self) -> Vec<Vec<String>> {
        let of = |block: &Block| {
            let dims = self.dims.replace('@', &block.dim.to_string());
            let words = dims.split(' ').chain(block.macros.split(' ')).map(str::to_owned);
            let numbers = [
                ("KV_F8", u32::from(block.dtype == F8E4M3)),
                ("WARPS", block.warps),
                ("TALL", block.tall),
                ("BLOCKS", block.blocks),
                ("SHARED_BYTES", block.shared),
            ];
            words.chain(numbers.map(|(name, number)| format!("-D{name}={number}"))).collect()
        };
        self.blocks.iter().map(of).collect()
    }

    /// Whether a GPU of these limits takes a variant for any number of heads.
    pub fn takes(&self, variant: u8, limits: Limits) -> bool {
        let block = &self.blocks[usize::from(variant)];
        let choice = self.choose(block.dim, block.dtype, block.heads_min, limits);
        choice.is_some_and(|choice| choice.kernel.variant == variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Limits = Limits { processors: 132, shared_max: 232_448 };
    const RTX_4090: Limits = Limits { processors: 128, shared_max: 101_376 };

    #[test]
    fn every_supported_gpu_has_a_block_for_every_shape() {
        for limits in [H200, RTX_4090, Limits { processors: 108, shared_max: 166_912 }] {
            for dtype in [Bf16, F8E4M3] {
                for dim in [64, 128, 256] {
                    assert!(PREFILL.choose(dim, dtype, 8, limits).is_some(), "{dim} {dtype:?}");
                    assert!(DECODE.choose(dim, dtype, 8, limits).is_some(), "{dim} {dtype:?}");
                }
                assert!(LATENT.choose(512, dtype, 16, limits).is_some(), "{dtype:?}");
            }
            assert!(EXPANDED.choose(192, Bf16, 16, limits).is_some());
            assert!(EXPAND_SHARED <= limits.shared_max);
        }
        assert!(PREFILL.choose(128, KvDtype::F32, 8, H200).is_none());
        assert!(DECODE.choose(96, Bf16, 8, H200).is_none());
    }

    #[test]
    fn the_best_block_that_fits_comes_first() {
        let shared = |family: &Family, dim, heads, limits| {
            family.choose(dim, Bf16, heads, limits).map(|choice| choice.block.shared)
        };
        assert_eq!(shared(&DECODE, 128, 8, H200), Some(143_616));
        assert_eq!(shared(&DECODE, 128, 8, RTX_4090), Some(73_984));
        assert_eq!(shared(&LATENT, 512, 128, H200), Some(193_152));
        assert_eq!(shared(&LATENT, 512, 16, H200), Some(172_096));
        assert_eq!(
            PREFILL.choose(128, Bf16, 8, RTX_4090).map(|choice| choice.block.blocks),
            Some(1)
        );
    }
}
