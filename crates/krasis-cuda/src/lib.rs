//! NVIDIA GPUs as a device: the driver, one arena, kernels compiled when a model is loaded, and a
//! launch per operation. Nothing here needs a GPU, a driver or CUDA to be installed until asked.

pub mod activation;
mod attend;
pub mod attention;
mod beside;
pub mod compile;
pub mod cuda;
mod delta;
mod desk;
pub mod driver;
pub mod error;
mod expand;
pub mod gpu;
mod heads;
mod limits;
mod lines;
pub mod machine;
mod mail;
mod noting;
mod ops;
pub mod peer;
pub mod programs;
mod recording;
mod route;
mod staging;
mod timeline;
mod vector;

pub use activation::Activation;
pub use cuda::{Cuda, WORKSPACE_BYTES};
pub use error::{CudaError, Lost};
pub use gpu::Gpu;
pub use machine::{Arg, Kernel, Limits, Machine};
pub use noting::Noting;
