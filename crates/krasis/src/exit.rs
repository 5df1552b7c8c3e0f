//! How the program ends: one table of exit codes, for scripts.

use krasis_cuda::{CudaError, Lost};
use krasis_engine::StartError;
use krasis_server::GenerationError;
use krasis_text::TextError;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// The table in `--help`.
pub const CODES: &str = "\
Exit codes:
    0  done
    1  failed
    2  wrong usage
    3  a setting that cannot be
    4  model files missing, damaged or unknown
    5  not enough memory
    6  no such GPU, or its driver (unless asked for a GPU, the CPU is used instead)
    8  port in use, or network
   70  a bug in Krasis (panic)
   75  the device or the engine failed while serving: start again, as --supervise does
  130  interrupted
  137  memory ran out: less than 5 % was left (--no-memory-watchdog)

Planning: CTX_SIZE_OVERRIDE tokens of a context, MAX_TOTAL_TOKENS_OVERRIDE of all together,
MEM_FRACTION_OVERRIDE of the memory that may be taken, 0.1 to 0.95
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

    /// The device failed, or the thread that drives it.
    pub const DEVICE: u8 = 75;

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
            StartError::Gpu(_) | StartError::Ranks { .. } => Failure::GPU,
            StartError::Context { .. }
            | StartError::Partition { .. }
            | StartError::NothingToShare
            | StartError::NothingQuantised
            | StartError::NoExperts
            | StartError::UnlikeExperts
            | StartError::GpuKv => Failure::CONFIG,
            _ => Failure::FAILED,
        };
        Failure::new(code, error)
    }
}

/// Who is told that the engine has panicked, once a server answers with it.
static FAREWELL: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// With what the process is about to end.
static LEAVING: AtomicI32 = AtomicI32::new(0);

/// Clients are told within this time, or they are not.
const FAREWELL_TIME: Duration = Duration::from_secs(4);

/// The same where memory is short, and gets shorter.
const SHORT_FAREWELL_TIME: Duration = Duration::from_millis(500);

/// A panic of the main thread or of the engine's ends the process: a server without an engine
/// would only look alive. A panic in one HTTP request ends that request. A GPU that is lost is no panic to
/// people: that is one sentence, and the code of a device that failed, also while a model is being loaded.
pub fn on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let code = match panic.payload().downcast_ref::<Lost>() {
            Some(lost) => {
                eprintln!("krasis: {lost}");
                Failure::DEVICE.into()
            }
            None => {
                report(panic);
                Failure::PANIC
            }
        };
        let thread = std::thread::current();
        let engine = thread.name().is_some_and(|name| name.starts_with("krasis"));
        match FAREWELL.get() {
            Some(_) if engine => engine_is_lost(),
            _ if engine || thread.name() == Some("main") => std::process::exit(code),
            _ => {}
        }
    }));
}

/// From now on a panic of the engine's threads calls `tell`, and ends the process with
/// [`Failure::DEVICE`] soon after, whatever else still hangs.
pub fn on_engine_panic(tell: impl Fn() + Send + Sync + 'static) {
    // A second server of one process would be told by the first.
    let _ = FAREWELL.set(Box::new(tell));
}

/// Tells clients that there is no engine any more, and ends the process soon.
pub fn engine_is_lost() {
    leave(Failure::DEVICE.into(), FAREWELL_TIME);
}

/// The same because there is no memory any more.
pub fn memory_is_out() {
    leave(Failure::OUT_OF_MEMORY, SHORT_FAREWELL_TIME);
}

/// Why a server is over that was told so: whoever ends the process first says the same.
pub fn failed() -> Failure {
    match LEAVING.load(Ordering::Relaxed) {
        Failure::OUT_OF_MEMORY => Failure::say(
            Failure::OUT_OF_MEMORY as u8,
            "the server has ended because memory ran out",
        ),
        _ => Failure::say(
            Failure::DEVICE,
            "the engine has failed: start again, or let --supervise do it",
        ),
    }
}

fn leave(code: i32, within: Duration) {
    LEAVING.store(code, Ordering::Relaxed);
    let Some(tell) = FAREWELL.get() else { std::process::exit(code) };
    let after = |time, end: Box<dyn Fn() + Send>| {
        let dead = move || {
            std::thread::sleep(time);
            end();
        };
        std::thread::Builder::new().name("farewell".into()).spawn(dead)
    };
    // First of all, because telling may take what there is no more of.
    let exits = after(within, Box::new(move || std::process::exit(code)));
    // A driver that hangs may keep a process from its end, which it wants to hear of.
    let aborts = after(2 * within.max(FAREWELL_TIME), Box::new(|| std::process::abort()));
    tell();
    if exits.is_err() || aborts.is_err() {
        std::process::exit(code);
    }
}
