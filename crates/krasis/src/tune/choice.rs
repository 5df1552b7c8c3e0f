//! Which of the measured strategies is best: prompts first, because they are what people wait for; among
//! those that read them about as fast, the one that writes fastest.

use crate::measure::median;
use krasis_engine::{DecodeStrategy, Known, Options, Outlook, PrefillStrategy, Residency};

/// How much longer a prompt may take than the fastest for the sake of answers.
pub const AS_FAST: f64 = 1.05;

/// How prompts are read: the part of a strategy that memory is laid out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// None if all experts lie on the GPU.
    pub prefill: Option<PrefillStrategy>,
    /// Prompt tokens of a step.
    pub chunk: u32,
}

/// What was measured of a way; times are in seconds and in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Of what.
    pub way: Way,
    /// Rows from which a pass is a prompt's, where experts lie in host memory.
    pub threshold: Option<u32>,
    /// Of a prompt, to its first token.
    pub prompt: Vec<f64>,
    /// Of a token, by who writes it; nobody is to be named where all experts lie on the GPU.
    pub decodes: Vec<(Option<DecodeStrategy>, Vec<f64>)>,
    /// Why it was not measured.
    pub failed: Option<String>,
}

/// What is best.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// For prompts.
    pub way: Way,
    /// For answers.
    pub decode: Option<DecodeStrategy>,
    /// Between the two.
    pub threshold: Option<u32>,
    /// Seconds of a prompt.
    pub prompt: f64,
    /// Seconds of a token.
    pub token: f64,
    /// The same by other strategies that need no other memory.
    pub others: Vec<(Option<DecodeStrategy>, f64)>,
}

/// The best of what was measured.
pub fn best(trials: &[Trial]) -> Option<Choice> {
    let measured = trials.iter().filter(|trial| trial.failed.is_none());
    let measured: Vec<(&Trial, f64)> =
        measured.filter_map(|trial| Some((trial, median(&trial.prompt)?))).collect();
    let fastest = measured.iter().map(|(_, prompt)| *prompt).min_by(f64::total_cmp)?;
    let as_fast = measured.into_iter().filter(|(_, prompt)| *prompt <= AS_FAST * fastest);
    let writers = as_fast.flat_map(|(trial, prompt)| {
        let others: Vec<(Option<DecodeStrategy>, f64)> = (trial.decodes.iter())
            .filter_map(|(decode, seconds)| Some((*decode, median(seconds)?)))
            .collect();
        others.clone().into_iter().map(move |(decode, token)| Choice {
            way: trial.way,
            decode,
            threshold: trial.threshold,
            prompt,
            token,
            others: others.clone(),
        })
    });
    writers.min_by(|a, b| a.token.total_cmp(&b.token).then(a.prompt.total_cmp(&b.prompt)))
}

impl Way {
    /// Where experts lie.
    pub fn residency(&self, decode: Option<DecodeStrategy>) -> Residency {
        match (self.prefill, decode) {
            (Some(prefill), Some(decode)) => Residency::Host { prefill, decode },
            _ => Residency::Device,
        }
    }
}

impl Choice {
    /// Has a model run like this; a prompt of so many tokens was measured.
    pub fn apply(&self, options: &mut Options, tokens: u32) {
        options.residency = self.way.residency(self.decode);
        options.prefill_chunk = self.way.chunk;
        options.prompt_rows = options.prompt_rows.or(self.threshold);
        if options.outlook != Outlook::Nothing {
            let known = |&(decode, token): &(Option<DecodeStrategy>, f64)| {
                Some(Known { decode: decode?, threshold: self.threshold?, token })
            };
            let known = self.others.iter().filter_map(known).collect();
            options.outlook = Outlook::Measured { prompt: (tokens, self.prompt), known };
        }
    }
}

/// As upstream names it.
pub fn prefill_name(prefill: Option<PrefillStrategy>) -> String {
    prefill.map_or("persistent".into(), |prefill| prefill.to_string())
}

/// The same for answers.
pub fn decode_name(decode: Option<DecodeStrategy>) -> String {
    decode.map_or("persistent".into(), |decode| decode.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use DecodeStrategy::{HcsHybrid, Lru, PureCpu};

    fn trial(chunk: u32, prompt: f64, decodes: &[(DecodeStrategy, f64)]) -> Trial {
        Trial {
            way: Way { prefill: Some(PrefillStrategy::HcsPrefill), chunk },
            threshold: Some(100),
            prompt: vec![prompt / 2.0, prompt, 3.0 * prompt],
            decodes: decodes.iter().map(|&(d, time)| (Some(d), vec![time; 3])).collect(),
            failed: None,
        }
    }

    fn check(trials: &[Trial], expected: Option<(u32, DecodeStrategy)>) {
        let got = best(trials).map(|best| (best.way.chunk, best.decode.unwrap()));
        assert_eq!(got, expected);
    }

    #[test]
    fn prompts_come_first_and_answers_decide_among_equals() {
        let slow = trial(1, 2.0, &[(Lru, 0.001)]);
        let fast = trial(2, 1.0, &[(HcsHybrid, 0.02), (PureCpu, 0.03)]);
        let nearly = trial(3, 1.04, &[(PureCpu, 0.01), (Lru, 0.09)]);
        let unmeasured = trial(4, 0.9, &[]);
        let failed = Trial { failed: Some("no".into()), ..trial(5, 0.1, &[(Lru, 0.1)]) };
        check(&[], None);
        check(std::slice::from_ref(&slow), Some((1, Lru)));
        check(&[slow.clone(), fast.clone()], Some((2, HcsHybrid)));
        check(&[slow.clone(), fast.clone(), nearly.clone(), failed.clone()], Some((3, PureCpu)));
        // Nobody knows who would write beside the fastest, so it cannot be chosen, nor what is slower.
        check(&[fast, nearly, unmeasured], None);
        check(&[failed], None);
    }
}
