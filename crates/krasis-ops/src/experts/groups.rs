//! (Token, choice) pairs sorted by expert, so that an expert's weights are read once for all of them.

use super::ABSENT;

/// The pairs of a step. Kept by the device for its memory.
#[derive(Default)]
pub(crate) struct Groups {
    /// Pairs by expert, in order within each.
    pairs: Vec<u32>,
    /// Their tokens.
    tokens: Vec<u32>,
    /// Experts that any pair chose, and where the pairs of each end.
    active: Vec<(u32, usize)>,
    /// Where the next pair of each expert goes.
    next: Vec<usize>,
}

/// An expert that some pairs chose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Active<'a> {
    /// Which one.
    pub expert: u32,
    /// Its pairs, in order.
    pub pairs: &'a [u32],
    /// Their tokens.
    pub tokens: &'a [u32],
}

impl Groups {
    /// Sorts the choices of tokens, `top_k` each, among `experts`; absent ones are left out.
    pub(super) fn sort(&mut self, chosen: &[u32], top_k: u32, experts: u32) {
        let Groups { pairs, tokens, active, next } = self;
        next.clear();
        next.resize(experts as usize, 0);
        let present = (0..).zip(chosen).filter(|(_, expert)| **expert != ABSENT);
        present.clone().for_each(|(_, &expert)| next[expert as usize] += 1);
        active.clear();
        let mut end = 0;
        for (expert, next) in (0..).zip(next.iter_mut()) {
            let count = std::mem::replace(next, end);
            end += count;
            if count > 0 {
                active.push((expert, end));
            }
        }
        pairs.resize(end, 0);
        tokens.resize(end, 0);
        for (pair, &expert) in present {
            let at = next[expert as usize];
            (pairs[at], tokens[at]) = (pair, pair / top_k);
            next[expert as usize] += 1;
        }
    }

    /// Experts in use.
    pub(super) fn len(&self) -> usize {
        self.active.len()
    }

    /// The `i`-th of them.
    pub(super) fn get(&self, i: usize) -> Active<'_> {
        let first = if i == 0 { 0 } else { self.active[i - 1].1 };
        let (expert, end) = self.active[i];
        Active { expert, pairs: &self.pairs[first..end], tokens: &self.tokens[first..end] }
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Active<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }
}

#[cfg(test)]
mod tests {
    use super::{ABSENT, Groups};

    #[test]
    fn pairs_stay_in_order_within_their_expert() {
        let mut groups = Groups::default();
        // The second sort must not remember the first.
        for _ in 0..2 {
            groups.sort(&[3, 0, 3, 1, 0, 3], 2, 5);
            let got: Vec<_> =
                groups.iter().map(|a| (a.expert, a.pairs.to_vec(), a.tokens.to_vec())).collect();
            let wanted = [
                (0, vec![1, 4], vec![0, 2]),
                (1, vec![3], vec![1]),
                (3, vec![0, 2, 5], vec![0, 1, 2]),
            ];
            assert_eq!(got, wanted);
            groups.sort(&[ABSENT, 2, ABSENT, 2, 0, ABSENT], 2, 3);
            let got: Vec<_> = groups.iter().map(|a| (a.expert, a.pairs, a.tokens)).collect();
            assert_eq!(got, [(0, &[4][..], &[2][..]), (2, &[1, 3], &[0, 1])]);
            groups.sort(&[4; 8], 1, 5);
            assert_eq!((groups.len(), groups.get(0).pairs.len()), (1, 8));
        }
    }
}
