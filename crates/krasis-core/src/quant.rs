//! Weight formats and the bytes they take.
//!
//! A weight is a row-major matrix of `rows` outputs by `cols` inputs. Quantised rows are cut into
//! groups of `group` inputs, the last one shorter if need be; each group has one BF16 scale, and
//! `weight = scale · integer` (symmetric). INT4 keeps `integer + 8` in a nibble, even columns low.
//! That is how checkpoints are read and quantised; what kernels multiply is [`crate::lines`].

use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::lines::{self, Lines};
use crate::slot::Slot;
use half::bf16;
use std::fmt;

/// Names where numbers lie in all formats and in a bank of experts. Caches carry it: a change of
/// any place needs another, which `krasis-engine/tests/cache.rs` finds out.
pub const LAYOUT: &str = "layout 1";

/// How the numbers of a weight are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One of the checkpoint's float types, unchanged.
    Float(DType),
    /// Signed bytes with a scale per group.
    Int8 {
        /// Inputs that share a scale.
        group: u32,
    },
    /// Nibbles, 8 too high, with a scale per group.
    Int4 {
        /// Inputs that share a scale.
        group: u32,
    },
    /// Either of them, eight rows side by side.
    Lines(Lines),
}

impl Format {
    /// Rows that are stored together: a weight's rows are a multiple of it, and so is where a part
    /// of its rows may begin.
    pub const fn rows_together(self) -> u32 {
        match self {
            Format::Lines(_) => lines::ROWS as u32,
            _ => 1,
        }
    }

    /// How one row of it is quantised before rows are stored together.
    pub const fn row_format(self) -> Format {
        match self {
            Format::Lines(lines) => lines.as_rows(),
            other => other,
        }
    }

    /// The line layout of the same numbers, where there is one: floats have none, and neither have
    /// groups that do not divide a line.
    pub fn in_lines(self) -> Format {
        Lines::of(self).map_or(self, Format::Lines)
    }

    /// Bytes of one row's numbers, scales aside.
    pub fn row_bytes(self, cols: u32) -> u64 {
        let cols = u64::from(cols);
        match self {
            Format::Float(dtype) => cols * dtype.bytes() as u64,
            Format::Int8 { .. } => cols,
            Format::Int4 { .. } => cols.div_ceil(2),
            Format::Lines(lines) => (lines.block_bytes(cols as usize) / lines::ROWS) as u64,
        }
    }

    /// Scales of one row; 0 for floats.
    pub fn row_scales(self, cols: u32) -> u32 {
        match self {
            Format::Float(_) => 0,
            Format::Int8 { group } | Format::Int4 { group } => cols.div_ceil(group),
            Format::Lines(lines) => (lines.block_scales(cols as usize) / lines::ROWS) as u32,
        }
    }

    /// Bytes of a whole matrix, scales included.
    pub fn bytes(self, rows: u32, cols: u32) -> Bytes {
        let scales = u64::from(self.row_scales(cols)) * size_of::<bf16>() as u64;
        let rows = rows.next_multiple_of(self.rows_together());
        Bytes(u64::from(rows) * (self.row_bytes(cols) + scales))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::Float(dtype) => dtype.fmt(f),
            Format::Int8 { group } => write!(f, "INT8 (groups of {group})"),
            Format::Int4 { group } => write!(f, "INT4 (groups of {group})"),
            Format::Lines(lines) => lines.fmt(f),
        }
    }
}

/// A loaded weight: where its numbers lie in the device's arena, and how to read them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weight {
    /// How the numbers are stored.
    pub format: Format,
    /// Outputs.
    pub rows: u32,
    /// Inputs.
    pub cols: u32,
    /// `format.row_bytes(cols)` bytes for each row, up to whole [`Format::rows_together`].
    pub data: Slot<u8>,
    /// `format.row_scales(cols)` scales for each row, up to the same; empty for floats.
    pub scales: Slot<bf16>,
}

impl Weight {
    /// Rows `first..first + rows`: one expert of a bank.
    pub fn rows(&self, first: u32, rows: u32) -> Weight {
        assert!(first + rows <= self.rows, "rows {first}+{rows} of {}", self.rows);
        let (bytes, scales) = (self.format.row_bytes(self.cols), self.format.row_scales(self.cols));
        let together = self.format.rows_together();
        assert!(first.is_multiple_of(together), "row {first} lies inside a block of {together}");
        let stored = rows.next_multiple_of(together);
        let part = |start: u64, each: u64, size: usize| {
            (start + u64::from(first) * each * size as u64, u64::from(stored) * each)
        };
        let (data, data_len) = part(self.data.start, bytes, 1);
        let (scale, scale_len) = part(self.scales.start, u64::from(scales), size_of::<bf16>());
        Weight {
            rows,
            data: Slot::new(data, data_len),
            scales: if scales == 0 { Slot::EMPTY } else { Slot::new(scale, scale_len) },
            ..*self
        }
    }
}
