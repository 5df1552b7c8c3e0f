//! How fast a disk gives what is in a file.

use super::disk::Disk;
use krasis_core::from_a_page;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is read at a time, and by how many threads at once: as when experts are.
const BLOCK: u64 = 1 << 20;
const THREADS: usize = 8;

/// What is read in all, or for how long.
const BYTES: u64 = 512 << 20;
const TIME: Duration = Duration::from_millis(300);

/// Less than this says nothing of a disk.
const BYTES_MIN: u64 = 16 << 20;

/// Bytes a second from the disk, not from the file cache; nothing if a file of so many bytes is too short
/// to tell, or cannot be read.
pub(super) fn measure(disk: &Disk, bytes: u64) -> Option<f64> {
    let blocks = bytes / BLOCK;
    let wanted = blocks.min(BYTES / BLOCK);
    if bytes < BYTES_MIN {
        return None;
    }
    let (next, read) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    let work = || {
        let mut room = Vec::new();
        let block = from_a_page(&mut room, BLOCK as usize);
        while start.elapsed() < TIME {
            let number = next.fetch_add(1, Ordering::Relaxed);
            // All over the file, so that no disk reads ahead.
            if number >= wanted
                || disk.read_anew(number * (blocks / wanted) * BLOCK, block).is_err()
            {
                return;
            }
            read.fetch_add(BLOCK, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        (0..THREADS).for_each(|_| {
            scope.spawn(work);
        });
    });
    let read = read.into_inner();
    (read >= BYTES_MIN).then(|| read as f64 / start.elapsed().as_secs_f64())
}
