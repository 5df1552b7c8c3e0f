//! `krasis cache`: what is kept of a model's quantised weights.

use crate::bar::Bar;
use crate::exit::Failure;
use crate::kept::Kept;
use crate::options::{ModelArguments, cache_home, folder};
use crate::target::Target;
use clap::{Args, Subcommand};
use krasis_checkpoint::Checkpoint;
use krasis_checkpoint::cache::{self, CacheError, CacheFile, Lock, Progress, Taken};
use krasis_core::Bytes;
use krasis_engine::{Built, Options, build_cache, cache_folders};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Arguments of `krasis cache`.
#[derive(Args)]
pub struct Cache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what is kept of a model.
    List(Model),
    /// Quantise a model's weights and keep them; the other flags say how.
    Build(Box<ModelArguments>),
    /// Read all that is kept and compare it with its checksums.
    Verify(Model),
    /// Remove the weights; they are built again when they are wanted.
    Rm(Remove),
}

#[derive(Args)]
struct Model {
    /// Folder of the model [default: the demo model]
    #[arg(long, value_name = "DIR")]
    model_path: Option<PathBuf>,
}

#[derive(Args)]
struct Remove {
    #[command(flatten)]
    model: Model,
    /// What was measured of the model as well: which strategy is fastest, which experts are hot
    #[arg(long)]
    all: bool,
}

impl Cache {
    /// The model whose weights it makes, if it makes any.
    pub fn model(&self) -> Option<&ModelArguments> {
        match &self.command {
            Command::Build(model) => Some(model),
            Command::List(_) | Command::Verify(_) | Command::Rm(_) => None,
        }
    }

    /// Does it.
    pub fn execute(self) -> Result<(), Failure> {
        match self.command {
            Command::Build(model) => build(&model),
            Command::List(model) => list(&model.folder()?),
            Command::Verify(model) => verify(&model.folder()?),
            Command::Rm(Remove { model, all }) => remove(&model.folder()?, all),
        }
    }
}

impl Model {
    fn folder(&self) -> Result<PathBuf, Failure> {
        folder(self.model_path.as_deref())
    }
}

/// What is kept of a model, wherever it is.
struct Files {
    weights: Vec<PathBuf>,
    /// What was measured, and why it is of no use if it is not.
    measured: Vec<(PathBuf, Option<String>)>,
}

impl Files {
    fn of(dir: &Path) -> Files {
        let options = Options { cache_home: cache_home(), ..Options::default() };
        let folders = cache_folders(dir, &options);
        let weights: Vec<PathBuf> = folders.iter().flat_map(|folder| cache::list(folder)).collect();
        let measured = Kept::within(&folders);
        let measured = measured.read().into_iter();
        let measured: Vec<_> =
            measured.map(|(file, fields)| (file.to_owned(), fields.err())).collect();
        if weights.is_empty() && measured.is_empty() {
            eprintln!("krasis: nothing is kept of {}", dir.display());
        }
        Files { weights, measured }
    }
}

fn build(model: &ModelArguments) -> Result<(), Failure> {
    let start = Instant::now();
    let dir = model.folder()?;
    // How some weights are stored depends on who multiplies them.
    let options = model.decide(&Target::Folder(dir.clone()), None, &|_| {})?.options;
    let Some(Built { file, build }) = build_cache(&dir, &options, &Bar::new())? else {
        return Err(Failure::say(Failure::FAILED, "no cache was built"));
    };
    let (path, bytes) = (file.path().display(), file.end());
    match build {
        Some(peak) => {
            let seconds = start.elapsed().as_secs_f64();
            println!("{path}: {bytes} built in {seconds:.1} s; {peak}");
        }
        None => println!("{path}: {bytes}, was there already"),
    }
    Ok(())
}

