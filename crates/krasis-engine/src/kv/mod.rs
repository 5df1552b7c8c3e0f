//! What sequences remember, and what is kept of it: pages and states of recurrent layers by the tokens
//! that led to them, on the device, in host memory and on the disk.
//!
//! [`Prefixes`] is what the scheduler sees. Below it a `tree` knows every full page by its tokens and
//! by the page before it, and where copies of its content lie; `pages` and `places` own the device's
//! memory, `ram` and `disk` what is kept beyond it. Content moves through [`Past`].

mod claim;
mod cuts;
mod disk;
mod find;
mod options;
mod pages;
mod past;
mod places;
mod prefixes;
mod ram;
mod save;
#[cfg(test)]
mod tests;
mod tree;

pub use claim::{Arrival, Claim};
pub use cuts::STRIDE;
pub use disk::{Disk, DiskError, HOST_BYTES, Listed, Signature};
pub use options::{PrefixDisk, PrefixOptions, Reuse};
pub use past::{OnDevices, Past, bytes};
pub use prefixes::{Held, Prefixes, Shape};
pub use tree::Kind;
