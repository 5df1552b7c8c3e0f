//! Files seen as memory: the only unsafe code of this crate.

use memmap2::{Mmap, UncheckedAdvice};
use std::fs::File;
use std::io;
use std::ops::Range;

/// Maps a whole file, read-only and without copying; pages come from disk when first touched and
/// the kernel may drop them again at any time, so a checkpoint larger than memory can be read.
///
/// A file that another program truncates while it is mapped makes the next touch of the lost pages
/// raise SIGBUS, which ends the process: the price of not copying. Download tools write elsewhere
/// and rename, which leaves the mapped file as it was. Nothing that outlives loading is mapped.
pub(crate) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is never written through, and Rust sees its bytes only as `u8`, for which
    // every value is valid. That nobody changes the file meanwhile cannot be proven here: a write
    // by another program would change weights under the reader, as it would change a file that is
    // being read; all that is decided from the bytes (lengths, offsets) is copied out of the header
    // once and checked against the mapping's length, so no such write leads out of bounds.
    unsafe { Mmap::map(file) }
}

/// A touched page brings its neighbours along, those of a tensor that was released before as well:
/// Linux 6.18 maps as much as lies together in its file cache, up to a huge page.
const AROUND: usize = 2 << 20;

/// Gives the memory behind some bytes of a mapped file back; they come again when touched.
pub(crate) fn release(bytes: &Mmap, range: Range<usize>) {
    let range = range.start.saturating_sub(AROUND)..bytes.len().min(range.end + AROUND);
    // SAFETY: the advice would discard what was written to private pages, and nothing is ever
    // written through our mappings; a page of the file is read again, whoever else looks at it.
    let advised = unsafe {
        bytes.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
    };
    // Refused, the pages stay until the kernel wants them.
    let _ = advised;
}
