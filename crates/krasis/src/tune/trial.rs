//! One way to read prompts, loaded and timed; who writes tokens beside it changes without loading again.

use super::choice::{AS_FAST, Trial, Way, decode_name};
use super::record::Lengths;
use crate::exit::Failure;
use crate::measure::{Prompts, Runs, measure, median};
use crate::submit::Answer;
use crate::target::Target;
use krasis_engine::{
    DecodeStrategy, ExpertCensus, Handle, HeatMap, Options, Outlook, Running, Watch,
};
use std::sync::Arc;

/// What takes so many times as long as the best that is known is not measured again.
const HOPELESS: f64 = 3.0;

/// Rows that the CPU is tried with at most.
const ROWS_MAX: u32 = 4096;

/// The shortest prompt that is tried both ways.
const ROWS_MIN: u32 = 16;

/// Prompt of a decode run.
const DECODE_PROMPT: u32 = 32;

/// A way with what is foretold of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub way: Way,
    /// Prompt tokens a second.
    pub prompt: f64,
    /// Who may write beside it, and tokens a second.
    pub decodes: Vec<(Option<DecodeStrategy>, f64)>,
    /// Rows from which a pass is a prompt's, by the forecast.
    pub threshold: Option<u32>,
}

/// What is measured, and how often.
pub struct Bench<'a> {
    pub target: &'a Target,
    /// What the user wants; where experts lie is not decided yet.
    pub options: &'a Options,
    pub lengths: Lengths,
    /// What prompts are made of.
    pub text: &'a [u32],
    pub watch: &'a dyn Watch,
}

/// A model that is loaded one way.
struct Loaded<'a> {
    bench: &'a Bench<'a>,
    handle: Handle,
    experts: Option<Arc<ExpertCensus>>,
    prompts: Prompts,
}

impl Bench<'_> {
    /// Loads a way and measures it; `best` is the shortest prompt so far. What was asked for meanwhile
    /// comes with the result.
    pub fn run(&self, planned: &Planned, best: Option<f64>) -> (Trial, Option<HeatMap>) {
        let mut trial = Trial {
            way: planned.way,
            threshold: planned.threshold,
            prompt: Vec::new(),
            decodes: Vec::new(),
            failed: None,
        };
        let heat = self.fill(planned, best, &mut trial);
        let heat = heat.unwrap_or_else(|failure| {
            trial.failed = Some(format!("{:#}", failure.error));
            None
        });
        (trial, heat)
    }

    fn fill(
        &self,
        planned: &Planned,
        best: Option<f64>,
        trial: &mut Trial,
    ) -> Result<Option<HeatMap>, Failure> {
        let first = planned.decodes.first().and_then(|(decode, _)| *decode);
        // Prompts that the CPU is tried with take memory of the host's.
        let most = planned.threshold.map(|rows| (2 * rows).min(ROWS_MAX).min(planned.way.chunk));
        let options = Options {
            residency: planned.way.residency(first),
            prefill_chunk: planned.way.chunk,
            prompt_rows: self.options.prompt_rows.or(most),
            outlook: Outlook::Nothing,
            ..self.options.clone()
        };
        let Running { handle, thread, .. } = self.target.start(&options, self.watch)?;
        let mut loaded = Loaded {
            bench: self,
            experts: handle.census.experts.get().cloned(),
            prompts: Prompts::new(handle.facts.vocab, self.text.to_vec()),
            handle,
        };
        let result = loaded.fill(planned, best, most, trial);
        let heat = loaded.heat();
        drop(loaded);
        // The next one needs the memory.
        thread.join().map_err(|_| Failure::say(Failure::DEVICE, "the engine has failed"))?;
        result.map(|()| heat)
    }
}

