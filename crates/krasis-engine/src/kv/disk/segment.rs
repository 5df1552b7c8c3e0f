//! A file of pages and states that were written together.
//!
//! ```text
//! magic | version | signature | tokens of a page | entries | checksum
//! kind | node | parent | first byte | bytes | checksum | tokens     (each entry)
//! content                                                            (of each, one behind the other)
//! ```
//!
//! All numbers are little-endian, of eight bytes but for tokens, which have four. The first checksum is
//! of everything before and behind it up to the content, the others are of each content. A file is
//! written under another name and renamed when it is whole.

use super::{DiskError, Signature};
use crate::kv::ram::Content;
use crate::kv::tree::{Kind, Node, ROOT};
use std::fs::{File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_64;

/// How the names of complete files end, and those of files that are being written.
pub const ENDING: &str = "prefix";
const UNFINISHED: &str = "part";

const MAGIC: [u8; 8] = *b"KRASISP\n";

/// Another format is another version; so is another meaning of what stands in it.
const VERSION: u64 = 1;

const HEADER: usize = 48;
const CHECKSUM: usize = HEADER - 8;

/// Where one content lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The file.
    pub segment: u64,
    at: u64,
    /// Length.
    pub bytes: u64,
    checksum: u64,
}

/// What is to be written of a node.
pub struct Item {
    /// Of which kind.
    pub kind: Kind,
    /// Whose.
    pub node: Node,
    /// The node before it.
    pub parent: Node,
    /// Those of its page.
    pub tokens: Vec<u32>,
    /// Page or state.
    pub content: Content,
}

/// What a file says that it has of a node.
#[derive(Debug)]
pub struct Listed {
    /// Of which kind.
    pub kind: Kind,
    /// Whose.
    pub node: Node,
    /// The node before it.
    pub parent: Node,
    /// Those of its page.
    pub tokens: Vec<u32>,
    /// Where it lies.
    pub spot: Spot,
}

/// The name of a file.
pub fn path(dir: &Path, signature: Signature, segment: u64) -> PathBuf {
    dir.join(format!("{:016x}-{segment:016x}.{ENDING}", signature.0))
}

/// The number of a file that is ours by its name.
pub fn number(path: &Path, signature: Signature) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(ENDING)?.strip_suffix('.')?;
    let (ours, segment) = name.split_once('-')?;
    let ours = u64::from_str_radix(ours, 16).ok()? == signature.0;
    u64::from_str_radix(segment, 16).ok().filter(|_| ours)
}

/// Whether a file was left by a process that did not finish it.
pub fn is_unfinished(path: &Path, signature: Signature) -> bool {
    path.extension().is_some_and(|ending| ending == UNFINISHED)
        && number(&path.with_extension(""), signature).is_some()
}

/// Bytes of the file that these are written to.
pub fn bytes_of(items: &[Item]) -> u64 {
    let entry = |item: &Item| (48 + 4 * item.tokens.len() + item.content.len()) as u64;
    HEADER as u64 + items.iter().map(entry).sum::<u64>()
}

/// Writes a file, and says where everything is in it.
pub fn write(
    dir: &Path,
    signature: Signature,
    segment: u64,
    items: &[Item],
) -> io::Result<Vec<Spot>> {
    let page = items.first().map_or(0, |item| item.tokens.len());
    let mut at = (HEADER + items.len() * (48 + 4 * page)) as u64;
    let (mut head, mut spots) = (Vec::with_capacity(at as usize), Vec::new());
    head.extend(MAGIC);
    for number in [VERSION, signature.0, page as u64, items.len() as u64, 0] {
        head.extend(number.to_le_bytes());
    }
    for item in items {
        let bytes = item.content.len() as u64;
        let checksum = XxHash3_64::oneshot(&item.content);
        let kind = item.kind as u64;
        for number in [kind, item.node.0, item.parent.0, at, bytes, checksum] {
            head.extend(number.to_le_bytes());
        }
        item.tokens.iter().for_each(|token| head.extend(token.to_le_bytes()));
        spots.push(Spot { segment, at, bytes, checksum });
        at += bytes;
    }
    let checksum = checksum(&head);
    head[CHECKSUM..HEADER].copy_from_slice(&checksum.to_le_bytes());
    let path = path(dir, signature, segment);
    let mut aside = path.clone().into_os_string();
    aside.push(".");
    aside.push(UNFINISHED);
    // What is in it was said in confidence.
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    let written = file
        .write_all(&head)
        .and_then(|()| items.iter().try_for_each(|item| file.write_all(&item.content)))
        .and_then(|()| file.sync_data())
        .and_then(|()| std::fs::rename(&aside, &path));
    if written.is_err() {
        // It may be the disk that is full.
        let _ = std::fs::remove_file(&aside);
    }
    written.map(|()| spots)
}

