//! What a GPU could do at most, which benches measure in the same run.

use crate::activation::Activation;
use crate::cuda::{BLOCK, Cuda};
use crate::machine::{Kernel, Machine, Shape};
use krasis_core::Slot;

/// Threads of a block, and blocks of a multiprocessor: as many threads as it holds.
const THREADS: u32 = 512;
const BLOCKS: u32 = 4;

/// Blocks of a multiprocessor that multiply, with 8 warps of so many products in a round.
const MULTIPLYING: u32 = 2;
const PRODUCTS: u32 = 8;

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

    /// Multiplies numbers in registers, and tells how many operations those are.
    pub fn multiply_all(&mut self, rounds: u32) -> f64 {
        let blocks = self.machine().limits().processors * MULTIPLYING;
        let to = self.workspace(0, u64::from(blocks * BLOCK) * 4);
        let shape = Shape { grid: [blocks, 1, 1], block: BLOCK, shared: 0 };
        let kernel = Kernel { entry: "multiply_all", variant: 0 };
        self.launch(kernel, shape, &[rounds.into(), to]);
        // A warp's product is 16 by 8 by 16.
        f64::from(rounds) * f64::from(blocks * BLOCK / 32 * PRODUCTS) * 4096.0
    }
}
