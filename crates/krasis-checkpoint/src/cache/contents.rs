//! What a cache holds, and where in the file.

use super::{ENDING, PIECE};
use krasis_core::Bytes;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use twox_hash::XxHash3_64;

/// Sections begin at a multiple of a page, large ones at one of a huge page.
const PAGE: u64 = 4 << 10;
const HUGE_PAGE: u64 = 2 << 20;

/// A hash of a text.
pub fn digest(text: &str) -> u64 {
    XxHash3_64::oneshot(text.as_bytes())
}

/// What a whole file holds. Two files of equal contents are equal, bit for bit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// [`crate::Checkpoint::fingerprint`] of what the weights were made of.
    pub fingerprint: u64,
    /// How numbers lie in memory.
    pub layout: String,
    /// How they were rounded.
    pub quantiser: String,
    /// In the order of the file, which is that of the layers: any range of them lies together.
    pub sections: Vec<Section>,
}

/// The image of one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Of the weight: that of the first tensor it is made of, or of the bank's.
    pub name: String,
    /// Which of its slots.
    pub kind: Kind,
    /// The layer, if it belongs to one.
    pub layer: Option<u32>,
    /// How the numbers are stored.
    pub format: String,
    /// Outputs.
    pub rows: u32,
    /// Inputs.
    pub cols: u32,
    /// A hash of how the weight is made of tensors, which a new version may do otherwise.
    pub recipe: u64,
    /// Length.
    pub bytes: u64,
    /// Parts of equal length that are read alone, as experts of a bank are; 1 if it has none.
    pub parts: u32,
}

/// The slots of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Integers.
    Numbers,
    /// What they are multiplied by.
    Scales,
}

impl Contents {
    /// Bytes of all sections.
    pub fn bytes(&self) -> Bytes {
        self.sections.iter().map(|section| Bytes(section.bytes)).sum()
    }

    /// Says which contents these are.
    pub fn digest(&self) -> u64 {
        XxHash3_64::oneshot(&serde_json::to_vec(self).expect("contents are JSON"))
    }

    /// A name for a file of such weights: the same whatever checkpoint they come from and however
    /// they were rounded, so that what is out of date is replaced and does not stay.
    pub fn file_name(&self, label: &str) -> String {
        let shape =
            |s: &Section| format!("{} {:?} {} {}x{}\n", s.name, s.kind, s.format, s.rows, s.cols);
        let shapes: String = self.sections.iter().map(shape).collect();
        format!("{label}-{:08x}.{ENDING}", digest(&shapes) as u32)
    }

    /// Where each section lies behind a header of so many bytes.
    pub(super) fn places(&self, header: u64) -> Vec<Range<u64>> {
        let mut end = header;
        let place = |section: &Section| {
            let start =
                end.next_multiple_of(if section.bytes < HUGE_PAGE { PAGE } else { HUGE_PAGE });
            end = start + section.bytes;
            start..end
        };
        self.sections.iter().map(place).collect()
    }
}

impl Section {
    /// Bytes that have a checksum of their own: a part, or [`PIECE`] where there are none.
    pub fn piece(&self) -> u64 {
        match self.parts {
            0 | 1 => PIECE as u64,
            parts => (self.bytes / u64::from(parts)).max(1),
        }
    }

    /// Bytes that are read or written together: about [`PIECE`], and whole pieces.
    pub fn stretch(&self) -> u64 {
        (PIECE as u64 / self.piece()).max(1) * self.piece()
    }

    /// Pieces of it.
    pub(super) fn pieces(&self) -> usize {
        self.bytes.div_ceil(self.piece()) as usize
    }
}
