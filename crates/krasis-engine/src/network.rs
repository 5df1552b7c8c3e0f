//! The layers of a model, and what they work in.

use crate::experts::{Experts, Work};
use crate::step::{ChosenPlaces, StepSlots};
use krasis_core::Weight;
use krasis_model::blocks::{self, Step, moe};
use krasis_model::{Buffers, Cache, Ffn, Model};
use krasis_ops::{Memory, Nobody, Ops};
use std::ops::Range;

/// What a forward pass is made of besides its input and its routed experts.
pub struct Network {
    /// Its weights.
    pub model: Model<Weight>,
    /// What each layer remembers.
    pub caches: Vec<Cache>,
    /// Activations.
    pub buffers: Buffers,
    /// Layers that come before, on other devices, which then leave the first one's input in `buffers`.
    pub before: usize,
}

/// Whether a device may remember the operations between two layers' experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Under keys from this one on.
    From(u32),
    /// They come once.
    Never,
}

impl Network {
    /// Some layers for a chunk, from token ids if the model's first is among them, and to what `end` makes
    /// of the last. Each finds its input in `b.normed`.
    pub(crate) fn layers<D: Ops + Memory>(
        &self,
        d: &mut D,
        (experts, helpers): (&mut Experts, &mut [D]),
        layers: Range<usize>,
        (step, b): (&Step, &Buffers),
        repeat: Repeat,
        end: impl Fn(&mut D),
    ) {
        let (mut done, mut part) = (None, 0);
        loop {
            let first = done.map_or(layers.start, |layer| layer + 1);
            let next = (first..layers.end).find(|&layer| self.work(layer, step, b).is_some());
            let body = |d: &mut D| {
                match done {
                    Some(layer) => blocks::after_experts(d, &self.model, layer, b),
                    None if first + self.before == 0 => blocks::embed(d, &self.model, step, b),
                    None => {}
                }
                for layer in first..next.unwrap_or(layers.end) {
                    d.layer(Some(layer as u32));
                    self.before_experts(d, layer, step, b);
                    blocks::after_experts(d, &self.model, layer, b);
                }
                d.layer(next.map(|layer| layer as u32));
                match next {
                    Some(layer) => self.before_experts(d, layer, step, b),
                    None if layers.end == self.model.layers.len() => end(d),
                    None => {}
                }
            };
            match repeat {
                Repeat::From(key) => d.repeat(key + part, &mut Nobody, |d, _| body(d)),
                Repeat::Never => body(d),
            }
            let Some(layer) = next else { return };
            let work = self.work(layer, step, b).expect("it was found for its experts");
            experts.run(d, helpers, layer, work);
            (done, part) = (next, part + 1);
        }
    }

    /// One layer.
    pub fn layer<D: Ops + Memory>(
        &self,
        d: &mut D,
        experts: &mut Experts,
        layer: usize,
        step: &Step,
        b: &Buffers,
    ) {
        self.before_experts(d, layer, step, b);
        if let Some(work) = self.work(layer, step, b) {
            experts.run(d, &mut [], layer, work);
        }
        blocks::after_experts(d, &self.model, layer, b);
    }

    fn before_experts<D: Ops>(&self, d: &mut D, index: usize, step: &Step, b: &Buffers) {
        let (layer, cache) = (&self.model.layers[index], &self.caches[index]);
        blocks::before_experts(d, layer, self.model.eps, cache, step, b);
    }

    /// What a layer's routed experts have to do, if it has any.
    pub(crate) fn work(&self, layer: usize, step: &Step, b: &Buffers) -> Option<Work> {
        let Ffn::Moe(m) = &self.model.layers[layer].ffn else { return None };
        let pairs = step.rows * m.routing.top_k;
        Some(Work {
            x: b.normed,
            routes: moe::routes(m, b),
            inner: b.pair_inner.mat(pairs, m.experts.inter),
            out: b.pairs.mat(pairs, self.model.hidden),
        })
    }

    /// Logits of chosen rows of the last pass, and what is largest in them.
    pub(crate) fn logits<D: Ops>(&self, d: &mut D, chosen: ChosenPlaces, s: &StepSlots) {
        let count = chosen.rows.len as u32;
        let (rows, logits) = (s.rows.first(count), s.logits.first(count));
        blocks::logits(d, &self.model, &self.buffers, chosen.rows, rows, logits);
        d.largest(logits, chosen.scales, s.largest.first(count));
    }
}
