//! All ways to run a model that fit, timed one after the other, and what is known of that from before.

use super::choice::{Way, best};
use super::record::{Lengths, Record, Stage, circumstances, find, put};
use super::table;
use super::trial::{Bench, Planned};
use crate::exit::Failure;
use crate::heat::HeatFile;
use crate::kept::Kept;
use crate::measure::median;
use crate::options::ModelArguments;
use crate::target::Target;
use krasis_engine::planner::Host;
use krasis_engine::{
    Candidate, HeatMap, Options, PrefillStrategy, Residency, Site, StartError, Watch,
};
use krasis_text::Tokenizer;
use serde_json::Value;

/// What is foretold to be so many times slower than the best is not tried. Forecasts err by a fifth where
/// they were compared, and nobody knows by how much elsewhere.
const HOPELESS: f64 = 3.0;

/// Text that prompts are made of: prose, tables and commands.
const TEXT: &str = include_str!("../../../../README.md");

/// Whether it is said what is wrong with a file.
#[derive(Clone, Copy, PartialEq)]
enum Volume {
    Aloud,
    Silent,
}

/// Finds out which strategy is best.
pub struct Tuner<'a> {
    target: &'a Target,
    options: &'a Options,
    site: &'a Site,
    lengths: Lengths,
    watch: &'a dyn Watch,
    /// The model's fingerprint.
    pub model: u64,
    /// Where results are kept.
    pub kept: Kept,
    circumstances: Value,
}

