//! What a GPU could do at most, which benches measure in the same run.

use crate::activation::Activation;
use crate::cuda::Cuda;
use crate::machine::{Kernel, Machine, Shape};
use krasis_core::Slot;

/// Threads of a block, and blocks of a multiprocessor: as many threads as it holds.
const THREADS: u32 = 512;
const BLOCKS: u32 = 4;

impl<A: Activation, M: Machine> Cuda<A, M> {
    /// Reads the whole slot once, and leaves the sum of each thread's share in the workspace.
    pub fn read_all(&mut self, from: Slot<u8>) {
        let blocks = self.machine().limits().processors * BLOCKS;
        let to = self.workspace(0, u64::from(blocks * THREADS) * 4);
        let pieces = u32::try_from(from.len / 16).expect("up to 64 GiB");
        let shape = Shape { grid: [blocks, 1, 1], block: THREADS, shared: 0 };
        let args = [self.slot(from), pieces.into(), to];
        self.launch(Kernel { entry: "read_all", variant: 0 }, shape, &args);
    }
}
