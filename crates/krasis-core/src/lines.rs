//! The shared line layout: quantised weights as CPU vectors and GPU tensor cores both read them.
//!
//! A matrix `[N, K]` is stored as `[N/8][K/128][8 rows][line]`. A line holds 128 columns of one row:
//! 64 bytes for INT4, a cache line; 128 for INT8. Scales lie apart, `[N/8][K/128][scales of a
//! line][8 rows]` of BF16, and `weight = scale · integer`. What fills the last block of rows and the
//! last line of a row is zero.
//!
//! Inside a line, column `c = 32·slab + 8·quarter + 2·lane + odd` is byte `16·lane + 4·slab + 2·odd +
//! quarter/2` of plane `quarter % 2`. The planes of INT4 are the low and the high nibbles of 64
//! bytes; those of INT8 are 64 bytes each, one behind the other. So both formats are the same 2 · 64
//! bytes once they are unpacked, and:
//!
//! - A lane of a GPU quad reads 16 bytes of a plane. `(word >> 8·i) & 0x00ff00ff` (INT4: `(word >> 4·i)
//!   & 0x000f000f`) is a pair of neighbouring columns, a B register of `mma.m16n8k16` once it is
//!   converted, in the natural order of A. A word of the low plane with its word of the high plane are
//!   the B registers of `mma.m16n8k32` on bytes, A permuted like the CPU's activations.
//! - All bytes of a word belong to one row and one slab of 32 columns, so `vpdpbusd` and `vpmaddubsw`
//!   may add them up under a scale of 32, 64 or 128 columns; activations are permuted once per token.
//!
//! Integers are stored unsigned, 8 or 128 too high, because both instructions want one unsigned
//! factor. Kernels take that off again with sums of the activations.

use crate::quant::Format;
use half::bf16;
use std::fmt;

/// Rows of a block.
pub const ROWS: usize = 8;

/// Columns of a line.
pub const COLS: usize = 128;

/// Bytes of a plane: half the columns of an unpacked line.
pub const PLANE: usize = 64;

/// Width of the integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bits {
    /// -8 to 7.
    Four,
    /// -128 to 127.
    Eight,
}

/// A quantised format in line layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    /// Width of the integers.
    pub bits: Bits,
    /// Columns that share a scale: 32, 64 or 128.
    group: u32,
}

/// Where an integer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Byte of the matrix.
    pub byte: usize,
    /// Bits above it in the byte: 0, or 4 for a high nibble.
    pub shift: u32,
    /// Scale of the matrix.
    pub scale: usize,
}

impl Lines {
    /// The layout for scales of `group` columns, if there is one.
    pub const fn new(bits: Bits, group: u32) -> Option<Lines> {
        match group {
            32 | 64 | 128 => Some(Lines { bits, group }),
            _ => None,
        }
    }

    /// The line layout of the same integers and scales, if there is one.
    pub const fn of(format: Format) -> Option<Lines> {
        match format {
            Format::Int4 { group } => Lines::new(Bits::Four, group),
            Format::Int8 { group } => Lines::new(Bits::Eight, group),
            Format::Lines(lines) => Some(lines),
            Format::Float(_) => None,
        }
    }

    /// The row-major format of the same integers and scales.
    pub const fn as_rows(self) -> Format {
        match self.bits {
            Bits::Four => Format::Int4 { group: self.group },
            Bits::Eight => Format::Int8 { group: self.group },
        }
    }

    /// Columns that share a scale.
    pub const fn group(self) -> usize {
        self.group as usize
    }

    /// Bytes of a line.
    pub const fn line_bytes(self) -> usize {
        match self.bits {
            Bits::Four => PLANE,
            Bits::Eight => 2 * PLANE,
        }
    }

    /// Scales of a line.
    pub const fn line_scales(self) -> usize {
        COLS / self.group as usize
    }

    /// What is stored for an integer of zero.
    pub const fn zero(self) -> u8 {
        match self.bits {
            Bits::Four => 8,
            Bits::Eight => 128,
        }
    }

    /// A byte of zeros: two for INT4.
    const fn zeros(self) -> u8 {
        match self.bits {
            Bits::Four => 0x88,
            Bits::Eight => 0x80,
        }
    }

