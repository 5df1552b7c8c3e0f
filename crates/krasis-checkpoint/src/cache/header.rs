//! The header: magic, version, length and checksum as four little-endian words, then JSON.

use super::contents::Contents;
use super::error::CacheError;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::hash::Hasher;
use std::os::unix::fs::FileExt;
use std::path::Path;
use twox_hash::XxHash3_64;

/// Bytes before the JSON.
pub(super) const PREFIX: usize = 32;

const MAGIC: [u8; 8] = *b"KRASIS\r\n";

/// Another format of this file is another version; so is another meaning of what stands in it.
pub(super) const VERSION: u64 = 2;

/// A model of a million sections fits.
const LARGEST: u64 = 256 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    contents: Contents,
    /// For each section, eight hexadecimal digits per piece: as long for any checksums, so that
    /// the header's length is known before they are.
    checks: Vec<String>,
}

/// Bytes of the header of such contents.
pub(super) fn length(contents: &Contents) -> u64 {
    let none: Vec<Vec<u32>> =
        contents.sections.iter().map(|section| vec![0; section.pieces()]).collect();
    write(contents, &none).len() as u64
}

/// The header of these contents, whose pieces have these checksums.
pub(super) fn write(contents: &Contents, checks: &[Vec<u32>]) -> Vec<u8> {
    let digits = |checks: &Vec<u32>| checks.iter().map(|check| format!("{check:08x}")).collect();
    let header = Header { contents: contents.clone(), checks: checks.iter().map(digits).collect() };
    let json = serde_json::to_vec(&header).expect("a header is JSON");
    let mut bytes = Vec::with_capacity(PREFIX + json.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((json.len() as u64).to_le_bytes());
    bytes.extend(checksum(&bytes, &json).to_le_bytes());
    bytes.extend(json);
    bytes
}

/// Reads and checks the header; returns its length as well.
pub(super) fn read(path: &Path, file: &File) -> Result<(Contents, Vec<Vec<u32>>, u64), CacheError> {
    let cannot = |cause| CacheError::io("read", path, cause);
    let damaged = || CacheError::Damaged { file: path.into(), what: "its header".into() };
    let mut prefix = [0; PREFIX];
    let bytes = file.metadata().map_err(cannot)?.len();
    if bytes < PREFIX as u64 {
        return Err(CacheError::NotACache { file: path.into() });
    }
    file.read_exact_at(&mut prefix, 0).map_err(cannot)?;
    let word = |i: usize| prefix.as_chunks::<8>().0[i];
    let number = |i| u64::from_le_bytes(word(i));
    if word(0) != MAGIC {
        return Err(CacheError::NotACache { file: path.into() });
    }
    if number(1) != VERSION {
        let (found, known) = (number(1), VERSION);
        return Err(CacheError::Version { file: path.into(), found, known });
    }
    let length = number(2);
    if length > LARGEST.min(bytes - PREFIX as u64) {
        return Err(damaged());
    }
    let mut json = vec![0; length as usize];
    file.read_exact_at(&mut json, PREFIX as u64).map_err(cannot)?;
    if checksum(&prefix[..PREFIX - 8], &json) != number(3) {
        return Err(damaged());
    }
    let header: Header = serde_json::from_slice(&json).map_err(|_| damaged())?;
    let checks: Option<Vec<Vec<u32>>> = header.checks.iter().map(|text| numbers(text)).collect();
    let checks = checks.ok_or_else(damaged)?;
    let pieces = header.contents.sections.iter().map(|section| section.pieces());
    if !checks.iter().map(Vec::len).eq(pieces) {
        return Err(damaged());
    }
    Ok((header.contents, checks, PREFIX as u64 + length))
}

/// The numbers of eight hexadecimal digits each.
fn numbers(text: &str) -> Option<Vec<u32>> {
    let (digits, rest) = text.as_bytes().as_chunks::<8>();
    let number = |digits: &[u8; 8]| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    if rest.is_empty() { digits.iter().map(number).collect() } else { None }
}

fn checksum(prefix: &[u8], json: &[u8]) -> u64 {
    let mut hash = XxHash3_64::new();
    hash.write(prefix);
    hash.write(json);
    hash.finish()
}