impl<'a> Tuner<'a> {
    /// For a model with these options on this machine.
    pub fn new(
        target: &'a Target,
        options: &'a Options,
        site: &'a Site,
        lengths: Lengths,
        watch: &'a dyn Watch,
    ) -> Result<Tuner<'a>, Failure> {
        let model = target.fingerprint()?;
        Ok(Tuner {
            kept: Kept::of(target, model, options),
            circumstances: circumstances(model, options, site),
            target,
            options,
            site,
            lengths,
            watch,
            model,
        })
    }

    /// Options by what was measured, now or before; none if nothing was.
    pub fn decided(&self, model: &ModelArguments) -> Result<Option<Options>, Failure> {
        let known = self.known(Stage::Complete, Volume::Aloud).filter(|_| !model.force_optimize);
        let (record, when) = match known {
            Some(record) => (record, "before"),
            None if model.measures() => (self.tune(model.force_optimize)?, "now"),
            None => return Ok(None),
        };
        let Some(choice) = best(&record.trials) else { return Ok(None) };
        let mut options = self.options.clone();
        choice.apply(&mut options, record.lengths.prompt);
        let said = table::sentence(&choice, record.lengths.prompt);
        match self.target.propose(&options, self.site) {
            Ok(_) => {
                eprintln!("krasis: {said}, measured {when}");
                Ok(Some(options))
            }
            Err(error) => {
                eprintln!(
                    "krasis: {said} was best when it was measured, but now {error}; the planner decides"
                );
                Ok(None)
            }
        }
    }

    /// What was measured under these circumstances. What is wrong with a file is said, if anybody wants
    /// to hear it.
    fn known(&self, stage: Stage, volume: Volume) -> Option<Record> {
        let mut found = None;
        for (file, fields) in self.kept.read() {
            match fields.and_then(|fields| find(&fields, &self.circumstances, stage)) {
                Ok(record) => found = found.or(record),
                Err(why) if volume == Volume::Aloud => {
                    eprintln!("krasis: {} is not used: {why}", file.display())
                }
                Err(_) => {}
            }
        }
        found
    }

    /// Measures what was not measured yet, or everything again.
    pub fn tune(&self, again: bool) -> Result<Record, Failure> {
        let (ways, lengths) = self.ways()?;
        let known = |stage| {
            let record = self.known(stage, Volume::Silent);
            record.filter(|record| !again && record.lengths == lengths)
        };
        if let Some(known) = known(Stage::Complete) {
            eprintln!("krasis: this was measured before; --force-optimize measures it again");
            return Ok(known);
        }
        let known = known(Stage::Begun);
        let mut record = Record { lengths, complete: false, trials: Vec::new() };
        let text = self.text();
        let bench = Bench {
            target: self.target,
            options: self.options,
            lengths,
            text: &text,
            watch: self.watch,
        };
        let mut heat = HeatFile::open(None, &self.kept, self.model)?;
        for (number, planned) in (1..).zip(&ways) {
            let before = known.iter().flat_map(|known| &known.trials);
            let before = before.filter(|trial| trial.failed.is_none());
            let trial = match before.clone().find(|trial| trial.way == planned.way) {
                Some(trial) => trial.clone(),
                None => {
                    let name = table::name(&planned.way);
                    eprintln!("krasis: tuning, {number} of {}: {name}", ways.len());
                    let shortest = record.trials.iter().filter_map(|t| median(&t.prompt));
                    let (trial, asked) = bench.run(planned, shortest.min_by(f64::total_cmp));
                    if let Some(HeatMap { layers }) = asked {
                        heat.save_counts(layers.iter().map(Vec::as_slice));
                    }
                    eprintln!("krasis: {}", table::progress(&trial, planned, &lengths));
                    trial
                }
            };
            record.trials.push(trial);
            record.complete = number == ways.len();
            self.save(&record);
        }
        match best(&record.trials) {
            Some(_) => Ok(record),
            None => {
                let why = record.trials.into_iter().find_map(|trial| trial.failed);
                let why = why.unwrap_or("no strategy fits".into());
                Err(Failure::say(Failure::FAILED, format!("nothing could be measured: {why}")))
            }
        }
    }

    /// After each trial, so that whoever interrupts it loses one.
    fn save(&self, record: &Record) {
        let kept = self.kept.change(|fields| put(fields, &self.circumstances, record));
        if let Err(why) = kept {
            eprintln!("krasis: what was measured is not kept: {why}");
        }
    }

    /// What fits and is worth a try, and lengths that fit all of it.
    fn ways(&self) -> Result<(Vec<Planned>, Lengths), Failure> {
        let mut site = self.site.clone();
        if site.card.is_some() {
            site.host = Host::measured(self.options);
        }
        let all = |chunk: u32| -> Result<Vec<Candidate>, StartError> {
            let options = Options { prefill_chunk: chunk, ..self.options.clone() };
            self.target.candidates(&options, &site, self.lengths.prompt)
        };
        let chunk = self.options.prefill_chunk.max(1);
        let mut candidates: Vec<(u32, Candidate)> =
            all(chunk)?.into_iter().map(|candidate| (chunk, candidate)).collect();
        // Smaller steps leave more room for hot experts.
        let smaller = (chunk / 4).max(1);
        if smaller < chunk {
            let hot = |of: &Candidate| {
                let hcs = PrefillStrategy::HcsPrefill;
                matches!(of.residency, Residency::Host { prefill, .. } if prefill == hcs)
            };
            candidates.extend(all(smaller)?.into_iter().filter(hot).map(|of| (smaller, of)));
        }
        let shortest = candidates.iter().map(|(_, of)| of.context_max).min();
        let Some(shortest) = shortest else {
            // The planner knows why nothing fits.
            self.target.propose(self.options, self.site)?;
            return Err(Failure::say(Failure::CONFIG, "no strategy fits: `krasis plan` says more"));
        };
        let answer = self.lengths.answer.min(shortest / 4).max(2);
        let prompt = self.lengths.prompt.min(shortest.saturating_sub(answer + 1)).max(1);
        let lengths = Lengths { prompt, answer, ..self.lengths };
        Ok((worth_trying(&candidates), lengths))
    }

    /// The model's tokens of a text, if it has a tokenizer.
    fn text(&self) -> Vec<u32> {
        let Target::Folder(dir) = self.target else { return Vec::new() };
        let tokenizer = Tokenizer::load(dir).ok();
        tokenizer.and_then(|tokenizer| tokenizer.encode(TEXT).ok()).unwrap_or_default()
    }
}

/// Ways to read prompts with who may write beside them, those that are foretold to be the fastest first;
/// without those that are hopeless.
fn worth_trying(candidates: &[(u32, Candidate)]) -> Vec<Planned> {
    let mut ways: Vec<Planned> = Vec::new();
    for (chunk, candidate) in candidates {
        let (prefill, decode) = match candidate.residency {
            Residency::Host { prefill, decode } => (Some(prefill), Some(decode)),
            _ => (None, None),
        };
        let way = Way { prefill, chunk: *chunk };
        let foretold = (decode, candidate.token);
        match ways.iter_mut().find(|planned| planned.way == way) {
            Some(planned) => planned.decodes.push(foretold),
            None => ways.push(Planned {
                way,
                prompt: candidate.prompt,
                decodes: vec![foretold],
                threshold: candidate.threshold,
            }),
        }
    }
    ways.sort_by(|a, b| b.prompt.total_cmp(&a.prompt));
    let fastest = ways.first().map_or(0.0, |planned| planned.prompt);
    ways.retain(|planned| planned.prompt * HOPELESS >= fastest);
    for Planned { decodes, .. } in &mut ways {
        decodes.sort_by(|a, b| b.1.total_cmp(&a.1));
        let fastest = decodes.first().map_or(0.0, |(_, token)| *token);
        decodes.retain(|(_, token)| token * HOPELESS >= fastest);
    }
    ways
}
