//! What becomes of routed experts that do not lie on the device when tokens are routed to them.

use std::ops::Range;

/// How prompts meet experts that lie in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillStrategy {
    /// Layers in so many groups. A group's experts are brought once, then all of the pass goes
    /// through its layers.
    LayerGrouped(u32),
    /// All experts of a layer, as many at a time as there is room for, again for each chunk.
    Chunked,
    /// Those that a chunk is routed to, as many at a time as there is room for.
    ActiveOnly,
    /// The hottest experts stay on the device. Those that a layer lacks are brought for all of the
    /// pass.
    HcsPrefill,
}

/// Who computes experts that lie in host memory for a few rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeStrategy {
    /// The CPU all of them, those on the device as well.
    PureCpu,
    /// The device those that lie there, the hottest, and the CPU the others.
    HcsHybrid,
    /// The device. Each layer has as many slots as the next, and what is missing takes the place of
    /// the layer's expert that was used longest ago.
    Compact,
    /// The device. What is missing takes the place of the expert of any layer that was used longest
    /// ago.
    Lru,
}

/// What is brought for a layer's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// What the rows are routed to, into the given slots.
    Routed,
    /// Everything, wanted or not: one long copy instead of many short ones.
    All,
}

impl PrefillStrategy {
    /// Whether a pass goes through some layers with all of its tokens before it goes on.
    pub const fn by_layers(self) -> bool {
        matches!(self, PrefillStrategy::LayerGrouped(_) | PrefillStrategy::HcsPrefill)
    }

    /// Slots without which it does not work, and how many layers those are for: `moe` layers of
    /// `experts` each.
    pub fn slots_min(self, moe: u32, experts: u32) -> u32 {
        match self {
            PrefillStrategy::LayerGrouped(groups) => moe.div_ceil(groups.max(1)) * experts,
            PrefillStrategy::HcsPrefill => experts,
            PrefillStrategy::Chunked | PrefillStrategy::ActiveOnly => 1,
        }
    }

    pub(super) fn missing(self) -> Missing {
        match self {
            PrefillStrategy::Chunked => Missing::All,
            _ => Missing::Routed,
        }
    }

    /// Layers that a pass takes together; `is_moe` says which have experts.
    pub(super) fn groups(self, is_moe: &[bool]) -> Vec<Range<usize>> {
        let moe = is_moe.iter().filter(|&&moe| moe).count();
        let each = match self {
            PrefillStrategy::LayerGrouped(groups) => moe.div_ceil(groups.max(1) as usize).max(1),
            PrefillStrategy::HcsPrefill => 1,
            PrefillStrategy::Chunked | PrefillStrategy::ActiveOnly => moe.max(1),
        };
        let (mut groups, mut first, mut held) = (Vec::new(), 0, 0);
        for (layer, &moe) in is_moe.iter().enumerate() {
            if moe && held == each {
                groups.push(first..layer);
                (first, held) = (layer, 0);
            }
            held += usize::from(moe);
        }
        groups.push(first..is_moe.len());
        groups
    }
}

impl DecodeStrategy {
    /// Whether the CPU computes what does not lie on the device.
    pub(super) const fn asks_the_cpu(self) -> bool {
        matches!(self, DecodeStrategy::PureCpu | DecodeStrategy::HcsHybrid)
    }
}

/// The strategies that a divisor of upstream's command line stands for; 1 is all on the device.
pub fn of_divisor(divisor: i32) -> Option<(PrefillStrategy, DecodeStrategy)> {
    use {DecodeStrategy as D, PrefillStrategy as P};
    Some(match divisor {
        0 => (P::Chunked, D::PureCpu),
        -1 => (P::ActiveOnly, D::Compact),
        -2 => (P::ActiveOnly, D::Lru),
        -3 => (P::HcsPrefill, D::HcsHybrid),
        2.. => (P::LayerGrouped(divisor as u32), D::PureCpu),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::PrefillStrategy::*;

    #[test]
    fn groups_cover_all_layers_in_order() {
        let is_moe = [false, true, true, true, false, true, true];
        for (strategy, ends) in [
            (LayerGrouped(1), vec![7]),
            (LayerGrouped(2), vec![5, 7]),
            (LayerGrouped(3), vec![3, 6, 7]),
            (LayerGrouped(9), vec![2, 3, 5, 6, 7]),
            (HcsPrefill, vec![2, 3, 5, 6, 7]),
            (Chunked, vec![7]),
            (ActiveOnly, vec![7]),
        ] {
            let got = strategy.groups(&is_moe);
            let firsts = std::iter::once(&0).chain(&ends);
            let expected: Vec<_> = firsts.zip(&ends).map(|(&first, &end)| first..end).collect();
            assert_eq!(got, expected, "{strategy:?}");
            let moe = |layers: &std::ops::Range<usize>| {
                is_moe[layers.clone()].iter().filter(|&&moe| moe).count() as u32
            };
            if strategy.by_layers() {
                assert!(got.iter().all(|group| moe(group) * 8 <= strategy.slots_min(5, 8)));
            }
        }
    }
}