    /// Bytes of a block of [`ROWS`] rows.
    pub const fn block_bytes(self, cols: usize) -> usize {
        cols.div_ceil(COLS) * ROWS * self.line_bytes()
    }

    /// Scales of a block of [`ROWS`] rows.
    pub const fn block_scales(self, cols: usize) -> usize {
        cols.div_ceil(COLS) * ROWS * self.line_scales()
    }

    /// The layout: where the integer of a row and a column lies, and its scale.
    pub const fn place(self, cols: usize, row: usize, col: usize) -> Place {
        let (byte, plane) = place_in_line(col % COLS);
        let (byte, shift) = match self.bits {
            Bits::Four => (byte, 4 * plane as u32),
            Bits::Eight => (byte + plane * PLANE, 0),
        };
        let (block, line) = (row / ROWS * cols.div_ceil(COLS) + col / COLS, row % ROWS);
        let scale = block * self.line_scales() + col % COLS / self.group as usize;
        Place {
            byte: (block * ROWS + line) * self.line_bytes() + byte,
            shift,
            scale: scale * ROWS + line,
        }
    }

    /// The integer and the scale of one weight in a matrix.
    pub fn read(
        self,
        cols: usize,
        row: usize,
        col: usize,
        data: &[u8],
        scales: &[bf16],
    ) -> (i32, bf16) {
        let at = self.place(cols, row, col);
        let stored = match self.bits {
            Bits::Four => (data[at.byte] >> at.shift) & 15,
            Bits::Eight => data[at.byte],
        };
        (i32::from(stored) - i32::from(self.zero()), scales[at.scale])
    }

    /// Fills a block with zeros, as its rows will be written one by one or not at all.
    pub fn clear_block(self, data: &mut [u8], scales: &mut [bf16]) {
        data.fill(self.zeros());
        scales.fill(bf16::ZERO);
    }

    /// Writes one row, given as [`Self::as_rows`], into its cleared block.
    pub fn write_row(
        self,
        cols: usize,
        line: usize,
        row: (&[u8], &[bf16]),
        data: &mut [u8],
        scales: &mut [bf16],
    ) {
        let (integers, groups) = row;
        assert!(line < ROWS && data.len() == self.block_bytes(cols), "row {line} of a block");
        for (group, &scale) in groups.iter().enumerate() {
            scales[self.place(cols, line, group * self.group()).scale] = scale;
        }
        // Whole lines byte by byte of the result, the rest column by column.
        let whole = cols / COLS;
        for group in 0..whole {
            let to = &mut data[(group * ROWS + line) * self.line_bytes()..][..self.line_bytes()];
            match self.bits {
                Bits::Four => {
                    let from = &integers[group * COLS / 2..][..COLS / 2];
                    let nibble = |col: u8| (from[col as usize / 2] >> (col % 2 * 4)) & 15;
                    for (byte, to) in to.iter_mut().enumerate() {
                        *to = nibble(COLUMNS[0][byte]) | nibble(COLUMNS[1][byte]) << 4;
                    }
                }
                Bits::Eight => {
                    let from = &integers[group * COLS..][..COLS];
                    for (to, &col) in to.iter_mut().zip(COLUMNS.as_flattened()) {
                        *to = from[col as usize] ^ 0x80;
                    }
                }
            }
        }
        for col in whole * COLS..cols {
            let at = self.place(cols, line, col);
            match self.bits {
                Bits::Four => {
                    let nibble = (integers[col / 2] >> (col % 2 * 4)) & 15;
                    data[at.byte] = data[at.byte] & !(15 << at.shift) | nibble << at.shift;
                }
                Bits::Eight => data[at.byte] = integers[col] ^ 0x80,
            }
        }
    }
}

/// Byte and plane of a column in an unpacked line.
pub const fn place_in_line(col: usize) -> (usize, usize) {
    let (slab, quarter, lane, odd) = (col / 32, col / 8 % 4, col / 2 % 4, col % 2);
    (16 * lane + 4 * slab + 2 * odd + quarter / 2, quarter % 2)
}

