//! `krasis tune`, and what other commands make of it: strategies that fit are loaded and timed from end to
//! end, and the best is used from then on. Foretold times only say what need not be tried.

mod choice;
mod record;
mod table;
mod trial;
mod tuner;

use crate::bar::Bar;
use crate::decide::Decided;
use crate::exit::Failure;
use crate::heat::HeatFile;
use crate::options::ModelArguments;
use crate::target::{Target, WeightArguments};
use clap::Args;
use krasis_engine::planner::Host;
use krasis_engine::{DeviceKind, Options, Residency, Site, Watch, device};
use record::Lengths;
use std::sync::Arc;
use tuner::Tuner;

/// Arguments of `krasis tune`.
#[derive(Args)]
pub struct Tune {
    #[command(flatten)]
    pub model: ModelArguments,
    #[command(flatten)]
    weights: WeightArguments,
    /// Tokens of the prompts that are timed, or as many as the context holds
    #[arg(long, value_name = "N", default_value_t = LENGTHS.prompt, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens of the answers
    #[arg(long, value_name = "N", default_value_t = LENGTHS.answer, value_parser = clap::value_parser!(u32).range(2..))]
    answer_tokens: u32,
    /// Runs of each, after one that does not count
    #[arg(long, value_name = "N", default_value_t = LENGTHS.runs, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

/// What other commands measure.
const LENGTHS: Lengths = Lengths { prompt: 8192, answer: 64, runs: 3 };

impl Tune {
    /// Measures what has not been measured, and prints a table.
    pub fn execute(self) -> Result<(), Failure> {
        let target = self.weights.target(&self.model)?;
        let lengths =
            Lengths { prompt: self.prompt_tokens, answer: self.answer_tokens, runs: self.runs };
        if self.model.is_decided() {
            let message = "tuning looks for the best strategy, and --strategy or --expert-divisor names one: \
                           leave it out";
            return Err(Failure::say(Failure::CONFIG, message));
        }
        let Decided { options, site } = self.model.decide(&target, None, &|_| {})?;
        let Some(site) = place(&options, site)? else {
            eprintln!("krasis: {NOTHING}");
            return Ok(());
        };
        let bar = Bar::new();
        let tuner = Tuner::new(&target, &options, &site, lengths, &bar)?;
        let record = tuner.tune(self.model.force_optimize)?;
        table::rows(&record).iter().for_each(|row| println!("{row}"));
        Ok(())
    }
}

const NOTHING: &str = "there is no GPU, so all experts lie where everything else does, and there is nothing to \
                       choose between (--device cpu --gpu-vram-mb N plays a GPU)";

/// The options of a command, with the device and the strategy that are best as far as anybody knows, and
/// where heat is kept, if some experts are to be hot. `change` is what the command wants besides.
pub fn settle_with_heat(
    model: &ModelArguments,
    target: &Target,
    watch: &dyn Watch,
    change: &dyn Fn(&mut Options),
) -> Result<(Options, Option<HeatFile>), Failure> {
    let Decided { mut options, site } = model.decide(target, None, change)?;
    let Some(site) = place(&options, site)? else {
        if model.measures() {
            eprintln!("krasis: {NOTHING}");
        }
        return Ok((options, None));
    };
    let tuner = Tuner::new(target, &options, &site, LENGTHS, watch)?;
    let heat = HeatFile::open(model.heat_map.as_deref(), &tuner.kept, tuner.model)?;
    let decided = match model.is_decided() {
        true => None,
        false => tuner.decided(model)?,
    };
    if let Some(decided) = decided {
        options = decided;
    }
    options.heat_map = heat.map().map(Arc::new);
    Ok((options, Some(heat)))
}

/// The same for those who leave no trace.
pub fn settle(
    model: &ModelArguments,
    target: &Target,
    watch: &dyn Watch,
    change: &dyn Fn(&mut Options),
) -> Result<Options, Failure> {
    settle_with_heat(model, target, watch, change).map(|(options, _)| options)
}

/// The machine, if a device has memory of its own there or plays to have it.
fn place(options: &Options, site: Option<Site>) -> Result<Option<Site>, Failure> {
    Ok(match (options.device, site) {
        (DeviceKind::Cuda(_), Some(site)) => Some(site),
        (DeviceKind::Cuda(_), None) => Some(device::with_gpu(options)?),
        (DeviceKind::Cpu, _)
            if options.device_bytes.is_some() || options.residency != Residency::Auto =>
        {
            Some(Site { card: None, others: Vec::new(), host: Host::read(options) })
        }
        _ => None,
    })
}
