//! Float matrices that lie in a core's caches: products, transposition, and memory for both.
//!
//! Every loop is written once over [`Lanes`], which is a vector register of one instruction set, and
//! compiled for each of them.

mod bf16;
mod lanes;
mod past;
mod prefetch;
mod product;
mod rows;
mod state;
mod stored;
mod transpose;

pub use bf16::{BF16_INPUTS, bf16_rows};
pub use lanes::Lanes;
pub use past::{GROUP, Groups, add_mixed, add_scores};
pub use prefetch::prefetch;
pub use product::{Block, add_product};
pub use rows::{X_TOGETHER, dot_rows};
pub use state::{fade_and_add, recall};
pub use transpose::{ROWS_TRANSPOSED, transpose};

use bytemuck::{Pod, Zeroable, cast_slice_mut};

/// Columns that matrices are padded to: two of the widest registers.
pub const PAD: usize = 32;

/// A cache line of floats.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Memory that an operation keeps from call to call, for fresh memory costs page faults. It starts on
/// a cache line, for a load that straddles two lines costs as much as two loads.
#[derive(Default)]
pub struct Floats(Vec<Line>);

impl Floats {
    /// `len` floats, whatever they are.
    pub fn take(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            // Twice as much as before at least: what grows with a context grows seldom.
            self.0 = vec![Line::zeroed(); lines.max(2 * self.0.len())];
        }
        &mut cast_slice_mut(&mut self.0)[..len]
    }
}
