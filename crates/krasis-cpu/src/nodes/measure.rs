//! What it brings here that threads read the memory of their own node first.

use super::{Kernel, PIECE};
use crate::arena::Arena;
use crate::limits::read;
use crate::pages::Placement;
use crate::team::Team;
use crate::tiles::Tiles;
use krasis_core::Layout;
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Passes of each kind; the best counts.
const PASSES: usize = 4;

/// What own memory has to be faster by: a link between nodes that hardly slows reading is not worth lists.
const WORTH: f64 = 1.05;

/// Bytes per second that a team reads of memory whose pages take turns on nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Each thread whatever comes next.
    pub in_turn: f64,
    /// Each thread what lies on its own node, and then the rest.
    pub own_first: f64,
}

impl Rates {
    /// Whether threads better read of their own node first.
    pub fn own_is_faster(&self) -> bool {
        self.own_first > WORTH * self.in_turn
    }
}

/// Reads `bytes` of memory on these nodes both ways. It should be more than all caches have.
pub fn measure(
    team: &Team,
    nodes: &[u32],
    kernel: &Arc<dyn Kernel>,
    bytes: usize,
) -> io::Result<Rates> {
    let mut layout = Layout::new(4);
    let slot = layout.slot::<u8>(bytes.next_multiple_of(PIECE) as u64);
    let mut arena = Arena::new(&layout).map_err(io::Error::other)?;
    arena.place(&Placement::Interleave(nodes.to_vec()), kernel)?;
    let pieces = Tiles::new(arena.slice_mut(slot), PIECE);
    team.each(pieces.rows(), |_, piece| {
        // SAFETY: each piece comes once.
        unsafe { pieces.tile(piece, 0..PIECE) }.fill(piece as u8 | 1);
    });
    arena.settle()?;
    let homes = arena.homes();
    if homes.nodes() == 0 {
        return Err(io::Error::other("the kernel gives no pages of 2 MiB for it"));
    }
    let pages = arena.slice(slot).as_chunks::<4096>().0;
    let pieces: Vec<&[[u8; 4096]]> = pages.chunks(PIECE / 4096).collect();
    let read_one = |piece: usize| {
        black_box(read(pieces[piece]));
    };
    let on = |node| (0..pieces.len()).filter(move |piece| homes.at(piece * PIECE) == Some(node));
    let by_node: Vec<Vec<usize>> = (0..homes.nodes()).map(|node| on(node).collect()).collect();
    let totals: Vec<usize> = by_node.iter().map(Vec::len).collect();
    let in_turn = || team.split(pieces.len(), 1, |range| range.for_each(read_one));
    let own_first = || {
        team.split_by_node(homes, &totals, 1, |node, range| {
            by_node[node][range].iter().for_each(|&piece| read_one(piece));
        });
    };
    let rate = |pieces: usize, pass: &dyn Fn()| {
        let start = Instant::now();
        pass();
        (pieces * PIECE) as f64 / start.elapsed().as_secs_f64()
    };
    let mut rates = Rates { in_turn: 0.0, own_first: 0.0 };
    for _ in 0..PASSES {
        rates.in_turn = rates.in_turn.max(rate(pieces.len(), &in_turn));
        rates.own_first = rates.own_first.max(rate(totals.iter().sum(), &own_first));
    }
    Ok(rates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::fake::FakeKernel;

    #[test]
    fn both_ways_of_reading_are_measured_where_there_are_large_pages() {
        let team = Team::new(Some(2));
        let kernel: Arc<dyn Kernel> = Arc::new(FakeKernel::large_pages());
        let rates = measure(&team, &[0, 1], &kernel, 5 * PIECE).unwrap();
        assert!(rates.in_turn > 0.0 && rates.own_first > 0.0);
        let kernel: Arc<dyn Kernel> = Arc::new(FakeKernel::small_pages());
        let refused = measure(&team, &[0, 1], &kernel, 5 * PIECE).unwrap_err();
        assert!(refused.to_string().contains("2 MiB"), "{refused}");
    }

    #[test]
    fn a_few_percent_do_not_count() {
        for (in_turn, own_first, faster) in
            [(100.0, 104.0, false), (100.0, 106.0, true), (100.0, 60.0, false)]
        {
            assert_eq!(Rates { in_turn, own_first }.own_is_faster(), faster);
        }
    }
}
