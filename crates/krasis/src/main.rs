//! The program `krasis`.
#![forbid(unsafe_code)]

mod bar;
mod bench;
mod cache;
mod decide;
mod doctor;
mod eval;
mod exit;
mod gpus;
mod hang;
mod heat;
mod kept;
mod load;
mod machine;
mod measure;
mod options;
mod overrides;
mod plan;
mod run;
mod serve;
mod submit;
mod supervise;
mod target;
mod trace;
mod tune;
mod watch;

use clap::{Parser, Subcommand};
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Runs large mixture-of-experts language models on modest machines.
#[derive(Parser)]
#[command(version, after_help = exit::CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer one prompt on the terminal.
    #[command(after_help = exit::CODES)]
    Run(run::Run),
    /// Serve the OpenAI API over HTTP.
    #[command(after_help = exit::CODES)]
    Serve(Box<serve::Serve>),
    /// Measure a model on texts or tasks.
    #[command(after_help = exit::CODES)]
    Eval(eval::Eval),
    /// Measure the speed of a model, or of random weights in its shapes.
    #[command(after_help = exit::CODES)]
    Bench(bench::Bench),
    /// Time the strategies that fit a model and this machine, and keep the best for later starts.
    #[command(after_help = exit::CODES)]
    Tune(tune::Tune),
    /// Keep the quantised weights of a model, so that it starts at the disk's speed.
    #[command(after_help = exit::CODES)]
    Cache(cache::Cache),
    /// Say what a model would take of this machine, or of one described in a file, and how fast it would be.
    #[command(after_help = exit::CODES)]
    Plan(plan::Plan),
    /// Say what the machine is, what about it is wrong and, with --model-path, whether a model fits.
    #[command(after_help = exit::CODES)]
    Doctor(doctor::Doctor),
}

impl Command {
    /// The model that it loads, if it loads one.
    fn model(&self) -> Option<&options::ModelArguments> {
        match self {
            Command::Run(run) => Some(&run.model),
            // Who only supervises has no memory to watch.
            Command::Serve(serve) => (!serve.supervise).then_some(&serve.model),
            Command::Eval(eval) => Some(&eval.model),
            Command::Bench(bench) => Some(&bench.model),
            Command::Tune(tune) => Some(&tune.model),
            Command::Cache(cache) => cache.model(),
            Command::Doctor(_) | Command::Plan(_) => None,
        }
    }

    fn execute(self) -> Result<(), exit::Failure> {
        // Before the first byte of a model is read, and until the last answer.
        let _watchdog = self.model().map(watch::memory).transpose()?;
        match self {
            Command::Run(run) => run.execute(),
            Command::Serve(serve) => serve.execute(),
            Command::Eval(eval) => eval.execute(),
            Command::Bench(bench) => bench.execute(),
            Command::Tune(tune) => tune.execute(),
            Command::Cache(cache) => cache.execute(),
            Command::Doctor(doctor) => doctor.execute(),
            Command::Plan(plan) => plan.execute(),
        }
    }
}

fn main() -> ExitCode {
    exit::on_panic();
    let Arguments { command } = Arguments::parse();
    // A server's log is its interface; elsewhere only what is wrong interests.
    let level = if matches!(command, Command::Serve(_)) { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("KRASIS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match command.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("krasis: {:#}", failure.error);
            failure.code
        }
    }
}
