//! Speed while it runs, against what it was expected to be. A plan that measures worse is told of once, and
//! where another strategy is known to be faster, that one is wished for.
//!
//! Only what the expectation is about is looked at: steps that write one token of one answer, whose past
//! costs what the forecast says, and prompts that are read alone and from their beginning.

use crate::experts::DecodeStrategy;
use crate::planner::Forecast;
use std::time::Duration;

/// How much longer than expected a time may be. Forecasts are within 20 % where they were compared, and
/// machines of other kinds are scaled.
pub const MARGIN: f64 = 1.5;

/// Tokens and prompts after which a judgement is made, and again after as many.
const TOKENS: u32 = 512;
const PROMPTS: u32 = 8;

/// Shorter prompts are ruled by what no forecast counts.
const PROMPT_MIN: u32 = 256;

/// Foretold times of tokens below this are ruled by what no forecast counts, and those of prompts below a
/// hundred times this.
const COUNTED: f64 = 1e-3;

/// How much faster another strategy has to be to take the place of one.
const GAIN: f64 = 1.1;

/// What a model's speed is held against.
#[derive(Clone, Debug, PartialEq)]
pub enum Outlook {
    /// Nobody looks.
    Nothing,
    /// What the plan foretells.
    Foretold,
    /// What was measured on this machine before.
    Measured {
        /// A prompt of so many tokens, and its seconds.
        prompt: (u32, f64),
        /// Ways to write tokens; that of the plan among them.
        known: Vec<Known>,
    },
}

/// A strategy that was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Known {
    /// For few rows.
    pub decode: DecodeStrategy,
    /// Rows from which a pass is a prompt's.
    pub threshold: u32,
    /// Seconds of a token behind a short past.
    pub token: f64,
}

/// What there is to say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub sentence: String,
    /// What to go on with.
    pub wish: Option<Known>,
}

/// Compares.
pub(crate) struct Lookout {
    /// Seconds of a token without a past, by the forecast, and more for each token of it.
    foretold: f64,
    past: f64,
    /// Lengths of prompts with their seconds.
    prompts: Vec<(u32, f64)>,
    /// What is expected to take less is not looked at.
    least: f64,
    known: Vec<Known>,
    /// The strategy at work, if there are several.
    now: Option<DecodeStrategy>,
    told: Vec<Option<DecodeStrategy>>,
    told_of_prompts: bool,
    token: Sums,
    prompt: Sums,
}

/// What was measured since the last judgement.
#[derive(Default)]
struct Sums {
    count: u32,
    expected: f64,
    taken: f64,
}

impl Sums {
    /// How many times as long as expected it took, once enough is known.
    fn add(&mut self, expected: f64, taken: Duration, enough: u32) -> Option<f64> {
        self.count += 1;
        self.expected += expected;
        self.taken += taken.as_secs_f64();
        (self.count >= enough).then(|| {
            let sums = std::mem::take(self);
            sums.taken / sums.expected.max(1e-9)
        })
    }
}

impl Lookout {
    /// For a plan and prompts of up to so many tokens a pass; nothing if there is nothing to compare with.
    pub fn new(
        outlook: &Outlook,
        forecast: &Forecast,
        now: Option<DecodeStrategy>,
        pass_max: u32,
    ) -> Option<Lookout> {
        let far = 32_768;
        let foretold = forecast.token_after(0.0).seconds;
        let past = (forecast.token_after(f64::from(far)).seconds - foretold) / f64::from(far);
        let lengths = (8..32).map(|power| 1u32 << power).take_while(|&tokens| tokens < pass_max);
        let mut prompts: Vec<(u32, f64)> = lengths
            .chain([pass_max])
            .map(|tokens| (tokens, forecast.prompt(tokens).seconds))
            .collect();
        let (least, known) = match outlook {
            Outlook::Nothing => return None,
            Outlook::Foretold if forecast.is_of_a_player() => return None,
            Outlook::Foretold => (COUNTED, Vec::new()),
            Outlook::Measured { prompt: (tokens, seconds), known } => {
                let scale = seconds / at(&prompts, *tokens).max(1e-9);
                prompts.iter_mut().for_each(|(_, of)| *of *= scale);
                (0.0, known.clone())
            }
        };
        Some(Lookout {
            foretold,
            past,
            prompts,
            least,
            known,
            now,
            told: Vec::new(),
            told_of_prompts: false,
            token: Sums::default(),
            prompt: Sums::default(),
        })
    }

    /// Another strategy is at work.
    pub fn switched(&mut self, decode: DecodeStrategy) {
        self.now = Some(decode);
        self.token = Sums::default();
    }

    fn at_work(&self) -> Option<usize> {
        self.known.iter().position(|known| Some(known.decode) == self.now)
    }

    /// A step has written one token behind so many.
    pub fn wrote(&mut self, past: u32, time: Duration) -> Option<Verdict> {
        let at_work = self.at_work();
        let base = at_work.map_or(self.foretold, |index| self.known[index].token);
        if base < self.least {
            return None;
        }
        let expected = base + self.past * f64::from(past);
        let (count, sum) = (self.token.count + 1, self.token.expected + expected);
        let ratio = self.token.add(expected, time, TOKENS)?;
        if ratio <= MARGIN || self.told.contains(&self.now) {
            return None;
        }
        self.told.push(self.now);
        let mean = sum / f64::from(count);
        let mut sentence = format!(
            "tokens take {:.2} ms each, and {:.2} ms were expected",
            1e3 * mean * ratio,
            1e3 * mean
        );
        let mut wish = None;
        if let Some(index) = at_work {
            self.known[index].token *= ratio;
            let taken = self.known[index].token;
            let best = self.known.iter().min_by(|a, b| a.token.total_cmp(&b.token));
            wish = best.filter(|best| best.token * GAIN < taken).copied();
        }
        sentence += &match (wish, at_work) {
            (Some(other), _) => format!(
                ": {} was measured at {:.2} ms and takes over when nobody is being answered",
                other.decode,
                1e3 * other.token
            ),
            (None, Some(_)) => ": no strategy is known to be faster".into(),
            (None, None) => ": `krasis tune` measures which strategy is fastest here".into(),
        };
        Some(Verdict { sentence, wish })
    }

