//! Where a value lives: typed ranges of a device's arena, without lifetime or device.
//!
//! A slot is planned before memory exists and copied freely; it means nothing without its device.
//! The dry run checks what lifetimes would have: overlaps and reads of values never written.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

/// Element type of activations, chosen by the device: f32 on Reference and Cpu, BF16 on CUDA.
#[derive(Clone, Copy, Debug)]
pub struct Act;

/// `len` elements of type `T` from byte `start` of the arena.
pub struct Slot<T> {
    /// Byte offset in the arena, aligned to [`crate::arena::ALIGN`].
    pub start: u64,
    /// Elements.
    pub len: u64,
    element: PhantomData<fn() -> T>,
}

impl<T> Slot<T> {
    /// Nothing: what an absent optional buffer is.
    pub const EMPTY: Slot<T> = Slot { start: 0, len: 0, element: PhantomData };

    /// `len` elements from byte `start`.
    pub const fn new(start: u64, len: u64) -> Slot<T> {
        Slot { start, len, element: PhantomData }
    }

    /// Whether it holds no element.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }
}

impl<T: bytemuck::Pod> Slot<T> {
    /// The same memory as bytes.
    pub const fn bytes(self) -> Slot<u8> {
        Slot::new(self.start, self.len * size_of::<T>() as u64)
    }
}

impl Slot<Act> {
    /// The same memory on a device whose activations are f32.
    pub const fn floats(self) -> Slot<f32> {
        Slot::new(self.start, self.len)
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Slot<T> {}
impl<T> PartialEq for Slot<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.start, self.len) == (other.start, other.len)
    }
}
impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.len)
    }
}

/// A row-major matrix in a slot, or some columns of one. Its rows may be fewer than were planned: a
/// step with few tokens uses the first rows of its buffers.
pub struct Mat<T> {
    /// The memory of the whole matrix.
    pub at: Slot<T>,
    /// Rows in use: tokens, mostly.
    pub rows: u32,
    /// Elements of a row that belong to this view.
    pub cols: u32,
    /// Elements from one row to the next.
    pub stride: u32,
    /// Elements of a row before the view's first.
    pub first_col: u32,
}

impl<T> Mat<T> {
    /// A whole matrix that fills its slot.
    pub fn new(at: Slot<T>, rows: u32, cols: u32) -> Mat<T> {
        assert_eq!(at.len, u64::from(rows) * u64::from(cols), "a matrix fills its slot");
        Mat { at, rows, cols, stride: cols, first_col: 0 }
    }

    /// The first `rows` rows.
    pub fn first(self, rows: u32) -> Mat<T> {
        assert!(rows <= self.rows, "{rows} rows wanted of a buffer of {}", self.rows);
        Mat { rows, ..self }
    }

    /// Columns `first..first + cols` of every row.
    pub fn cols(self, first: u32, cols: u32) -> Mat<T> {
        assert!(first + cols <= self.cols, "columns {first}+{cols} of {}", self.cols);
        Mat { cols, first_col: self.first_col + first, ..self }
    }

    /// Where row `row` of the view lies among the slot's elements.
    pub fn row_range(self, row: u32) -> Range<usize> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let first = row as usize * self.stride as usize + self.first_col as usize;
        first..first + self.cols as usize
    }

    /// The slot of a view that is whole rows: `rows · cols` elements without gaps.
    pub fn whole(self) -> Slot<T> {
        assert!(self.first_col == 0 && self.cols == self.stride, "{self:?} has gaps");
        Slot::new(self.at.start, u64::from(self.rows) * u64::from(self.cols))
    }

    /// Elements in use.
    pub const fn len(self) -> usize {
        self.rows as usize * self.cols as usize
    }

    /// Whether no element is in use.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl Mat<Act> {
    /// The same without its first rows, on a device whose activations take `act_bytes`.
    pub fn from_row(self, first: u32, act_bytes: u64) -> Mat<Act> {
        assert!(first <= self.rows, "row {first} of {}", self.rows);
        let skipped = u64::from(first) * u64::from(self.stride);
        let at = Slot::new(self.at.start + skipped * act_bytes, self.at.len - skipped);
        Mat { at, rows: self.rows - first, ..self }
    }
}

impl<T> Clone for Mat<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Mat<T> {}
impl<T> fmt::Debug for Mat<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}x{} at {:?}]", self.rows, self.cols, self.at)
    }
}
