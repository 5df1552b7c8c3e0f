//! Having nodes asked for equally much: where the memory of one holds what is read most, the others wait.

use super::{Homes, NOWHERE, PIECE};
use std::ops::Range;

/// Bytes of an arena that are read as often as their heat says, by comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// Where.
    pub bytes: Range<usize>,
    /// How often.
    pub heat: f64,
}

/// What a node may be asked for above the mean before pieces are moved. Experts that tokens choose make a
/// difference of a tenth from token to token anyway, which threads make up for that take what is left.
const EXCESS: f64 = 0.1;

/// And what is left of it then.
const LEVEL: f64 = 0.02;

impl Homes {
    /// Pairs of pieces that change places, so many at most, for what is read at the same time to lie evenly;
    /// none while it does, by and large. Each node keeps as many pieces as it has.
    pub(crate) fn swaps(&self, reads: &[Read], most: usize) -> Vec<[usize; 2]> {
        let mut pieces = self.pieces(reads);
        let mut swaps = Vec::new();
        let mut bound = EXCESS;
        while swaps.len() < most {
            let loads = self.loads(&pieces);
            let mean = loads.iter().sum::<f64>() / loads.len().max(1) as f64;
            let by_load = |a: &usize, b: &usize| loads[*a].total_cmp(&loads[*b]);
            let nodes = 0..loads.len();
            let (Some(hot), Some(cold)) = (nodes.clone().max_by(by_load), nodes.min_by(by_load))
            else {
                break;
            };
            if loads[hot] <= mean * (1.0 + bound) {
                break;
            }
            bound = LEVEL;
            let Some(swap) = best(&pieces, [hot, cold], loads[hot] - loads[cold]) else { break };
            let (a, b) = (pieces[swap[0]], pieces[swap[1]]);
            (pieces[swap[0]].1, pieces[swap[1]].1) = (b.1, a.1);
            swaps.push([a.0, b.0]);
        }
        swaps
    }

    /// Pieces that are read and have a home, the home, and the bytes that are read of them.
    fn pieces(&self, reads: &[Read]) -> Vec<(usize, usize, f64)> {
        let mut bytes = std::collections::BTreeMap::<usize, f64>::new();
        for Read { bytes: range, heat } in reads {
            for piece in range.start / PIECE..range.end.div_ceil(PIECE) {
                let from = range.start.max(piece * PIECE);
                let end = range.end.min((piece + 1) * PIECE);
                *bytes.entry(piece).or_default() += heat * (end - from) as f64;
            }
        }
        let home = |(piece, bytes)| {
            let home = *self.of.get(piece)?;
            (home != NOWHERE).then_some((piece, usize::from(home), bytes))
        };
        bytes.into_iter().filter_map(home).collect()
    }

    fn loads(&self, pieces: &[(usize, usize, f64)]) -> Vec<f64> {
        let mut loads = vec![0.0; self.nodes.len()];
        pieces.iter().for_each(|&(_, home, bytes)| loads[home] += bytes);
        loads
    }
}

/// The pair, one of each node, whose exchange leaves the least between the two; none if none leaves less.
fn best(pieces: &[(usize, usize, f64)], [hot, cold]: [usize; 2], apart: f64) -> Option<[usize; 2]> {
    let on = |node: usize| {
        let here = pieces.iter().enumerate().filter(move |(_, (_, home, _))| *home == node);
        here.map(|(at, (.., bytes))| (at, *bytes))
    };
    let mut best = None;
    // A thousandth of a difference is not worth two pages.
    let mut left = apart * 0.999;
    for (a, more) in on(hot) {
        for (b, less) in on(cold) {
            let after = (apart - 2.0 * (more - less)).abs();
            if after < left {
                (best, left) = (Some([a, b]), after);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Experts of `bytes` one behind the other on pieces that take turns: what nodes are asked for before
    /// and after, by the mean.
    fn check(nodes: u8, bytes: usize, heat: &[f64]) -> ([f64; 2], usize) {
        let pieces = (bytes * heat.len()).div_ceil(PIECE);
        let of: Vec<u8> = (0..pieces).map(|piece| piece as u8 % nodes).collect();
        let mut homes = Homes { nodes: (0..u32::from(nodes)).collect(), of };
        let read = |(i, &heat): (usize, &f64)| Read { bytes: i * bytes..(i + 1) * bytes, heat };
        let reads: Vec<Read> = heat.iter().enumerate().map(read).collect();
        let excess = |homes: &Homes| {
            let loads = homes.loads(&homes.pieces(&reads));
            let mean = loads.iter().sum::<f64>() / loads.len() as f64;
            loads.iter().fold(0.0f64, |max, &load| max.max(load / mean)) - 1.0
        };
        let before = excess(&homes);
        let parts = |homes: &Homes| {
            let of = |node| homes.of.iter().filter(|&&home| home == node).count();
            (0..nodes).map(of).collect::<Vec<_>>()
        };
        let had = parts(&homes);
        let swaps = homes.swaps(&reads, 1000);
        swaps.iter().for_each(|&[a, b]| homes.of.swap(a, b));
        assert_eq!(parts(&homes), had, "memory stays as it was shared");
        ([before, excess(&homes)], swaps.len())
    }

    #[test]
    fn what_lies_evenly_stays_and_what_does_not_is_moved() {
        for nodes in [2, 4] {
            let ([before, after], moved) = check(nodes, PIECE * 3 / 4, &[1.0; 128]);
            assert!(before < 0.05 && after == before && moved == 0, "{before}, {moved}");
            // Popularity that falls like that of a skewed router, and the worst: all of it on one node.
            let skewed: Vec<f64> = (0..128).map(|i| 1.0 / (1.0 + i as f64)).collect();
            let one: Vec<f64> = (0..128).map(|i| f64::from(i % nodes == 0)).collect();
            for heat in [&skewed, &one] {
                let ([before, after], moved) = check(nodes, PIECE, heat);
                assert!(before > 0.1 && after < before / 2.0, "{nodes}: {before} to {after}");
                assert!(moved > 0 && moved < 64, "{moved}");
            }
        }
    }

    #[test]
    fn nothing_is_moved_for_what_nobody_reads() {
        assert_eq!(check(2, PIECE, &[0.0; 8]).1, 0);
        assert_eq!(Homes::default().swaps(&[], 9), Vec::<[usize; 2]>::new());
        let homes = Homes { nodes: vec![0, 1], of: vec![NOWHERE, 0, NOWHERE] };
        let reads = [Read { bytes: 0..9 * PIECE, heat: 1.0 }];
        assert_eq!(homes.swaps(&reads, 9), Vec::<[usize; 2]>::new());
    }

    #[test]
    fn no_more_are_moved_than_wanted() {
        let of: Vec<u8> = (0..64).map(|piece| piece % 2).collect();
        let homes = Homes { nodes: vec![0, 1], of };
        let heat = |i: usize| f64::from(i.is_multiple_of(2));
        let read = |i: usize| Read { bytes: i * PIECE..(i + 1) * PIECE, heat: heat(i) };
        assert_eq!(homes.swaps(&(0..64).map(read).collect::<Vec<_>>(), 3).len(), 3);
    }
}
