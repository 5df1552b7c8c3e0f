//! JSON files, with limits and with errors that name the file.

use crate::error::CheckpointError;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::marker::PhantomData;
use std::path::Path;

/// The index of a model with two million tensors fits; nothing honest is larger.
const LARGEST: u64 = 256 << 20;

/// First line of every git-LFS pointer.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Whether these are the first bytes of a git-LFS pointer.
pub(crate) fn is_lfs_pointer(start: &[u8]) -> bool {
    start.starts_with(LFS)
}

/// Opens a plain file. Devices and pipes are refused before opening, which could block for ever.
pub(crate) fn open_file(path: &Path) -> Result<(File, u64), CheckpointError> {
    let cannot = |cause| CheckpointError::Read { file: path.into(), cause };
    if !path.metadata().map_err(cannot)?.is_file() {
        return Err(cannot(Error::new(ErrorKind::InvalidInput, "it is not a plain file")));
    }
    let file = File::open(path).map_err(cannot)?;
    let len = file.metadata().map_err(cannot)?.len();
    Ok((file, len))
}

/// Parses a JSON file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let wrong = |problem| CheckpointError::Json { file: path.into(), problem };
    let (file, len) = open_file(path)?;
    if len > LARGEST {
        return Err(wrong(format!("it is {len} bytes long, more than the {LARGEST} allowed")));
    }
    let mut text = Vec::new();
    file.take(LARGEST)
        .read_to_end(&mut text)
        .map_err(|cause| CheckpointError::Read { file: path.into(), cause })?;
    if is_lfs_pointer(&text) {
        return Err(CheckpointError::LfsPointer { file: path.into() });
    }
    if text.is_empty() {
        return Err(wrong("it is empty".into()));
    }
    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
}

/// A JSON object none of whose keys comes twice. The standard lets parsers choose which of two
/// equal keys counts, so such a file could mean different weights to us and to whoever checked it.
pub(crate) struct Unique<V>(pub(crate) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
    type Value = Unique<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<V>, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, V>()? {
            if entries.contains_key(&key) {
                return Err(de::Error::custom(format_args!("{key:?} comes twice")));
            }
            entries.insert(key, value);
        }
        Ok(Unique(entries))
    }
}
