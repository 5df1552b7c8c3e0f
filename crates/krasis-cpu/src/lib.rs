//! The CPU as a device: one arena of host memory, a team of threads, and the vector loops that
//! kernels are built from.

pub mod affinity;
#[cfg(target_arch = "x86_64")]
pub mod amx;
pub mod arena;
pub mod floats;
pub mod isa;
pub mod lent;
pub mod limits;
pub mod lines;
pub mod nodes;
mod pages;
pub mod team;
#[cfg(test)]
mod testing;
pub mod tiles;
pub mod vector;

pub use arena::{Arena, Inputs, Keep, OutOfMemory};
pub use isa::Isa;
pub use lent::Lent;
pub use nodes::{Homes, Kernel};
pub use pages::Placement;
pub use team::Team;
pub use tiles::Tiles;
