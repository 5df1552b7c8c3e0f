//! How the program ends: one table of exit codes, for scripts.

use krasis_cuda::CudaError;
use krasis_engine::StartError;
use krasis_server::GenerationError;
use krasis_text::TextError;
use std::process::ExitCode;

/// The table in `--help`.
pub const CODES: &str = "\
Exit codes:
    0  done
    1  failed
    2  wrong usage
    3  a setting that cannot be
    4  model files missing, damaged or unknown
    5  not enough memory
    6  no such GPU, or its driver
    8  port in use, or network
   70  a bug in Krasis (panic)
  130  interrupted
  137  memory ran out: less than 5 % was left (--no-memory-watchdog)

Logging: KRASIS_LOG=info|debug|... (as RUST_LOG)
KRASIS_HOME: folder whose models/krasis-demo is the default model, whose cache takes the caches of
models whose own folder cannot be written, and whose kernels/ keeps compiled GPU kernels [default
of the last two: ~/.cache/krasis]";

/// An error and the code that tells scripts what kind it is.
#[derive(Debug)]
pub struct Failure {
    /// What to exit with.
    pub code: ExitCode,
    /// What to say.
    pub error: anyhow::Error,
}

impl Failure {
    /// Nothing more particular is known.
    pub const FAILED: u8 = 1;
    /// A setting.
    pub const CONFIG: u8 = 3;
    /// The model's files.
    pub const MODEL: u8 = 4;
    /// Memory.
    pub const MEMORY: u8 = 5;
    /// GPU or driver.
    pub const GPU: u8 = 6;
    /// Port or network.
    pub const NETWORK: u8 = 8;
    /// Ctrl-C.
    pub const INTERRUPTED: u8 = 130;

    /// The watchdog: what a shell reports of a program that the system kills for its memory.
    pub const OUT_OF_MEMORY: i32 = 137;

    const PANIC: i32 = 70;

    /// An error of a kind.
    pub fn new(code: u8, error: impl Into<anyhow::Error>) -> Failure {
        Failure { code: code.into(), error: error.into() }
    }

    /// A sentence of a kind.
    pub fn say(code: u8, message: impl std::fmt::Display) -> Failure {
        Failure::new(code, anyhow::anyhow!("{message}"))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::new(Failure::FAILED, error)
    }
}

impl From<TextError> for Failure {
    fn from(error: TextError) -> Failure {
        let code = match &error {
            TextError::NoTokenizer { .. }
            | TextError::Unreadable { .. }
            | TextError::Malformed { .. }
            | TextError::NoTemplate => Failure::MODEL,
            _ => Failure::FAILED,
        };
        Failure::new(code, error)
    }
}

impl From<GenerationError> for Failure {
    fn from(error: GenerationError) -> Failure {
        Failure::new(Failure::MODEL, error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Failure {
        let code = match &error {
            StartError::Checkpoint(_) | StartError::Config(_) | StartError::NotFinite { .. } => {
                Failure::MODEL
            }
            StartError::Shortfall { .. }
            | StartError::Refused { .. }
            | StartError::Gpu(CudaError::OutOfMemory { .. }) => Failure::MEMORY,
            StartError::Gpu(_) => Failure::GPU,
            StartError::Context { .. }
            | StartError::NothingQuantised
            | StartError::NoExperts
            | StartError::UnlikeExperts
            | StartError::GpuKv => Failure::CONFIG,
            _ => Failure::FAILED,
        };
        Failure::new(code, error)
    }
}

/// A panic of the main thread or of the engine's ends the process: a server without an engine
/// would only look alive. A panic in one HTTP request ends that request.
pub fn on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let thread = std::thread::current();
        if matches!(thread.name(), Some(name) if name == "main" || name.starts_with("krasis")) {
            std::process::exit(Failure::PANIC);
        }
    }));
}