/// What a file says that it holds, as far as that can be told without reading all of it.
pub fn list(
    path: &Path,
    signature: Signature,
    segment: u64,
    page: usize,
) -> Result<Vec<Listed>, DiskError> {
    let cannot = |cause| DiskError::io("read", path, cause);
    let damaged = |what: &str| DiskError::Damaged { file: path.into(), what: what.into() };
    let file = File::open(path).map_err(cannot)?;
    let length = file.metadata().map_err(cannot)?.len();
    if length < HEADER as u64 {
        return Err(damaged("it is too short"));
    }
    let mut head = vec![0; HEADER];
    file.read_exact_at(&mut head, 0).map_err(cannot)?;
    let number = |bytes: &[u8], i: usize| u64::from_le_bytes(bytes.as_chunks::<8>().0[i]);
    if head[..8] != MAGIC {
        return Err(damaged("its first bytes are others"));
    }
    if number(&head, 1) != VERSION || number(&head, 2) != signature.0 {
        return Err(DiskError::Foreign { file: path.into() });
    }
    let (tokens, entries) = (number(&head, 3), number(&head, 4));
    let each = 48 + 4 * page;
    if tokens != page as u64 || entries > (length - HEADER as u64) / each as u64 {
        return Err(damaged("its header"));
    }
    head.resize(HEADER + entries as usize * each, 0);
    file.read_exact_at(&mut head[HEADER..], HEADER as u64).map_err(cannot)?;
    if checksum(&head) != number(&head, 5) {
        return Err(damaged("its header"));
    }
    let (mut all, mut end) = (Vec::new(), head.len() as u64);
    for entry in head[HEADER..].chunks_exact(each) {
        let [kind, node, parent, at, bytes, checksum] =
            [0, 1, 2, 3, 4, 5].map(|i| number(entry, i));
        let kind = [Kind::Page, Kind::State].into_iter().find(|&known| known as u64 == kind);
        let kind = kind.ok_or_else(|| damaged("an entry"))?;
        // Names count up, so no node is before itself.
        if at != end || parent >= node || bytes > length - end {
            return Err(damaged("an entry"));
        }
        end += bytes;
        let tokens = entry[48..].as_chunks().0.iter().map(|token| u32::from_le_bytes(*token));
        all.push(Listed {
            kind,
            node: Node(node),
            parent: if parent == 0 { ROOT } else { Node(parent) },
            tokens: tokens.collect(),
            spot: Spot { segment, at, bytes, checksum },
        });
    }
    if end == length { Ok(all) } else { Err(damaged("its length")) }
}

/// Reads one content of the file at `path`, which is open.
pub fn read(path: &Path, file: &File, spot: Spot) -> Result<Vec<u8>, DiskError> {
    let length = file.metadata().map_err(|cause| DiskError::io("read", path, cause))?.len();
    let damaged = || DiskError::Damaged { file: path.into(), what: format!("byte {} on", spot.at) };
    if spot.at + spot.bytes > length {
        return Err(damaged());
    }
    let mut content = vec![0; spot.bytes as usize];
    file.read_exact_at(&mut content, spot.at)
        .map_err(|cause| DiskError::io("read", path, cause))?;
    if XxHash3_64::oneshot(&content) == spot.checksum { Ok(content) } else { Err(damaged()) }
}

fn checksum(head: &[u8]) -> u64 {
    let mut hash = XxHash3_64::new();
    hash.write(&head[..CHECKSUM]);
    hash.write(&head[HEADER..]);
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    fn items() -> Vec<Item> {
        let item = |kind, node, bytes: usize| Item {
            kind,
            node: Node(node),
            parent: Node(node - 1),
            tokens: vec![7 * node as u32; 4],
            content: Arc::new((0..bytes).map(|at| (at * 31 % 253) as u8).collect()),
        };
        vec![item(Kind::Page, 1, 100), item(Kind::Page, 2, 100), item(Kind::State, 2, 333)]
    }

    /// No changed bit and no missing byte goes unnoticed.
    #[test]
    fn what_is_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let signature = Signature(5);
        let spots = write(dir.path(), signature, 3, &items()).unwrap();
        let path = path(dir.path(), signature, 3);
        let sound = std::fs::read(&path).unwrap();
        assert_eq!(sound.len() as u64, bytes_of(&items()));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let contents = |path: &Path| -> Result<Vec<Vec<u8>>, DiskError> {
            let listed = list(path, signature, 3, 4)?;
            assert!(listed.iter().map(|listed| listed.spot).eq(spots.iter().copied()));
            let file = File::open(path).unwrap();
            listed.iter().map(|listed| read(path, &file, listed.spot)).collect()
        };
        let wanted: Vec<Vec<u8>> = items().iter().map(|item| item.content.to_vec()).collect();
        assert_eq!(contents(&path).unwrap(), wanted);
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, bytes).unwrap();
            assert!(contents(&path).is_err(), "a bit of byte {at} has changed");
            std::fs::write(&path, &sound[..at]).unwrap();
            assert!(contents(&path).is_err(), "it ends at byte {at}");
        }
        std::fs::write(&path, &sound).unwrap();
        let foreign = list(&path, Signature(6), 3, 4).unwrap_err();
        assert!(matches!(foreign, DiskError::Foreign { .. }));
    }

    #[test]
    fn files_are_ours_by_name() {
        let ours = Signature(0xabc);
        let path = path(Path::new("/x"), ours, 0x1f);
        assert_eq!(number(&path, ours), Some(0x1f));
        assert_eq!(number(&path, Signature(1)), None);
        assert_eq!(number(Path::new("/x/notes.prefix"), ours), None);
        let mut part = path.into_os_string();
        part.push(".part");
        assert!(is_unfinished(Path::new(&part), ours));
        assert!(!is_unfinished(Path::new(&part), Signature(1)));
    }
}
