//! Which plan is best: where routed experts lie, who computes them, and how fast that will be. A pure
//! function of model, wishes and machine; sizes are those of [`crate::plan::Plan`], which is what gets allocated.
//!
//! Without wishes everything lies on the GPU, if that leaves room for [`CONTEXT_COMMON`] tokens. Else the
//! experts lie in host memory: prompts bring what is not hot, layer by layer, if a layer's experts fit,
//! and else in waves; and answers are computed by whoever is expected to be faster at what is missing.
//! Without a GPU, what host memory has no room for stays on the disk.

mod candidates;
mod forecast;
mod nearest;
mod parts;
mod proposal;
mod site;
mod work;

pub use candidates::Candidate;
pub use forecast::{Forecast, Rule, Time};
pub use parts::{Part, need_of};
pub use proposal::{OnRank, Overflow, Proposal};
pub use site::{Card, Class, Host, Site, class_multiply, class_of, class_read};
pub use work::{Count, Work};

use crate::error::StartError;
use crate::experts::{DecodeStrategy, PrefillStrategy};
use crate::load::{Placed, Stock};
use crate::options::{CacheUse, Options, Residency};
use crate::plan::{CONTEXT_COMMON, CONTEXT_SHORT, Choice, Spill};
use krasis_core::KvDtype;
use krasis_model::{CacheShape, Model, Source};
use std::ops::RangeInclusive;

/// The length of prompt that strategies are compared at.
const PROMPT: u32 = 8192;

/// Rows from which a pass is a prompt's where nobody has measured or asked for anything.
const THRESHOLD: u32 = 300;

/// Longer passes bring experts whatever the CPU could do: what it computes takes memory.
const THRESHOLD_MAX: u32 = 4096;

/// What a plan is made from.
pub struct Draft<'a, S> {
    /// The model, or the part of one that is for one device.
    pub model: &'a Model<Source>,
    /// Layers before it, on other devices.
    pub before: usize,
    /// Where its weights come from.
    pub stock: &'a S,
    /// What the user wants.
    pub options: &'a Options,
    /// Bytes of an activation on its device.
    pub act_bytes: u32,
    /// The machine.
    pub site: &'a Site,
}

impl<S> Clone for Draft<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S> Copy for Draft<'_, S> {}

