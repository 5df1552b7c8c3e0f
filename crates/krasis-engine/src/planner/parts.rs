//! A model over several devices: which layers each has, and what all of them have to agree on.

use super::forecast::Forecast;
use super::site::Site;
use super::{CONTEXT_COMMON, Draft};
use crate::error::StartError;
use crate::load::{Placed, Stock};
use crate::options::{Options, Shared};
use crate::plan::{Choice, PAGE, Plan};
use crate::preflight;
use krasis_core::{Bytes, KvDtype, Layout};
use krasis_machine::Need;
use krasis_model::{Cache, Model, Source};
use std::ops::Range;

/// Consecutive layers of a model on one device.
pub struct Part {
    /// Which ones.
    pub layers: Range<usize>,
    /// As a model of their own.
    pub model: Model<Source>,
    /// The machine with that device alone.
    pub site: Site,
    /// Where everything lies there.
    pub plan: Plan,
}

impl Part {
    /// How fast it is by itself.
    pub fn forecast(&self) -> Forecast<'_> {
        Forecast::new(&self.model, &self.plan, &self.site)
    }
}

impl<S: Stock> Draft<'_, S> {
    /// Lays a choice out on as many devices as are wanted. All of them hold the same tokens, under the same
    /// numbers of pages and places, so the smallest rules.
    pub(super) fn lay_out(&self, choice: Choice) -> Result<Vec<Part>, StartError> {
        let parts = self.layers()?;
        if choice.away.is_some() && parts.len() > 1 && !has_experts(self.model) {
            return Err(StartError::NoExperts);
        }
        let all = |options: &Options| -> Result<Vec<Part>, StartError> {
            let part = |(rank, layers)| self.part(rank, layers, options, choice);
            parts.iter().cloned().enumerate().map(part).collect()
        };
        let mut planned = all(self.options)?;
        if parts.len() > 1 {
            let least = |of: fn(&Part) -> u32| planned.iter().map(of).min().unwrap_or(0);
            let keeps = |part: &&Part| Cache::place_bytes(&part.model) > Bytes(0);
            let places = planned.iter().filter(keeps).map(|part| part.plan.cache.places).min();
            let sequences = self.options.sequences_max.max(1);
            let mut options = Options {
                context_max: Some(least(|part| part.plan.context_max)),
                kv_pages: Some(least(|part| part.plan.cache.pages)),
                ..self.options.clone()
            };
            options.prefix.checkpoints = Some(places.map_or(0, |places| places - sequences));
            planned = all(&options)?;
            preflight::fits(&self.site.host.machine, &need_of(&planned))?;
        }
        Ok(planned)
    }

    fn part(
        &self,
        rank: usize,
        layers: Range<usize>,
        options: &Options,
        choice: Choice,
    ) -> Result<Part, StartError> {
        let model = self.model.part(layers.clone());
        let site = match self.options.ranks.shared {
            Shared::Layers => self.site.of_rank(rank),
            Shared::Experts => self.site.clone(),
        };
        let mut options = options.clone();
        if rank > 0 {
            // What is kept of prompts in host memory and on the disk is kept once for all.
            (options.prefix.ram, options.prefix.disk) = (Some(Bytes(0)), None);
        }
        let before = self.before + layers.start;
        let draft = Draft { model: &model, before, options: &options, site: &site, ..*self };
        let plan = Plan::of(&draft, choice)?;
        Ok(Part { layers, model, site, plan })
    }

    /// The layers of each device.
    fn layers(&self) -> Result<Vec<Range<usize>>, StartError> {
        let (ranks, layers) = (&self.options.ranks, self.model.layers.len());
        let (wanted, cards) = (ranks.wanted(), 1 + self.site.others.len());
        if self.site.card.is_some() && wanted > cards {
            return Err(StartError::Ranks { wanted, found: cards });
        }
        let sum: u64 = ranks.partition.iter().map(|&layers| u64::from(layers)).sum();
        let odd = !ranks.partition.is_empty() && sum != layers as u64;
        let (dense, shares) = (ranks.partition.contains(&0), ranks.shared == Shared::Experts);
        if !ranks.agree() || odd || dense || wanted > layers && !shares {
            let nearest = self.by_memory(wanted.min(layers))?.iter().map(Range::len).collect();
            let asked = ranks.partition.clone();
            return Err(StartError::Partition { asked, ranks: wanted, layers, nearest });
        }
        if ranks.shared == Shared::Experts {
            return self.by_memory(1);
        }
        if ranks.partition.is_empty() {
            return self.by_memory(wanted);
        }
        let ends = ranks.partition.iter().scan(0, |end, &layers| {
            *end += layers as usize;
            Some(*end - layers as usize..*end)
        });
        Ok(ends.collect())
    }

    /// Layers by memory: the fullest device is as empty as may be, and of equal ones the first have more.
    fn by_memory(&self, ranks: usize) -> Result<Vec<Range<usize>>, StartError> {
        let layers = self.model.layers.len();
        if ranks == 1 {
            return Ok(std::iter::once(0..layers).collect());
        }
        let each =
            (0..layers).map(|layer| self.layer_bytes(layer)).collect::<Result<Vec<_>, _>>()?;
        let room = |rank| self.site.of_rank(rank).available(self.options).0 as f64;
        let room: Vec<f64> = (0..ranks).map(room).collect();
        Ok(spread(&each, &room))
    }

    /// What a layer takes, with embedding or output matrix if it is the first or the last.
    fn layer_bytes(&self, layer: usize) -> Result<f64, StartError> {
        let part = self.model.part(layer..layer + 1);
        let mut layout = Layout::new(self.act_bytes);
        let placed = Placed::plan(&part, self.stock, self.options, &mut layout, None)?;
        let tokens = self.options.context_max.unwrap_or(CONTEXT_COMMON.min(self.model.context_max));
        let dtype = self.options.kv.unwrap_or(KvDtype::Bf16);
        let pages = Cache::page_bytes(&part, PAGE, dtype).0 * u64::from(tokens.div_ceil(PAGE));
        let places = Cache::place_bytes(&part).0 * u64::from(self.options.sequences_max);
        Ok((placed.bytes().0 + pages + places) as f64)
    }
}

