//! `krasis bench`: prefill and decode speed of a model, or of random weights in its shapes.

use crate::bar::Bar;
use crate::exit::Failure;
use crate::options::ModelArguments;
use crate::overrides;
use crate::submit::{self, Answer};
use crate::trace;
use anyhow::Context;
use clap::{Args, ValueEnum};
use krasis_core::Bytes;
use krasis_core::random::SplitMix64;
use krasis_engine::{Census, Handle, Options, Request, Running, Sampling, Span};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};

/// Arguments of `krasis bench`.
#[derive(Args)]
pub struct Bench {
    #[command(flatten)]
    pub model: ModelArguments,
    /// Where weights come from; dummy makes them up in the shapes of --model-path's config.json
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LoadFormat::Checkpoint)]
    load_format: LoadFormat,
    /// Changes a field of the config before dummy weights are made, as in num_hidden_layers=12
    #[arg(long, value_name = "FIELD=JSON", value_parser = overrides::field)]
    config_override: Vec<(String, Value)>,
    /// Makes dummy experts unequally popular: the r-th is chosen r^-S times as often as the first
    #[arg(long, value_name = "S")]
    expert_skew: Option<f64>,
    /// Prompt lengths to read
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "512")]
    prefill: Vec<u32>,
    /// Tokens to write after a short prompt
    #[arg(long, value_name = "N", default_value_t = 64)]
    decode: u32,
    /// Sequences that decode together
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: u32,
    /// Runs of each, after one that does not count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Writes when each operation ran, or on a GPU each kernel and copy, to a file that chrome://tracing
    /// and ui.perfetto.dev show, and a summary to stderr; measuring makes decoding slower
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Writes all runs to a file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum LoadFormat {
    Checkpoint,
    Dummy,
}

/// Prompt of a decode run: as short as conversations are long.
const DECODE_PROMPT: u32 = 32;

/// Bytes that the bandwidth is measured on: more than any cache holds.
const BUFFER: usize = 2 << 30;

/// One line of the table.
struct Measured {
    test: String,
    /// Tokens per second of each run, sorted.
    rates: Vec<f64>,
    /// Bytes of weights read per token, where that is the limit.
    token_bytes: Option<u64>,
}

impl Bench {
    /// Loads the model and measures.
    pub fn execute(self) -> Result<(), Failure> {
        let (sender, spans) = channel();
        let running = self.start(self.trace.is_some().then_some(sender))?;
        // How the model was loaded is no part of it.
        spans.try_iter().for_each(drop);
        for (region, bytes) in &running.regions {
            eprintln!("{region}: {bytes}");
        }
        let bandwidth = self.bandwidth()?;
        eprintln!("memory read: {:.1} GB/s", bandwidth / 1e9);
        let mut prompts = Prompts { vocab: running.handle.facts.vocab, random: SplitMix64(1) };
        let mut all = Vec::new();
        for &tokens in &self.prefill {
            let rates = self.measure(&running.handle, 1, &mut prompts, tokens, 1, |answer| {
                f64::from(answer.usage.prompt_tokens) / answer.usage.prefill.as_secs_f64()
            })?;
            all.push(Measured { test: format!("prefill {tokens}"), rates, token_bytes: None });
        }
        if self.decode > 1 {
            let (before, had) = (pairs(&running.handle), brought(&running.handle));
            let rates = self.measure(
                &running.handle,
                self.batch,
                &mut prompts,
                DECODE_PROMPT,
                self.decode,
                |answer| {
                    f64::from(answer.usage.completion_tokens - 1)
                        / answer.usage.decode.as_secs_f64()
                },
            )?;
            let now = pairs(&running.handle);
            let came = (brought(&running.handle) - had) as f64;
            let tokens = f64::from((self.runs + 1) * self.batch * self.decode);
            if came > 0.0 {
                eprintln!("decoding, {:.1} experts a token came from elsewhere", came / tokens);
            }
            let [here, cpu] = [0, 1].map(|i| (now[i] - before[i]) as f64);
            if here + cpu > 0.0 {
                let share = 100.0 * here / (here + cpu);
                eprintln!("decoding, the device computed {share:.1} % of what experts were asked");
            }
            let test = format!("decode {} x {}", self.decode, self.batch);
            let token_bytes = (self.batch == 1).then_some(running.decode_bytes.0);
            all.push(Measured { test, rates, token_bytes });
        }
        if let Some(resident) = krasis_machine::Resident::read(Path::new("/")).anonymous {
            let planned: Bytes = running.regions.iter().map(|(_, bytes)| *bytes).sum();
            eprintln!("resident: {resident}; planned for all devices: {planned}");
        }
        eprintln!("krasis {} of commit {}", env!("CARGO_PKG_VERSION"), env!("KRASIS_COMMIT"));
        print_table(&all, bandwidth);
        if let Some(file) = &self.trace {
            trace::write(file, spans.try_iter().collect())?;
        }
        match &self.json {
            Some(file) => self.write(file, &all, bandwidth),
            None => Ok(()),
        }
    }