/// The column of each byte of each plane: [`place_in_line`] the other way round.
const COLUMNS: [[u8; PLANE]; 2] = {
    let mut columns = [[0; PLANE]; 2];
    let mut col = 0;
    while col < COLS {
        let (byte, plane) = place_in_line(col);
        columns[plane][byte] = col as u8;
        col += 1;
    }
    columns
};

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in lines", self.as_rows())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every layout, with the tails that fill neither a line nor a block.
    fn each(check: impl Fn(Lines, usize, usize)) {
        for bits in [Bits::Four, Bits::Eight] {
            for group in [32, 64, 128] {
                for (rows, cols) in [(8, 128), (1, 1), (11, 200), (17, 384)] {
                    check(Lines::new(bits, group).unwrap(), rows, cols);
                }
            }
        }
    }

    #[test]
    fn every_weight_has_its_own_place_inside_the_matrix() {
        each(|lines, rows, cols| {
            let blocks = rows.div_ceil(ROWS);
            let mut seen = std::collections::HashSet::new();
            for row in 0..rows {
                for col in 0..cols {
                    let at = lines.place(cols, row, col);
                    assert!(at.byte < blocks * lines.block_bytes(cols), "{lines}");
                    assert!(at.scale < blocks * lines.block_scales(cols), "{lines}");
                    assert!(seen.insert((at.byte, at.shift)), "{lines}: {row}, {col} twice");
                }
            }
        });
    }

    #[test]
    fn a_word_of_int4_is_two_pairs_of_neighbours_per_step_of_sixteen() {
        let lines = Lines::new(Bits::Four, 128).unwrap();
        // Nibbles p0 to p7 of the word of lane 1 and slab 2, from the lowest.
        let columns = [0, 8, 16, 24, 1, 9, 17, 25].map(|c| 32 * 2 + 2 + c);
        for (p, col) in columns.into_iter().enumerate() {
            let at = lines.place(128, 0, col);
            assert_eq!((at.byte, at.shift), (4 * (4 + 2) + p / 2, p as u32 % 2 * 4), "{col}");
        }
    }

    #[test]
    fn rows_that_are_written_are_read_and_the_rest_is_zero() {
        each(|lines, rows, cols| {
            let format = lines.as_rows();
            let (bytes, groups) = (format.row_bytes(cols as u32), format.row_scales(cols as u32));
            let row = |row: u64| -> (Vec<u8>, Vec<bf16>) {
                let data = (0..bytes).map(|i| ((i + 7) * (row + 3) * 37 % 251) as u8).collect();
                let scales = (0..groups).map(|g| bf16::from_f32((g as f32 + 1.0) - row as f32));
                (data, scales.collect())
            };
            let (each, each_scales) = (lines.block_bytes(cols), lines.block_scales(cols));
            let blocks = rows.div_ceil(ROWS);
            let mut data = vec![0; blocks * each];
            let mut scales = vec![bf16::NAN; blocks * each_scales];
            let parts = data.chunks_exact_mut(each).zip(scales.chunks_exact_mut(each_scales));
            for (block, (data, scales)) in parts.enumerate() {
                lines.clear_block(data, scales);
                for line in 0..ROWS.min(rows - block * ROWS) {
                    let (integers, groups) = row((block * ROWS + line) as u64);
                    lines.write_row(cols, line, (&integers, &groups), data, scales);
                }
            }
            for at in 0..blocks * ROWS {
                let (integers, groups) = row(at as u64);
                for col in 0..cols.next_multiple_of(COLS) {
                    let wanted = match lines.bits {
                        _ if at >= rows || col >= cols => 0,
                        Bits::Four => i32::from((integers[col / 2] >> (col % 2 * 4)) & 15) - 8,
                        Bits::Eight => i32::from(integers[col] as i8),
                    };
                    // Padding columns are columns of a wider matrix with as many lines.
                    let padded = cols.next_multiple_of(COLS);
                    let (integer, scale) = lines.read(padded, at, col, &data, &scales);
                    assert_eq!(integer, wanted, "{lines}: row {at}, column {col}");
                    if at < rows && col < cols {
                        assert_eq!(scale, groups[col / lines.group()], "{lines}: {at}, {col}");
                    }
                }
            }
        });
    }
}