/// What all of them take of the host together.
pub fn need_of(parts: &[Part]) -> Need {
    parts.iter().fold(Need::default(), |sum, part| {
        let need = part.plan.need;
        Need {
            weights: sum.weights + need.weights,
            buffers: sum.buffers + need.buffers,
            cache: sum.cache + need.cache,
            ..need
        }
    })
}

fn has_experts(model: &Model<Source>) -> bool {
    model.layers.iter().any(|layer| matches!(layer.ffn, krasis_model::Ffn::Moe(_)))
}

/// How full devices are: the fullest of them, and the sum of the squares of all.
type Fill = (f64, f64);

/// Spreads layers that take `each` over devices that have `room`, at least one for each, so that the
/// fullest is as empty as may be and the others are alike. Of equals, the first have more.
fn spread(each: &[f64], room: &[f64]) -> Vec<Range<usize>> {
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(each.iter().scan(0.0, |sum, bytes| {
            *sum += bytes;
            Some(*sum)
        }))
        .collect();
    let with = |(fullest, squares): Fill, rank: usize, layers: Range<usize>| -> Fill {
        let fill = (sums[layers.end] - sums[layers.start]) / room[rank].max(1.0);
        (fullest.max(fill), squares + fill * fill)
    };
    // For each number of first layers how full the first devices are with them, and where the last of
    // those begins.
    const NEVER: Fill = (f64::MAX, f64::MAX);
    let alone = |end| if end > 0 { with((0.0, 0.0), 0, 0..end) } else { NEVER };
    let mut best: Vec<Vec<(Fill, usize)>> =
        vec![(0..=each.len()).map(|end| (alone(end), 0)).collect()];
    for rank in 1..room.len() {
        let before = &best[rank - 1];
        let of = |end: usize| {
            let fill = |start: usize| (with(before[start].0, rank, start..end), start);
            (rank..end).map(fill).fold((NEVER, 0), |a, b| if b.0 <= a.0 { b } else { a })
        };
        best.push((0..=each.len()).map(of).collect());
    }
    let mut end = each.len();
    let mut parts: Vec<Range<usize>> = best
        .iter()
        .rev()
        .map(|starts| {
            let start = starts[end].1;
            start..std::mem::replace(&mut end, start)
        })
        .collect();
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn layers_go_where_there_is_room() {
        let check = |each: &[f64], room: &[f64], expected: &[usize]| {
            let parts = spread(each, room);
            let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
            assert_eq!(lengths, expected, "{each:?} in {room:?}");
            let ends = parts.iter().fold(0, |end, part| {
                assert_eq!(part.start, end);
                part.end
            });
            assert_eq!(ends, each.len());
        };
        check(&[1.0; 48], &[9.0; 2], &[24, 24]);
        check(&[1.0; 61], &[9.0; 3], &[21, 20, 20]);
        check(&[1.0; 4], &[1.0; 3], &[2, 1, 1]);
        check(&[1.0; 3], &[1.0; 3], &[1, 1, 1]);
        // A device with three times the room, in either place.
        check(&[1.0; 8], &[3.0, 1.0], &[6, 2]);
        check(&[1.0; 8], &[1.0, 3.0], &[2, 6]);
        // A large embedding and a larger output matrix.
        check(&[3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 4.0], &[5.0; 2], &[4, 3]);
        check(&[1.0; 4], &[0.0, 0.0], &[2, 2]);
    }
}
