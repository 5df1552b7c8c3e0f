//! A tensor as it lies in a checkpoint.

use crate::error::CheckpointError;
use half::{bf16, f16};
use krasis_core::DType;
use std::path::Path;

/// A named array in a mapped file.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Name in the checkpoint.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, slowest first.
    pub shape: Vec<u64>,
    /// The elements, little-endian and row-major. Not aligned to anything: where a tensor begins
    /// depends on the length of the header.
    pub bytes: &'a [u8],
    pub(crate) file: &'a Path,
}

impl<'a> Tensor<'a> {
    /// The weight file it lies in, for messages.
    pub fn file(&self) -> &'a Path {
        self.file
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Refuses any shape but this one.
    pub fn expect_shape(&self, expected: &[u64]) -> Result<(), CheckpointError> {
        if self.shape == expected {
            return Ok(());
        }
        Err(CheckpointError::Shape {
            file: self.file.into(),
            tensor: self.name.into(),
            expected: expected.into(),
            actual: self.shape.clone(),
        })
    }

    /// Refuses any shape but `[rows, cols]`: a weight of `rows` outputs by `cols` inputs.
    pub fn expect_matrix(&self, rows: u32, cols: u32) -> Result<(), CheckpointError> {
        self.expect_shape(&[u64::from(rows), u64::from(cols)])
    }

    /// All elements as f32, exactly; refuses what is not F32, F16 or BF16.
    pub fn to_f32(&self) -> Result<Vec<f32>, CheckpointError> {
        let mut out = vec![0.0; if self.dtype.is_float() { self.len() } else { 0 }];
        self.read_f32(0, &mut out)?;
        Ok(out)
    }

    /// Elements `first..first + out.len()` as f32, exactly; refuses what is not F32, F16 or BF16.
    /// A large matrix is quantised row by row this way, without ever existing as f32.
    pub fn read_f32(&self, first: usize, out: &mut [f32]) -> Result<(), CheckpointError> {
        if !self.dtype.is_float() {
            return Err(self.wrong_dtype("F32, F16 or BF16"));
        }
        assert!(
            first.checked_add(out.len()).is_some_and(|end| end <= self.len()),
            "elements {first}+{} of the {} in {}",
            out.len(),
            self.len(),
            self.name
        );
        let size = self.dtype.bytes();
        let bytes = &self.bytes[first * size..][..out.len() * size];
        match self.dtype {
            DType::F32 => decode(bytes, out, f32::from_le_bytes),
            DType::F16 => decode(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            _ => decode(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        }
        Ok(())
    }

    pub(crate) fn wrong_dtype(&self, accepted: &'static str) -> CheckpointError {
        CheckpointError::Dtype {
            file: self.file.into(),
            tensor: self.name.into(),
            dtype: self.dtype.to_string(),
            accepted,
        }
    }
}

fn decode<const N: usize>(bytes: &[u8], out: &mut [f32], element: impl Fn([u8; N]) -> f32) {
    let (elements, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty() && elements.len() == out.len(), "whole elements, one for each output");
    for (value, &bytes) in out.iter_mut().zip(elements) {
        *value = element(bytes);
    }
}
