//! What the machine is, read from the files of its kernel: processors, memory and its limits, pages,
//! clocks. Nothing here changes the machine, and what cannot be read is absent, never an error.
//!
//! Everything is read below a root folder, `/` or a tree that a test has written ([`fake`]).
#![forbid(unsafe_code)]

pub mod checks;
pub mod cpu;
pub mod fake;
mod files;
mod groups;
pub mod memory;
pub mod pages;
pub mod process;
pub mod topology;
pub mod watchdog;

pub use checks::{Finding, Level, Need, Numa, What, check};
pub use cpu::{Clock, Processor};
pub use groups::Quota;
pub use memory::{Limit, Memory};
pub use pages::{HugePages, Pool};
pub use process::Resident;
pub use topology::{Core, Cpu, Node, Topology};
pub use watchdog::{Shortage, Watchdog};

use krasis_core::Bytes;
use std::path::Path;

/// A machine, as one process sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its processor: name and vector instructions.
    pub processor: Processor,
    /// Processors, cores and NUMA nodes.
    pub topology: Topology,
    /// Memory and what limits it.
    pub memory: Memory,
    /// Pages of more than 4 KiB.
    pub huge_pages: HugePages,
    /// How fast its processors may run.
    pub clock: Clock,
    /// What this process holds.
    pub resident: Resident,
}

impl Machine {
    /// Reads the machine whose `/proc` and `/sys` lie below `root`.
    pub fn read(root: &Path) -> Machine {
        let topology = Topology::read(root);
        Machine {
            processor: Processor::read(root),
            clock: Clock::read(root, &topology),
            topology,
            memory: Memory::read(root),
            huge_pages: HugePages::read(root),
            resident: Resident::read(root),
        }
    }

    /// Memory that can be allocated without swapping: what the kernel says is available, within the
    /// limits of control groups and on the NUMA nodes that this process may use.
    pub fn available(&self) -> Option<Bytes> {
        [self.memory.available_within_limits(), self.topology.free_where_confined()]
            .into_iter()
            .flatten()
            .min()
    }
}
