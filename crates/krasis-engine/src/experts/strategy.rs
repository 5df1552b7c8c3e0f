//! What becomes of routed experts that do not lie on the device when tokens are routed to them.

use std::fmt;
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

/// The names of upstream's command line; layers in N groups are `layer_grouped_N`.
impl fmt::Display for PrefillStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrefillStrategy::LayerGrouped(groups) => write!(f, "layer_grouped_{groups}"),
            PrefillStrategy::Chunked => f.write_str("chunked"),
            PrefillStrategy::ActiveOnly => f.write_str("active_only"),
            PrefillStrategy::HcsPrefill => f.write_str("hcs_prefill"),
        }
    }
}

impl fmt::Display for DecodeStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecodeStrategy::PureCpu => "pure_cpu",
            DecodeStrategy::HcsHybrid => "hcs_hybrid",
            DecodeStrategy::Compact => "compact",
            DecodeStrategy::Lru => "lru",
        })
    }
}

impl PrefillStrategy {
    /// The one of this name.
    pub fn named(name: &str) -> Option<PrefillStrategy> {
        Some(match name {
            "chunked" => PrefillStrategy::Chunked,
            "active_only" => PrefillStrategy::ActiveOnly,
            "hcs_prefill" => PrefillStrategy::HcsPrefill,
            _ => {
                let groups: u32 = name.strip_prefix("layer_grouped_")?.parse().ok()?;
                PrefillStrategy::LayerGrouped((1..=1024).contains(&groups).then_some(groups)?)
            }
        })
    }
}

impl DecodeStrategy {
    /// All of them.
    pub const ALL: [DecodeStrategy; 4] = [
        DecodeStrategy::PureCpu,
        DecodeStrategy::HcsHybrid,
        DecodeStrategy::Compact,
        DecodeStrategy::Lru,
    ];

    /// The one of this name.
    pub fn named(name: &str) -> Option<DecodeStrategy> {
        DecodeStrategy::ALL.into_iter().find(|decode| decode.to_string() == name)
    }

    /// Whether the CPU computes what does not lie on the device.
    pub(super) const fn asks_the_cpu(self) -> bool {
        matches!(self, DecodeStrategy::PureCpu | DecodeStrategy::HcsHybrid)
    }
}

/// Of so many slots those that stay filled with the hottest experts, if prompts need `moving` others.
pub fn hot_slots(prefill: PrefillStrategy, decode: DecodeStrategy, slots: u32, moving: u32) -> u32 {
    let keeps = prefill == PrefillStrategy::HcsPrefill || decode == DecodeStrategy::HcsHybrid;
    if keeps { slots - moving.min(slots) } else { 0 }
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
    use super::{DecodeStrategy, PrefillStrategy};

    #[test]
    fn names_are_read_as_they_are_written() {
        for prefill in [LayerGrouped(1), LayerGrouped(48), Chunked, ActiveOnly, HcsPrefill] {
            assert_eq!(PrefillStrategy::named(&prefill.to_string()), Some(prefill));
        }
        for decode in DecodeStrategy::ALL {
            assert_eq!(DecodeStrategy::named(&decode.to_string()), Some(decode));
        }
        for name in ["", "layer_grouped", "layer_grouped_0", "layer_grouped_2000", "lru"] {
            assert_eq!(PrefillStrategy::named(name), None, "{name}");
        }
    }

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