    /// A pass has read a prompt of so many tokens, or its beginning, and nothing else.
    pub fn read(&mut self, tokens: u32, time: Duration) -> Option<Verdict> {
        let expected = at(&self.prompts, tokens);
        if tokens < PROMPT_MIN || expected < 100.0 * self.least {
            return None;
        }
        let ratio = self.prompt.add(expected, time, PROMPTS)?;
        if ratio <= MARGIN || std::mem::replace(&mut self.told_of_prompts, ratio > MARGIN) {
            return None;
        }
        let sentence = format!(
            "prompts take {ratio:.1} times as long as was expected: `krasis tune --force-optimize` \
             measures which strategy is fastest now"
        );
        Some(Verdict { sentence, wish: None })
    }
}

/// Between two known lengths, on a line.
fn at(prompts: &[(u32, f64)], tokens: u32) -> f64 {
    let after = prompts.partition_point(|&(length, _)| length < tokens);
    match (after.checked_sub(1).map(|before| prompts[before]), prompts.get(after)) {
        (Some((a, low)), Some(&(b, high))) => {
            low + (high - low) * f64::from(tokens - a) / f64::from(b - a)
        }
        (None, Some(&(_, first))) => first,
        (Some((length, last)), None) => last * f64::from(tokens) / f64::from(length.max(1)),
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DecodeStrategy::{HcsHybrid, Lru, PureCpu};

    const MS: Duration = Duration::from_millis(1);

    fn lookout(known: &[(DecodeStrategy, f64)]) -> Lookout {
        let known = known.iter().map(|&(decode, token)| Known { decode, threshold: 9, token });
        Lookout {
            foretold: 1e-3,
            past: 1e-6,
            prompts: vec![(256, 0.1), (512, 0.2)],
            least: COUNTED,
            now: Some(HcsHybrid),
            known: known.collect(),
            told: Vec::new(),
            told_of_prompts: false,
            token: Sums::default(),
            prompt: Sums::default(),
        }
    }

    /// What is said of so many tokens.
    fn wrote(of: &mut Lookout, tokens: u32, past: u32, time: Duration) -> Vec<Verdict> {
        (0..tokens).filter_map(|_| of.wrote(past, time)).collect()
    }

    #[test]
    fn what_is_as_slow_as_expected_is_not_told() {
        let mut of = lookout(&[]);
        assert_eq!(wrote(&mut of, 5 * TOKENS, 0, MS * 14 / 10), []);
        // A past of 10,000 tokens takes 10 ms more.
        assert_eq!(wrote(&mut of, 5 * TOKENS, 10_000, 16 * MS), []);
        assert_eq!(wrote(&mut of, TOKENS - 1, 0, 9 * MS), []);
    }

    #[test]
    fn what_is_too_short_to_be_foretold_is_not_looked_at() {
        let mut of = lookout(&[]);
        (of.foretold, of.prompts) = (0.9e-3, vec![(256, 0.09)]);
        assert_eq!(wrote(&mut of, 5 * TOKENS, 0, 50 * MS), []);
        assert!((0..40).all(|_| of.read(256, 900 * MS).is_none()));
    }

    #[test]
    fn what_is_slower_is_told_once() {
        let mut of = lookout(&[]);
        let told = wrote(&mut of, 5 * TOKENS, 0, 3 * MS);
        assert_eq!(told.len(), 1);
        assert!(told[0].sentence.contains("3.00 ms each, and 1.00 ms") && told[0].wish.is_none());
        let mut read = |tokens, time| (0..40).filter_map(|_| of.read(tokens, time)).count();
        assert_eq!(read(384, 200 * MS), 0);
        assert_eq!(read(100, 2000 * MS), 0);
        assert_eq!(read(384, 300 * MS), 1);
        assert_eq!(read(1024, 3000 * MS), 0);
    }

    #[test]
    fn the_fastest_that_is_known_takes_over_until_it_is_known_better() {
        let mut of = lookout(&[(HcsHybrid, 1e-3), (PureCpu, 2.5e-3), (Lru, 4e-3)]);
        let told = wrote(&mut of, TOKENS, 0, 3 * MS);
        assert_eq!(told[0].wish.map(|known| known.decode), Some(PureCpu));
        of.switched(PureCpu);
        // It is slower than it was as well, and what came first is the best that is known again.
        let told = wrote(&mut of, TOKENS, 0, 9 * MS);
        assert_eq!(told[0].wish.map(|known| known.decode), Some(HcsHybrid));
        of.switched(HcsHybrid);
        assert_eq!(wrote(&mut of, 9 * TOKENS, 0, 20 * MS), [], "it has been told of");
        let mut of = lookout(&[(HcsHybrid, 1e-3), (PureCpu, 2.9e-3)]);
        let told = wrote(&mut of, TOKENS, 0, 3 * MS);
        assert!(told[0].wish.is_none(), "hardly faster is not worth a change: {told:?}");
    }
}
