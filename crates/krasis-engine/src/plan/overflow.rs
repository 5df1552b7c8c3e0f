//! A plan for a model that is larger than memory: slots for as many experts as there is room for.

use super::{Choice, Pool, bytes_of};
use crate::error::StartError;
use crate::experts::OverflowPlan;
use crate::options::Options;
use crate::planner::Site;
use krasis_core::{Bytes, Layout};
use krasis_model::{Model, Source};
use krasis_ops::Bank;

/// The part of the available memory that a plan takes where it could take all: what is left is for the
/// system, for others, and for the watchdog, which ends programs when the last 5 % of memory are taken.
const MOST_PERCENT: u64 = 85;

/// What becomes of experts that memory has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spill {
    /// There must be none.
    Nothing,
    /// They stay in the cache on the disk.
    ToDisk,
}

impl Spill {
    /// Memory that a plan may take of what is available.
    pub(super) fn available(self, site: &Site, options: &Options) -> Bytes {
        let all = site.available(options);
        match (self, site.host.machine.available()) {
            (Spill::ToDisk, Some(Bytes(available))) => {
                all.min(Bytes(available / 100 * MOST_PERCENT))
            }
            _ => all,
        }
    }
}

impl Choice {
    /// Prompt tokens of a pass that reads experts once: what they take between two layers is memory that
    /// experts could have, so they are no more than a context.
    pub(super) fn pass_from_disk(&self, model: &Model<Source>, options: &Options) -> u32 {
        let context = options.context_max.unwrap_or(self.context_most).min(model.context_max);
        options.pass_tokens.min(context)
    }
}

impl Pool<'_> {
    /// Routed experts that are to share slots in memory, and of which most are on the disk.
    pub(super) fn spilled<'a>(
        banks: &'a [Option<Bank>],
        model: &Model<Source>,
    ) -> Result<Pool<'a>, StartError> {
        use crate::experts::{DecodeStrategy, PrefillStrategy};
        Pool::of(banks, model, (PrefillStrategy::ActiveOnly, DecodeStrategy::Lru), 0)
    }

    /// Slots for what is left of `available`, up to all experts.
    pub(super) fn plan_overflow(
        &self,
        rows_max: u32,
        available: Bytes,
        layout: &mut Layout,
    ) -> Result<OverflowPlan, StartError> {
        let Bank { gate_up, down, experts, .. } = self.bank;
        let each = (bytes_of(gate_up) + bytes_of(down)).0 / u64::from(*experts);
        let [places, ..] = self.lists(rows_max, layout);
        let left = Bytes(available.0.saturating_sub(layout.bytes().0));
        let all = self.layers * experts;
        // Some are read while others are computed.
        let least = (2 * self.top_k).min(all);
        match self.slots_within(left, available, layout) {
            fit if fit >= least => Ok(OverflowPlan {
                pool: self.place(fit, layout),
                places,
                experts: all,
                expert_bytes: Bytes(each),
            }),
            _ => Err(StartError::Shortfall {
                region: "the experts that are in memory at a time",
                wanted: Bytes(each * u64::from(least + 1)),
                available: left,
                remedy: "lower --context-max or --prefill-chunk, or free memory".into(),
            }),
        }
    }
}
