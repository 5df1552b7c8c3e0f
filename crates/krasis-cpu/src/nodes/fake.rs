//! A kernel of a machine that does not exist: it notes what it is asked for, and answers as one with
//! several nodes, for tests of what a program does there.

use super::{Kernel, PAGE, PIECE};
use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Mutex;

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// So many bytes on nodes in turn.
    Interleave(usize, Vec<u32>),
    /// So many pages were looked for.
    Look(usize),
    /// These pages go to these nodes.
    Move(Vec<usize>, Vec<u32>),
}

/// See above.
#[derive(Debug)]
pub struct FakeKernel {
    /// Bytes of a page that takes its turn.
    page: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spread: Vec<(Range<usize>, Vec<u32>)>,
    moved: HashMap<usize, u32>,
    pinned: HashSet<usize>,
    calls: Vec<Call>,
}

impl FakeKernel {
    /// It has pages of 2 MiB.
    pub fn large_pages() -> FakeKernel {
        FakeKernel { page: PIECE, state: Mutex::default() }
    }

    /// It has pages of 4 KiB alone.
    pub fn small_pages() -> FakeKernel {
        FakeKernel { page: PAGE, state: Mutex::default() }
    }

    /// Has the page at an address stay.
    pub fn pin(&self, address: usize) {
        self.state().pinned.insert(address);
    }

    /// What it was asked for since the last time.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state().calls)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test goes on after a panic")
    }
}

impl Kernel for FakeKernel {
    fn interleave(&self, addresses: Range<usize>, nodes: &[u32]) -> io::Result<()> {
        let mut state = self.state();
        state.calls.push(Call::Interleave(addresses.len(), nodes.to_vec()));
        // Memory of an arena that is gone is given away again.
        state.moved.retain(|at, _| !addresses.contains(at));
        state.spread.push((addresses, nodes.to_vec()));
        Ok(())
    }

    fn nodes_of(&self, addresses: &[usize]) -> io::Result<Vec<i32>> {
        let mut state = self.state();
        state.calls.push(Call::Look(addresses.len()));
        let node = |&at: &usize| {
            if let Some(&node) = state.moved.get(&(at / self.page * self.page)) {
                return node as i32;
            }
            let spread = state.spread.iter().rev().find(|(range, _)| range.contains(&at));
            spread.map_or(-2, |(_, nodes)| nodes[at / self.page % nodes.len()] as i32)
        };
        Ok(addresses.iter().map(node).collect())
    }

    fn move_to(&self, addresses: &[usize], nodes: &[u32]) -> io::Result<()> {
        let mut state = self.state();
        state.calls.push(Call::Move(addresses.to_vec(), nodes.to_vec()));
        for (&at, &node) in addresses.iter().zip(nodes) {
            if !state.pinned.contains(&at) {
                state.moved.insert(at / self.page * self.page, node);
            }
        }
        Ok(())
    }
}