impl<S: Stock> Draft<'_, S> {
    /// The best plan, or why there is none and what is nearest.
    pub fn plan(&self) -> Result<Vec<Part>, StartError> {
        let parts = self.choose().map_err(|error| self.with_the_nearest(error))?;
        match self.options.ranks.helpers() {
            0 => Ok(parts),
            _ if parts[0].plan.helpers.is_empty() => Err(StartError::NothingToShare),
            _ => Ok(parts),
        }
    }

    /// The best plan.
    fn choose(&self) -> Result<Vec<Part>, StartError> {
        let all = |context_min| self.all(context_min);
        match self.options.residency {
            Residency::Device => all(1),
            Residency::Host { prefill, decode } => self.away(prefill, decode, 1..=CONTEXT_COMMON),
            // Whoever works in host memory has no other to put experts into, unless it plays a GPU's.
            Residency::Auto if self.site.card.is_none() && self.options.device_bytes.is_none() => {
                self.in_host_memory()
            }
            Residency::Auto => match all(CONTEXT_COMMON) {
                Err(StartError::Shortfall { .. }) => {
                    self.best_away().or_else(|error| match error {
                        // A model without experts to put elsewhere has to do with a shorter context.
                        StartError::NoExperts | StartError::UnlikeExperts => all(1),
                        other => Err(other),
                    })
                }
                plan => plan,
            },
        }
    }

    fn away(
        &self,
        prefill: PrefillStrategy,
        decode: DecodeStrategy,
        context: RangeInclusive<u32>,
    ) -> Result<Vec<Part>, StartError> {
        let (context_min, context_most) = context.into_inner();
        let (away, spill) = (Some((prefill, decode)), Spill::Nothing);
        self.lay_out(Choice { away, spill, context_min, context_most })
    }

    /// Everything on the device.
    fn all(&self, context_min: u32) -> Result<Vec<Part>, StartError> {
        let (spill, context_most) = (Spill::Nothing, u32::MAX);
        self.lay_out(Choice { away: None, spill, context_min, context_most })
    }

    /// Whoever works in host memory has no other to put experts into, but there is the disk, if all of them
    /// leave no context to talk in. Several parts share one memory, and none reads from the disk.
    fn in_host_memory(&self) -> Result<Vec<Part>, StartError> {
        use StartError::{NoExperts, Refused, Shortfall, UnlikeExperts};
        let plan = self.all(CONTEXT_SHORT);
        let is_too_much = matches!(plan, Err(Shortfall { .. } | Refused { .. }));
        let alone = self.options.ranks.wanted() == 1;
        if !is_too_much || self.options.cache == CacheUse::Off || !alone {
            return plan.or_else(|_| self.all(1));
        }
        let (context_min, context_most) = (1, CONTEXT_SHORT);
        let choice = Choice { away: None, spill: Spill::ToDisk, context_min, context_most };
        match self.lay_out(choice) {
            Err(NoExperts | UnlikeExperts) => self.all(1),
            spilled => spilled.or_else(|error| self.all(1).map_err(|_| error)),
        }
    }

    /// The best of what experts in host memory leave to choose from. Groups of several layers are never
    /// better than single ones with hot experts, which need the least memory and send the least. Where
    /// not even one layer's experts fit, hardly any would stay on the GPU, and the CPU writes answers.
    fn best_away(&self) -> Result<Vec<Part>, StartError> {
        use {DecodeStrategy as D, PrefillStrategy as P};
        let layers = |decode| self.away(P::HcsPrefill, decode, CONTEXT_SHORT..=CONTEXT_COMMON);
        match layers(D::HcsHybrid) {
            Ok(hybrid) => {
                let token = |forecast: &Forecast| forecast.token().seconds;
                // The bus may be faster than the host's memory, and that faster than the GPU's.
                let best = self.faster(hybrid, layers(D::Lru).ok(), token);
                Ok(self.faster(best, layers(D::PureCpu).ok(), token))
            }
            Err(StartError::Shortfall { .. }) => {
                let waves = |prefill| self.away(prefill, D::PureCpu, 1..=CONTEXT_SHORT);
                let prompt = |forecast: &Forecast| forecast.prompt(PROMPT).seconds;
                Ok(self.faster(waves(P::ActiveOnly)?, waves(P::Chunked).ok(), prompt))
            }
            error => error,
        }
    }

    /// The second plan if it is faster at something, else the first.
    fn faster(
        &self,
        first: Vec<Part>,
        second: Option<Vec<Part>>,
        at: impl Fn(&Forecast) -> f64,
    ) -> Vec<Part> {
        let seconds =
            |parts: &[Part]| -> f64 { parts.iter().map(|part| at(&part.forecast())).sum() };
        match second {
            Some(second) if seconds(&second) < seconds(&first) => second,
            _ => first,
        }
    }

    /// Rows from which a pass is a prompt's. A whole chunk is, however short the user wants chunks to be.
    pub(crate) fn threshold(&self, placed: &Placed) -> u32 {
        let rows = self.options.prompt_rows.unwrap_or_else(|| match &self.site.card {
            None => THRESHOLD,
            Some(card) => {
                let cache = CacheShape { pages: 0, page: 1, places: 0, dtype: KvDtype::Bf16 };
                let work = Work::of(self.model, placed, cache);
                Forecast::threshold(&work, card, &self.site.host, THRESHOLD_MAX)
            }
        });
        rows.min(self.options.prefill_chunk).max(1)
    }
}