    fn start(&self, trace: Option<Sender<Span>>) -> Result<Running, Failure> {
        let mut options = Options { trace, ..self.model.options()? };
        options.sequences_max = options.sequences_max.max(self.batch);
        if self.load_format == LoadFormat::Checkpoint {
            return Ok(krasis_engine::start_watched(&self.model.folder()?, &options, &Bar::new())?);
        }
        let mut config = self.model.config()?;
        overrides::apply(&mut config, &self.config_override);
        Ok(krasis_engine::start_dummy(&config, self.expert_skew, &options)?)
    }

    /// What decoding is held against, measured in the same run by as many threads.
    fn bandwidth(&self) -> Result<f64, Failure> {
        let team = krasis_cpu::Team::new(self.model.options()?.threads);
        Ok(krasis_cpu::limits::read_bandwidth(&team, BUFFER))
    }

    /// Rates of all runs but the first, summed over the sequences of a run.
    fn measure(
        &self,
        handle: &Handle,
        batch: u32,
        prompts: &mut Prompts,
        tokens: u32,
        answer: u32,
        rate: impl Fn(&Answer) -> f64,
    ) -> Result<Vec<f64>, Failure> {
        let mut rates = Vec::new();
        for run in 0..=self.runs {
            let request = |sequence| Request {
                prompt: prompts.next(tokens),
                // At a temperature of 0 random weights write one token over and over, and ask for the
                // same experts each time.
                sampling: Sampling {
                    temperature: 1.0,
                    top_k: 50,
                    seed: Some(u64::from(run * batch + sequence)),
                    ..Sampling::GREEDY
                },
                tokens_max: answer,
                stop_tokens: Vec::new(),
                logprobs: None,
                prompt_logprobs: None,
                grammar: None,
                priority: 0,
            };
            let answers = submit::all(handle, (0..batch).map(request).collect(), |_| {})?;
            if run > 0 {
                rates.push(answers.iter().map(&rate).sum());
            }
        }
        rates.sort_by(f64::total_cmp);
        Ok(rates)
    }

    fn write(&self, file: &Path, all: &[Measured], bandwidth: f64) -> Result<(), Failure> {
        let tests = all.iter().map(|m| json!({"test": m.test, "tokens_per_second": m.rates, "bytes_per_token": m.token_bytes}));
        let record = json!({
            "krasis": env!("CARGO_PKG_VERSION"),
            "commit": env!("KRASIS_COMMIT"),
            "machine": {"cpu": cpu_name(), "cores": krasis_cpu::affinity::cores().len(), "read_bytes_per_second": bandwidth},
            "tests": tests.collect::<Vec<_>>(),
        });
        let text = serde_json::to_string_pretty(&record).context("a record is JSON")?;
        std::fs::write(file, text + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(())
    }
}

/// Random tokens, never the same twice: a known prefix would not be read again.
struct Prompts {
    vocab: u32,
    random: SplitMix64,
}

impl Prompts {
    fn next(&mut self, tokens: u32) -> Vec<u32> {
        let vocab = u64::from(self.vocab);
        (0..tokens).map(|_| (self.random.bits() % vocab) as u32).collect()
    }
}

fn print_table(all: &[Measured], bandwidth: f64) {
    println!(
        "| {} | tok/s, median | least | most | GB/s of weights | % of memory read |",
        cpu_name()
    );
    println!("|---|---|---|---|---|---|");
    for Measured { test, rates, token_bytes } in all {
        let median = rates[rates.len() / 2];
        let read = token_bytes.map_or("- | -".to_owned(), |bytes| {
            let rate = median * bytes as f64;
            format!("{:.1} | {:.0}", rate / 1e9, 100.0 * rate / bandwidth)
        });
        println!(
            "| {test} | {median:.1} | {:.1} | {:.1} | {read} |",
            rates[0],
            rates[rates.len() - 1]
        );
    }
}

fn cpu_name() -> String {
    krasis_machine::Processor::read(Path::new("/")).name.unwrap_or("CPU".into())
}

/// Experts that came from host memory, or from a disk.
fn brought(handle: &Handle) -> u64 {
    handle.census.experts.get().map_or(0, |of| Census::read(&of.brought))
}

/// Pairs of tokens and experts in host memory that the device and the CPU have computed.
fn pairs(handle: &Handle) -> [u64; 2] {
    let experts = handle.census.experts.get();
    experts.map_or([0; 2], |of| [&of.on_the_device, &of.on_the_cpu].map(Census::read))
}