fn list(dir: &Path) -> Result<(), Failure> {
    let fingerprint = Checkpoint::open(dir).and_then(|ck| ck.fingerprint()).ok();
    let Files { weights, measured } = Files::of(dir);
    for path in weights {
        let state = match open(&path, fingerprint) {
            Ok(file) => {
                let sections = &file.contents().sections;
                let layers = sections.iter().filter_map(|section| section.layer);
                let (first, last) = (layers.clone().min(), layers.max());
                let layers = match (first, last) {
                    (Some(first), Some(last)) => format!(", layers {first} to {last}"),
                    _ => String::new(),
                };
                format!("{}, {} sections{layers}", file.end(), sections.len())
            }
            Err(error) if error.is_absent() => match Progress::of(&path) {
                Some(Progress { done, of }) => format!("unfinished, {done} of {of}"),
                None => "unfinished".into(),
            },
            Err(error) => format!("not used: {error}"),
        };
        println!("{}: {state}", path.display());
    }
    for (path, error) in measured {
        let state = error.map_or("what was measured".into(), |error| format!("not used: {error}"));
        println!("{}: {state}", path.display());
    }
    Ok(())
}

fn verify(dir: &Path) -> Result<(), Failure> {
    let fingerprint = Checkpoint::open(dir).and_then(|ck| ck.fingerprint()).ok();
    let mut bad = 0;
    for path in Files::of(dir).weights {
        let start = Instant::now();
        match open(&path, fingerprint).and_then(|file| check(&file).map(|()| file)) {
            Ok(file) => {
                let (bytes, seconds) = (file.end(), start.elapsed().as_secs_f64());
                let rate = bytes.0 as f64 / seconds / 1e9;
                println!("{}: sound, {bytes} in {seconds:.1} s ({rate:.1} GB/s)", path.display());
            }
            Err(error) if error.is_absent() => println!("{}: unfinished", path.display()),
            Err(error) => {
                println!("{error}");
                bad += 1;
            }
        }
    }
    match bad {
        0 => Ok(()),
        bad => {
            let message =
                format!("{bad} cannot be used: `krasis cache rm`, or start and it is built again");
            Err(Failure::say(Failure::MODEL, message))
        }
    }
}

/// Opens a file, which must be of this checkpoint if that is known.
fn open(path: &Path, fingerprint: Option<u64>) -> Result<CacheFile, CacheError> {
    let file = CacheFile::open(path)?;
    match fingerprint {
        Some(fingerprint) if fingerprint != file.contents().fingerprint => {
            Err(CacheError::OtherModel { file: path.into() })
        }
        _ => Ok(file),
    }
}

fn check(file: &CacheFile) -> Result<(), CacheError> {
    let (bar, of, done) = (Bar::new(), file.contents().bytes(), AtomicU64::new(0));
    file.verify(krasis_cpu::affinity::threads(), |bytes| {
        let done = done.fetch_add(bytes.0, Ordering::Relaxed) + bytes.0;
        bar.show("verifying", Bytes(done), of);
    })
}

/// Measuring takes longer than building, and what was measured holds without the weights, so it goes
/// only if that is said.
fn remove(dir: &Path, all: bool) -> Result<(), Failure> {
    let Files { mut weights, measured } = Files::of(dir);
    for (path, _) in measured {
        match all {
            true => weights.push(path),
            false => println!("kept {}: --all removes it as well", path.display()),
        }
    }
    for path in weights {
        match Lock::take(&path).map_err(anyhow::Error::from)? {
            Taken::Ours(lock) => cache::remove(lock, &path).map_err(anyhow::Error::from)?,
            Taken::Theirs { process } => {
                let process =
                    process.map_or("a process".into(), |number| format!("process {number}"));
                let message = format!("{process} is writing {}: end it first", path.display());
                return Err(Failure::say(Failure::FAILED, message));
            }
        }
        println!("removed {}", path.display());
        // The folder as well, if nothing else is in it.
        let _ = path.parent().map(std::fs::remove_dir);
    }
    Ok(())
}
