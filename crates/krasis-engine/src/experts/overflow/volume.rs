//! Where on the disk each expert lies.

use krasis_checkpoint::cache::{CacheError, CacheFile};
use krasis_ops::Bank;
use std::sync::Arc;

/// The sections of a bank in a cache: numbers and scales of gate and up, and of down; nothing for what it
/// does not have. The order is that of [`Bank::slots`].
pub type BankSections = [Option<usize>; 4];

/// Experts in a cache.
pub struct Volume {
    file: Arc<CacheFile>,
    /// Of each layer with experts.
    sections: Vec<BankSections>,
    /// Bytes of one expert, by place.
    bytes: [u64; 4],
}

/// A piece of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    section: usize,
    first: u64,
    bytes: u64,
}

impl Volume {
    /// `sections` of each layer with experts, all of which are like those of `bank`.
    pub fn new(file: Arc<CacheFile>, sections: Vec<BankSections>, bank: &Bank) -> Volume {
        Volume { file, sections, bytes: bank.slots(0, 1).map(|slot| slot.len) }
    }

    /// The parts of an expert, by place.
    pub(super) fn parts(&self, layer: u32, expert: u32) -> impl Iterator<Item = (usize, Part)> {
        let of = move |(place, section): (usize, Option<usize>)| {
            let bytes = self.bytes[place];
            Some((place, Part { section: section?, first: u64::from(expert) * bytes, bytes }))
        };
        self.sections[layer as usize].into_iter().enumerate().filter_map(of)
    }

    /// Reads a part, compares it with its checksum, and leaves nothing of it in the file cache: memory that
    /// the system needs would go there.
    pub(super) fn read(&self, part: Part, bytes: &mut [u8]) -> Result<(), CacheError> {
        let Part { section, first, .. } = part;
        self.file.read(section, first, bytes)?;
        self.file.forget(section, first, part.bytes);
        Ok(())
    }

    /// Bytes a second that the disk gives.
    pub fn rate(&self) -> Option<f64> {
        self.file.rate()
    }
}
