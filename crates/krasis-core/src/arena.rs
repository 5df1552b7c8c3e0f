//! The plan of one arena: a bump allocator that hands out slots before any memory exists.

use crate::bytes::Bytes;
use crate::slot::{Act, Mat, Slot};

/// Alignment of every slot: a cache line, and the widest vector load.
pub const ALIGN: u64 = 64;

/// Alignment of slots that are at least [`PAGED`] long: a disk writes there by itself.
const PAGE: u64 = 4 << 10;

/// Beside so much, what is skipped for a page is little.
const PAGED: u64 = 64 << 10;

/// `len` bytes in `room`, which begin at a page as large slots do.
pub fn from_a_page(room: &mut Vec<u8>, len: usize) -> &mut [u8] {
    room.resize(len + PAGE as usize, 0);
    let skip = room.as_ptr().align_offset(PAGE as usize);
    &mut room[skip..][..len]
}

/// Lays slots out one behind the other. The arena is then allocated once, `Layout::bytes` long.
#[derive(Clone, Debug)]
pub struct Layout {
    end: u64,
    act_bytes: u64,
}

impl Layout {
    /// An empty arena of a device whose activations take `act_bytes` each.
    pub fn new(act_bytes: u32) -> Layout {
        Layout { end: 0, act_bytes: u64::from(act_bytes) }
    }

    /// Room for `len` elements of `T`.
    pub fn slot<T>(&mut self, len: u64) -> Slot<T> {
        Slot::new(self.reserve(len, size_of::<T>() as u64), len)
    }

    /// Room for a matrix of `T`.
    pub fn mat<T>(&mut self, rows: u32, cols: u32) -> Mat<T> {
        Mat::new(self.slot(u64::from(rows) * u64::from(cols)), rows, cols)
    }

    /// Room for a matrix of activations.
    pub fn act(&mut self, rows: u32, cols: u32) -> Mat<Act> {
        let len = u64::from(rows) * u64::from(cols);
        Mat::new(Slot::new(self.reserve(len, self.act_bytes), len), rows, cols)
    }

    /// Bytes of one activation.
    pub const fn act_bytes(&self) -> u64 {
        self.act_bytes
    }

    /// What has been laid out so far.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.end)
    }

    fn reserve(&mut self, len: u64, element_bytes: u64) -> u64 {
        let bytes = len.checked_mul(element_bytes).expect("a slot fits the address space");
        let start = self.end.next_multiple_of(if bytes < PAGED { ALIGN } else { PAGE });
        self.end = start.checked_add(bytes).expect("the arena fits the address space");
        self.end = self.end.next_multiple_of(ALIGN);
        start
    }
}

#[cfg(test)]
mod tests {
    use super::{ALIGN, Layout, PAGE, PAGED};

    #[test]
    fn slots_are_aligned_and_disjoint() {
        let mut layout = Layout::new(4);
        let bytes = layout.slot::<u8>(3);
        let floats = layout.mat::<f32>(2, 5);
        let acts = layout.act(3, 7);
        assert!(bytes.start.is_multiple_of(ALIGN));
        assert!(floats.at.start >= bytes.start + 3 && floats.at.start.is_multiple_of(ALIGN));
        assert!(acts.at.start >= floats.at.start + 40);
        assert!(layout.bytes().0 >= acts.at.start + 84);
        let large = layout.slot::<u8>(PAGED);
        assert!(large.start >= acts.at.start + 84 && large.start.is_multiple_of(PAGE));
    }
}
