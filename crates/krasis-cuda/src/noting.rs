//! A machine that runs nothing and notes which kernels it is asked for: what a GPU will need.

use crate::machine::{Answering, Arg, Kernel, Limits, Machine, Shape, Taken};
use krasis_ops::Keep;
use std::collections::HashSet;

/// Every memory begins somewhere.
const BASE: u64 = 1 << 20;

/// What was asked for so far.
pub struct Noting {
    limits: Limits,
    /// All kernels that were launched.
    pub kernels: HashSet<Kernel>,
}

impl Noting {
    /// In the place of a GPU with these limits.
    pub fn new(limits: Limits) -> Noting {
        Noting { limits, kernels: HashSet::new() }
    }
}

impl Machine for Noting {
    type Recording = ();

    fn base(&self) -> u64 {
        BASE
    }
    fn limits(&self) -> Limits {
        self.limits
    }
    fn launch(&mut self, kernel: Kernel, _shape: Shape, _args: &[Arg]) {
        self.kernels.insert(kernel);
    }
    fn record(&mut self, _room: [usize; 2]) {}
    fn ask(&mut self, _first: (u64, u32), _second: (u64, u32)) {}
    fn take(&mut self, _answer: Taken) {}
    fn recorded(&mut self) {}
    fn replay(&mut self, _recording: &(), _answer: &mut Answering) {}
    fn write(&mut self, _at: u64, _bytes: &[u8]) {}
    fn bring<'a>(&mut self, _pieces: impl Iterator<Item = (u64, &'a [u8])>, _keep: &Keep) {}
    fn brought(&mut self) {}
    fn copy(&mut self, _from: u64, _to: u64, _bytes: u64) {}
    fn read_both(&mut self, first: (u64, &mut [u8]), second: (u64, &mut [u8])) {
        [first.1, second.1].into_iter().for_each(|bytes| bytes.fill(0));
    }
    fn hand_over(&mut self, _to: &mut Noting, _from: u64, _at: u64, _bytes: u64) {}
}
