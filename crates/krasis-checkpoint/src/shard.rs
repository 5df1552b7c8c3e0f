//! One safetensors file: eight bytes of header length, a JSON header, and the tensors' bytes.

use crate::error::CheckpointError;
use crate::json::{Unique, is_lfs_pointer, open_file};
use crate::mmap::{map, release};
use crate::tensor::Tensor;
use krasis_core::DType;
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata};
use serde::de::IgnoredAny;
use std::path::{Path, PathBuf};

/// The header's length stands in front of it.
const PREFIX: u64 = 8;

/// The format's own limit.
const LARGEST_HEADER: u64 = 100_000_000;

/// A mapped file with its checked header.
#[derive(Debug)]
pub(crate) struct Shard {
    file: PathBuf,
    bytes: Mmap,
    header: Metadata,
    /// Where the tensors' bytes begin; offsets in the header count from here.
    data: usize,
}

impl Shard {
    /// Maps the file and checks that the header is sound and describes exactly the file's bytes.
    pub(crate) fn open(path: &Path) -> Result<Shard, CheckpointError> {
        let wrong = |problem| CheckpointError::Header { file: path.into(), problem };
        let (file, actual) = open_file(path)?;
        if actual < PREFIX {
            return Err(wrong(format!("it is {actual} bytes long, too short for any header")));
        }
        let bytes =
            map(&file).map_err(|cause| CheckpointError::Read { file: path.into(), cause })?;
        if is_lfs_pointer(&bytes) {
            return Err(CheckpointError::LfsPointer { file: path.into() });
        }
        let Some((prefix, rest)) = bytes.split_first_chunk() else {
            return Err(wrong("it became shorter while being opened".into()));
        };
        let header_bytes = u64::from_le_bytes(*prefix);
        if header_bytes == 0 || header_bytes > LARGEST_HEADER {
            return Err(wrong(format!(
                "its header claims to be {header_bytes} bytes long, which must be 1 to {LARGEST_HEADER}"
            )));
        }
        let data = PREFIX + header_bytes;
        let Some(text) = rest.get(..header_bytes as usize) else {
            return Err(CheckpointError::WrongLength { file: path.into(), expected: data, actual });
        };
        let header = parse(text).map_err(|error| wrong(error.to_string()))?;
        let expected = data.checked_add(header.data_len() as u64);
        if expected != Some(bytes.len() as u64) {
            let expected = expected.unwrap_or(u64::MAX);
            return Err(CheckpointError::WrongLength { file: path.into(), expected, actual });
        }
        Ok(Shard { file: path.into(), bytes, header, data: data as usize })
    }

    /// Names in the header, in no order.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.header.offset_keys().into_iter()
    }

    /// The tensor called `name`, or `None` if there is none.
    pub(crate) fn tensor<'a>(
        &'a self,
        name: &'a str,
    ) -> Result<Option<Tensor<'a>>, CheckpointError> {
        let Some(info) = self.header.info(name) else { return Ok(None) };
        let Some(dtype) = dtype(info.dtype) else {
            return Err(CheckpointError::Dtype {
                file: self.file.clone(),
                tensor: name.into(),
                dtype: info.dtype.to_string(),
                accepted: "F32, F16, BF16, F8_E4M3, I64, I32, I8 and U8",
            });
        };
        let shape = info.shape.iter().map(|&dim| dim as u64).collect();
        let (start, end) = info.data_offsets;
        let bytes = &self.bytes[self.data + start..self.data + end];
        Ok(Some(Tensor { name, dtype, shape, bytes, file: &self.file }))
    }

    /// Gives the memory behind a tensor back.
    pub(crate) fn release(&self, name: &str) {
        if let Some((start, end)) = self.header.info(name).map(|info| info.data_offsets) {
            release(&self.bytes, self.data + start..self.data + end);
        }
    }

    /// The whole file: header and tensors.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the tensors' bytes begin.
    pub(crate) fn data(&self) -> usize {
        self.data
    }
}

/// Leaves the checking to `safetensors`: offsets without holes or overlaps from 0 on, each as long
/// as shape and type ask for. Its `read_metadata` also compares with the length of the file, but in
/// an addition that overflows for a header full of enormous tensors; `Shard::open` does that part.
fn parse(text: &[u8]) -> Result<Metadata, serde_json::Error> {
    let _: Unique<IgnoredAny> = serde_json::from_slice(text)?;
    serde_json::from_slice(text)
}

fn dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        Dtype::F8_E4M3 => DType::F8E4M3,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        _ => return None,
    })
}
