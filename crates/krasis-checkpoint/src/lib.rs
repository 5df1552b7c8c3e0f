//! Bytes on disk: a model folder as named tensors, the weight formats they come in, and the cache of
//! what was made of them.
//!
//! A checkpoint is somebody else's file: everything read here is checked before it is believed, and
//! what does not hold up becomes a [`CheckpointError`] that names the file and what to do about it.
#![deny(unsafe_code)]

pub mod cache;
pub mod checkpoint;
pub mod compressed_tensors;
pub mod error;
mod json;
#[allow(unsafe_code)]
mod mmap;
pub mod quantize;
mod shard;
pub mod tensor;

pub use checkpoint::Checkpoint;
pub use error::CheckpointError;
pub use tensor::Tensor;
