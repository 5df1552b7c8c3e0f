//! Words that every other crate uses: element types, slots in a device's arena, weight formats, sizes.
//! Nothing here computes a model or touches a device.
#![forbid(unsafe_code)]

pub mod arena;
pub mod bytes;
pub mod dtype;
pub mod lines;
pub mod quant;
pub mod random;
pub mod slot;

pub use arena::{Layout, from_a_page};
pub use bytes::Bytes;
pub use dtype::{DType, F8E4M3, KvDtype};
pub use lines::Lines;
pub use quant::{Format, Weight};
pub use slot::{Act, Mat, Slot};
