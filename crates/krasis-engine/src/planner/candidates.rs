//! All that could be done with a model's experts, for whoever measures what is best.

use super::{Draft, Forecast, Part, Time};
use crate::experts::{DecodeStrategy, PrefillStrategy};
use crate::load::Stock;
use crate::options::Residency;
use crate::plan::{CONTEXT_COMMON, CONTEXT_SHORT, Choice, Spill};
use krasis_model::Ffn;

/// A way that fits, and how fast it is foretold to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Where experts lie.
    pub residency: Residency,
    /// Prompt tokens a second, of a prompt as long as was asked for.
    pub prompt: f64,
    /// Tokens a second of an answer.
    pub token: f64,
    /// Tokens that a conversation may have.
    pub context_max: u32,
    /// Rows from which a pass is a prompt's, where experts lie in host memory.
    pub threshold: Option<u32>,
}

impl<S: Stock> Draft<'_, S> {
    /// What fits with a context that is long enough to talk in, or if nothing does, with any; those with
    /// the fastest prompts of so many tokens first.
    pub fn candidates(&self, tokens: u32) -> Vec<Candidate> {
        let enough = self.those_with(tokens, CONTEXT_SHORT);
        if enough.is_empty() { self.those_with(tokens, 1) } else { enough }
    }

    fn those_with(&self, tokens: u32, context_min: u32) -> Vec<Candidate> {
        let (mut found, spill) = (Vec::new(), Spill::Nothing);
        let all = Choice { away: None, spill, context_min, context_most: u32::MAX };
        found.extend(self.lay_out(all).ok().map(|parts| (Residency::Device, parts)));
        // Without experts there is nothing to ask for.
        let layers =
            self.model.layers.iter().filter(|layer| matches!(layer.ffn, Ffn::Moe(_))).count()
                as u32;
        let mut groups = vec![2, 4, layers];
        groups.retain(|&groups| groups <= layers);
        groups.sort_unstable();
        groups.dedup();
        let groups = groups.into_iter().map(PrefillStrategy::LayerGrouped);
        let others =
            [PrefillStrategy::Chunked, PrefillStrategy::ActiveOnly, PrefillStrategy::HcsPrefill];
        for prefill in groups.chain(others) {
            for decode in DecodeStrategy::ALL {
                let away = Some((prefill, decode));
                let context_most = CONTEXT_COMMON;
                let choice = Choice { away, spill, context_min, context_most };
                let residency = Residency::Host { prefill, decode };
                found.extend(self.lay_out(choice).ok().map(|parts| (residency, parts)));
            }
        }
        let mut candidates: Vec<Candidate> = found
            .into_iter()
            .map(|(residency, parts)| {
                let plan = &parts[0].plan;
                let tokens = tokens.min(plan.context_max).max(1);
                let forecasts: Vec<Forecast> = parts.iter().map(Part::forecast).collect();
                let all = |time: &dyn Fn(&Forecast) -> Time| -> f64 {
                    forecasts.iter().map(|forecast| time(forecast).seconds).sum()
                };
                Candidate {
                    residency,
                    prompt: f64::from(tokens) / all(&|forecast| forecast.prompt(tokens)),
                    token: 1.0 / all(&|forecast| forecast.token()),
                    context_max: plan.context_max,
                    threshold: plan.away.as_ref().map(|away| away.threshold),
                }
            })
            .collect();
        candidates.sort_by(|a, b| b.prompt.total_cmp(&a.prompt).then(b.token.total_cmp(&a.token)));
        candidates
    }
}
