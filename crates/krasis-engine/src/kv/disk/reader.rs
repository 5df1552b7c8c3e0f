//! The thread that reads.

use super::segment::{self, Spot};
use super::{DiskError, Piece, Report, Signature};
use std::fs::File;
use std::path::Path;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

/// Contents that a request waits for.
pub struct Fetch {
    pub fetch: u64,
    /// Dead when nobody waits for it any more.
    pub wanted: Weak<()>,
    pub spots: Vec<Spot>,
}

/// Reads what is asked for until nobody can ask any more.
pub fn work(
    dir: &Path,
    signature: Signature,
    wishes: &Receiver<Fetch>,
    reports: &SyncSender<Report>,
) {
    let mut open = None;
    for Fetch { fetch, wanted, spots } in wishes {
        for (index, spot) in spots.into_iter().enumerate() {
            if wanted.strong_count() == 0 {
                break;
            }
            let start = Instant::now();
            let content = match read(dir, signature, &mut open, spot) {
                Ok(content) => Some(content),
                Err(error) => {
                    tracing::warn!("a prefix is computed again: {error}");
                    None
                }
            };
            let (missing, time) = (content.is_none(), start.elapsed());
            let piece = Piece { fetch, index, content, time };
            if reports.send(Report::Piece(piece)).is_err() {
                return;
            }
            if missing {
                break;
            }
        }
        open = None;
    }
}

/// Neighbours lie in one file, which stays open.
fn read(
    dir: &Path,
    signature: Signature,
    open: &mut Option<(u64, File)>,
    spot: Spot,
) -> Result<Vec<u8>, DiskError> {
    let path = segment::path(dir, signature, spot.segment);
    let file = match open {
        Some((segment, file)) if *segment == spot.segment => file,
        _ => {
            let file = File::open(&path).map_err(|cause| DiskError::io("read", &path, cause))?;
            &mut open.insert((spot.segment, file)).1
        }
    };
    segment::read(&path, file, spot)
}