impl Loaded<'_> {
    fn fill(
        &mut self,
        planned: &Planned,
        best: Option<f64>,
        most: Option<u32>,
        trial: &mut Trial,
    ) -> Result<(), Failure> {
        let Lengths { prompt, answer, .. } = self.bench.lengths;
        let first = planned.decodes.first().and_then(|(decode, _)| *decode);
        self.wish(first, planned.threshold);
        trial.prompt = self.prompt(prompt, best)?;
        let Some(taken) = median(&trial.prompt) else { return Ok(()) };
        if best.is_some_and(|best| taken > AS_FAST * best) {
            return Ok(());
        }
        let mut fastest: Option<(f64, Option<DecodeStrategy>)> = None;
        for &(decode, _) in &planned.decodes {
            self.wish(decode, planned.threshold);
            let of_token =
                |of: &Answer| of.usage.decode.as_secs_f64() / f64::from(of.tokens.len() as u32 - 1);
            let lengths = (DECODE_PROMPT.min(prompt), answer);
            let hopeless = |token: f64| fastest.is_some_and(|(best, _)| token > HOPELESS * best);
            let seconds = self.measure(lengths, of_token, hopeless)?;
            if decode.is_some() && self.at_work() != decode {
                eprintln!("krasis: there is no room for {}", decode_name(decode));
                continue;
            }
            let token = median(&seconds).filter(|&t| fastest.is_none_or(|(best, _)| t < best));
            fastest = token.map(|token| (token, decode)).or(fastest);
            trial.decodes.push((decode, seconds));
        }
        if let (Some(most), Some((_, decode)), None) =
            (most, fastest, self.bench.options.prompt_rows)
        {
            trial.threshold = Some(self.threshold(decode, most)?);
        }
        Ok(())
    }

    /// Seconds of prompts, to the first token.
    fn prompt(&mut self, tokens: u32, best: Option<f64>) -> Result<Vec<f64>, Failure> {
        let hopeless = |taken: f64| best.is_some_and(|best| taken > HOPELESS * best);
        self.measure((tokens, 1), |answer| answer.usage.prefill.as_secs_f64(), hopeless)
    }

    fn measure(
        &mut self,
        lengths: (u32, u32),
        seconds: impl Fn(&Answer) -> f64,
        enough: impl Fn(f64) -> bool,
    ) -> Result<Vec<f64>, Failure> {
        let runs = Runs { batch: 1, count: self.bench.lengths.runs };
        measure(&self.handle, runs, &mut self.prompts, lengths, seconds, enough)
    }

    /// The shortest prompt whose experts are better brought to the GPU than computed where they lie: the
    /// longer one is, the more the CPU has to do, and bringing them all takes as long as ever.
    fn threshold(&mut self, decode: Option<DecodeStrategy>, most: u32) -> Result<u32, Failure> {
        let longest = most.min(self.bench.lengths.prompt);
        let mut is_better = |rows: u32| -> Result<bool, Failure> {
            let mut times = [0.0; 2];
            for (time, threshold) in times.iter_mut().zip([rows, rows + 1]) {
                self.wish(decode, Some(threshold));
                *time = median(&self.prompt(rows, None)?).unwrap_or_default();
            }
            Ok(times[0] < times[1])
        };
        let (mut below, mut rows) = (1, ROWS_MIN);
        // There has to be room for one that the CPU computes.
        while rows < longest {
            if is_better(rows)? {
                let between = (f64::from(below) * f64::from(rows)).sqrt() as u32;
                let is_earlier = between > below && between < rows && is_better(between)?;
                return Ok(if is_earlier { between } else { rows });
            }
            (below, rows) = (rows, 2 * rows);
        }
        Ok(most.max(1))
    }

    fn wish(&self, decode: Option<DecodeStrategy>, threshold: Option<u32>) {
        if let (Some(experts), Some(decode), Some(threshold)) = (&self.experts, decode, threshold) {
            experts.wish(decode, threshold);
        }
    }

    fn at_work(&self) -> Option<DecodeStrategy> {
        Some(self.experts.as_ref()?.policy()?.0)
    }

    /// What was asked for, if prompts were texts.
    fn heat(&self) -> Option<HeatMap> {
        let asked = self.experts.as_ref().filter(|_| !self.bench.text.is_empty())?.asked()?;
        Some(HeatMap { layers: asked.map(|(_, counts)| counts).collect() })
    }
}
