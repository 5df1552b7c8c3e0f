//! NUMA nodes under an arena: which piece lies on which, and having pieces go to another.
//!
//! A piece is a page of 2 MiB. Pages of 4 KiB that take turns on nodes split every few rows of a weight,
//! so where the kernel gives no large ones, no piece has a home, and threads take what comes.

pub mod fake;
mod level;
mod measure;
mod system;

pub use level::Read;
pub use measure::{Rates, measure};
pub use system::System;

use crate::pages::HUGE;
use std::fmt;
use std::io;
use std::ops::Range;

/// Bytes of a piece: where an arena begins, one does.
pub const PIECE: usize = HUGE;

/// Nodes that a team keeps apart. On machines of more, threads take what comes.
pub const NODES_MAX: usize = 16;

/// The smallest page, of which a piece may be made.
const PAGE: usize = 4 << 10;

/// What is asked of the kernel about pages; a test answers as a machine of several nodes does.
pub trait Kernel: fmt::Debug + Send + Sync {
    /// Has the pages of a range, which nobody has touched, come from nodes in turn.
    fn interleave(&self, addresses: Range<usize>, nodes: &[u32]) -> io::Result<()>;
    /// The node of the page at each address; a negative number where there is no page.
    fn nodes_of(&self, addresses: &[usize]) -> io::Result<Vec<i32>>;
    /// Has the page at each address go to a node. Which of them went, [`Kernel::nodes_of`] tells.
    fn move_to(&self, addresses: &[usize], nodes: &[u32]) -> io::Result<()>;
}

/// Which of some nodes each piece of an arena lies on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Homes {
    nodes: Vec<u32>,
    of: Vec<u8>,
}

/// The home of a piece that has none, or several.
const NOWHERE: u8 = u8::MAX;

impl Homes {
    /// Looks where the `bytes` from `base` on lie. None if hardly a piece is on one node alone.
    pub fn find(
        kernel: &dyn Kernel,
        base: usize,
        bytes: usize,
        nodes: &[u32],
    ) -> io::Result<Option<Homes>> {
        if !(2..=NODES_MAX).contains(&nodes.len()) {
            return Ok(None);
        }
        let pieces = bytes.div_ceil(PIECE);
        let mut homes = Homes { nodes: nodes.to_vec(), of: vec![NOWHERE; pieces] };
        let there = homes.look(kernel, base, 0..pieces)?;
        let known = homes.of.iter().filter(|&&home| home != NOWHERE).count();
        Ok((known > 0 && 2 * known > there).then_some(homes))
    }

    /// Looks again at some pieces; tells how many have any page.
    fn look(
        &mut self,
        kernel: &dyn Kernel,
        base: usize,
        pieces: Range<usize>,
    ) -> io::Result<usize> {
        // Of small pages that take turns, the second lies elsewhere than the first.
        const LOOKS: [usize; 3] = [0, PAGE, PIECE - PAGE];
        let at = |piece: usize| LOOKS.map(|look| base + piece * PIECE + look);
        let addresses: Vec<usize> = pieces.clone().flat_map(at).collect();
        let found = kernel.nodes_of(&addresses)?;
        let mut there = 0;
        for (piece, found) in pieces.zip(found.as_chunks::<3>().0) {
            there += usize::from(found.iter().any(|&node| node >= 0));
            let node = self.nodes.iter().position(|&node| found.iter().all(|&n| n == node as i32));
            self.of[piece] = node.map_or(NOWHERE, |node| node as u8);
        }
        Ok(there)
    }

    /// How many nodes there are; none if nobody has looked.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The place of a node of the kernel's among them.
    pub fn place_of(&self, node: Option<u32>) -> Option<usize> {
        self.nodes.iter().position(|&of| Some(of) == node)
    }

    /// The place of the node that a byte of the arena lies on.
    pub fn at(&self, byte: usize) -> Option<usize> {
        self.of.get(byte / PIECE).filter(|&&home| home != NOWHERE).map(|&home| home.into())
    }

    /// Has two pieces change places; whether they did.
    pub(crate) fn swap(
        &mut self,
        kernel: &dyn Kernel,
        base: usize,
        [a, b]: [usize; 2],
    ) -> io::Result<bool> {
        let before = [self.of[a], self.of[b]];
        let to = [before[1], before[0]].map(|home| self.nodes[usize::from(home)]);
        kernel.move_to(&[a, b].map(|piece| base + piece * PIECE), &to)?;
        for piece in [a, b] {
            self.look(kernel, base, piece..piece + 1)?;
        }
        Ok([self.of[b], self.of[a]] == before)
    }
}

#[cfg(test)]
mod tests {
    use super::fake::FakeKernel;
    use super::*;

    #[test]
    fn pieces_are_where_the_kernel_says() {
        for nodes in [&[0, 4][..], &[0, 1, 2, 3]] {
            let kernel = FakeKernel::large_pages();
            let base = 40 * PIECE;
            kernel.interleave(base..base + 9 * PIECE, nodes).unwrap();
            let homes = Homes::find(&kernel, base, 8 * PIECE + 1, nodes).unwrap().unwrap();
            let found: Vec<_> = (0..9).map(|piece| homes.at(piece * PIECE + 77)).collect();
            let wanted: Vec<_> = (0..9).map(|piece| Some((40 + piece) % nodes.len())).collect();
            assert_eq!(found, wanted);
            assert_eq!((homes.at(9 * PIECE), homes.nodes()), (None, nodes.len()));
            assert_eq!(homes.place_of(Some(nodes[1])), Some(1));
            assert_eq!((homes.place_of(Some(77)), homes.place_of(None)), (None, None));
        }
    }

    #[test]
    fn small_pages_and_single_nodes_have_no_homes() {
        let small = FakeKernel::small_pages();
        small.interleave(0..8 * PIECE, &[0, 1]).unwrap();
        assert_eq!(Homes::find(&small, 0, 8 * PIECE, &[0, 1]).unwrap(), None);
        let large = FakeKernel::large_pages();
        large.interleave(0..8 * PIECE, &[0]).unwrap();
        assert_eq!(Homes::find(&large, 0, 8 * PIECE, &[0]).unwrap(), None);
        let many: Vec<u32> = (0..NODES_MAX as u32 + 1).collect();
        assert_eq!(Homes::find(&large, 0, 8 * PIECE, &many).unwrap(), None);
        // Nobody has touched it.
        assert_eq!(Homes::find(&large, 8 * PIECE, 8 * PIECE, &[0, 1]).unwrap(), None);
    }

    #[test]
    fn a_piece_that_does_not_go_keeps_its_home() {
        let kernel = FakeKernel::large_pages();
        kernel.interleave(0..4 * PIECE, &[0, 1]).unwrap();
        let mut homes = Homes::find(&kernel, 0, 4 * PIECE, &[0, 1]).unwrap().unwrap();
        assert!(homes.swap(&kernel, 0, [0, 3]).unwrap());
        let at = |homes: &Homes| [0, 1, 2, 3].map(|piece| homes.at(piece * PIECE).unwrap());
        assert_eq!(at(&homes), [1, 1, 0, 0]);
        kernel.pin(PIECE);
        assert!(!homes.swap(&kernel, 0, [1, 2]).unwrap());
        assert_eq!(at(&homes), [1, 1, 1, 0]);
    }
}
