//! Where the cache of a checkpoint lies: finds it there, builds it, or waits for whoever does.
//!
//! Whatever goes wrong with a cache is said in a sentence, and then there is one way less: the other
//! place, a rebuild, and in the end the checkpoint itself.

use super::kept::{self, Kept};
use super::{Peak, PeakMeter, Phase, Placed, Stock, Watch};
use crate::error::StartError;
use crate::options::{CacheUse, Options};
use krasis_checkpoint::Checkpoint;
use krasis_checkpoint::cache::{Builder, CacheError, CacheFile, Contents, Lock, Progress, Taken};
use krasis_core::Bytes;
use krasis_cpu::Team;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The folder in the model's.
const FOLDER: &str = ".krasis_cache";

/// How often a waiting process looks.
const POLL: Duration = Duration::from_millis(100);

/// A builder that finishes no section for so long is not waited for: Kimi's take a minute each.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a model keeps, and where.
pub struct Shelf {
    kept: Vec<Kept>,
    contents: Contents,
    /// In the order in which they are tried.
    files: Vec<PathBuf>,
    lasts: Lasts,
}

/// How long a cache lies there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasts {
    /// For the next start.
    On,
    /// As long as it is open.
    WhileOpen,
}

/// A cache that is there.
pub struct Built {
    /// Open and sound, as far as is known without reading all of it.
    pub file: Arc<CacheFile>,
    /// What building it took, if it was done just now.
    pub build: Option<Peak>,
}

impl Shelf {
    /// What is kept of this model; nothing if no weight is.
    pub fn of(
        placed: &Placed,
        ck: &Checkpoint,
        options: &Options,
    ) -> Result<Option<Shelf>, StartError> {
        let kept = kept::of(placed);
        if kept.is_empty() {
            return Ok(None);
        }
        let contents = kept::contents(&kept, ck.fingerprint()?);
        let name = contents.file_name(&kept::label(&kept));
        let folders = cache_places(ck.dir(), contents.fingerprint, options);
        let files = folders.into_iter().map(|folder| folder.join(&name)).collect();
        Ok(Some(Shelf { kept, contents, files, lasts: Lasts::On }))
    }

    /// A place for weights that are made up, from which their experts are read: nothing is left of it.
    pub fn of_dummy(placed: &Placed, options: &Options) -> Shelf {
        let kept = kept::of(placed);
        let contents = kept::contents(&kept, 0);
        let name = contents.file_name(&kept::label(&kept));
        let folder = format!("dummy-{}", std::process::id());
        let files = options.cache_home.iter().map(|home| home.join(&folder).join(&name)).collect();
        Shelf { kept, contents, files, lasts: Lasts::WhileOpen }
    }

    /// Bytes of the cache.
    pub fn bytes(&self) -> Bytes {
        self.contents.bytes()
    }

    /// The cache, built if need be; nothing if there can be none, which was said then.
    pub fn find(
        &self,
        cache: CacheUse,
        placed: &Placed,
        stock: &impl Stock,
        team: &Team,
        watch: &dyn Watch,
    ) -> Result<Option<Built>, StartError> {
        if cache == CacheUse::Off {
            return Ok(None);
        }
        let why_not = match self.seek(cache, placed, stock, team, watch)? {
            Ok(built) => return Ok(Some(built)),
            Err(why_not) => why_not,
        };
        why_not.iter().for_each(|error| tracing::warn!("no cache of weights: {error}"));
        tracing::warn!(
            "weights are quantised from the checkpoint, now and at the next start; {} would hold them",
            self.contents.bytes()
        );
        Ok(None)
    }

    /// The cache for a model whose experts stay in it.
    pub fn demand(
        &self,
        cache: CacheUse,
        placed: &Placed,
        stock: &impl Stock,
        team: &Team,
        watch: &dyn Watch,
    ) -> Result<Built, StartError> {
        self.seek(cache, placed, stock, team, watch)?.map_err(|why_not| {
            let why_not: Vec<String> = why_not.iter().map(CacheError::to_string).collect();
            StartError::NoCache { wanted: self.bytes(), why_not: why_not.join("; ") }
        })
    }

    /// The cache, or why there is none in any of the places.
    fn seek(
        &self,
        cache: CacheUse,
        placed: &Placed,
        stock: &impl Stock,
        team: &Team,
        watch: &dyn Watch,
    ) -> Result<Result<Built, Vec<CacheError>>, StartError> {
        if cache == CacheUse::Auto && self.lasts == Lasts::On {
            for file in &self.files {
                match self.open(file) {
                    Ok(file) => return Ok(Ok(Built { file, build: None })),
                    Err(error) if error.is_absent() => {}
                    Err(error) => tracing::warn!("{error}: it is built again"),
                }
            }
        }
        let mut why_not = Vec::new();
        for file in &self.files {
            match self.build(file, cache, placed, stock, team, watch) {
                Ok(built) => {
                    if self.lasts == Lasts::WhileOpen {
                        self.remove(file);
                    }
                    return Ok(Ok(built));
                }
                Err(StartError::Cache(error)) => why_not.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(Err(why_not))
    }

    /// Takes a file's name away; what is in it stays for whoever has it open.
    fn remove(&self, file: &Path) {
        let removed = match Lock::take(file) {
            Ok(Taken::Ours(lock)) => krasis_checkpoint::cache::remove(lock, file),
            Ok(Taken::Theirs { .. }) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!("{error}");
        }
        // It is ours alone, by its number.
        let _ = file.parent().map(std::fs::remove_dir);
    }

    fn open(&self, file: &Path) -> Result<Arc<CacheFile>, CacheError> {
        let cache = CacheFile::open(file)?;
        cache.find(&self.contents)?;
        Ok(Arc::new(cache))
    }

    fn build(
        &self,
        path: &Path,
        cache: CacheUse,
        placed: &Placed,
        stock: &impl Stock,
        team: &Team,
        watch: &dyn Watch,
    ) -> Result<Built, StartError> {
        let folder = path.parent().expect("a cache lies in a folder");
        std::fs::create_dir_all(folder).map_err(|cause| CacheError::Io {
            doing: "create",
            file: folder.into(),
            cause,
        })?;
        let (lock, waited) = lock(path, watch)?;
        // Who had the lock may have built it.
        if (cache == CacheUse::Auto || waited)
            && let Ok(file) = self.open(path)
        {
            return Ok(Built { file, build: None });
        }
        let (start, meter) = (Instant::now(), PeakMeter::start());
        let mut builder = Builder::begin(lock, path, self.contents.clone())?;
        let resumed = builder.progress().done;
        let progress = |builder: &Builder| {
            let Progress { done, of } = builder.progress();
            watch.progress(Phase::Building, done, of);
        };
        if let Err(error) = kept::build(&self.kept, &mut builder, stock, team, progress) {
            builder.discard();
            return Err(error);
        }
        builder.finish()?;
        let peak = meter.stop(placed.build_peak(stock)?);
        let (bytes, seconds) = (self.contents.bytes(), start.elapsed().as_secs_f64());
        tracing::info!(
            "built {}: {bytes} in {seconds:.1} s, {resumed} of it before; {peak}",
            path.display()
        );
        Ok(Built { file: self.open(path)?, build: Some(peak) })
    }
}

/// Folders for what is kept of a model with this fingerprint, whether they exist or not, in the order in
/// which they are tried.
pub fn cache_places(dir: &Path, fingerprint: u64, options: &Options) -> Vec<PathBuf> {
    let there = format!("{}-{:08x}", name_of(dir), fingerprint as u32);
    let home = options.cache_home.iter().map(|home| home.join(&there));
    [dir.join(FOLDER)].into_iter().chain(home).collect()
}

/// Folders in which caches of a model may lie, of whatever was in its folder at any time.
pub fn cache_folders(dir: &Path, options: &Options) -> Vec<PathBuf> {
    let name = name_of(dir) + "-";
    let ours = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let digits = file.strip_prefix(&name).unwrap_or_default();
        digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    let home = options.cache_home.iter().filter_map(|home| home.read_dir().ok()).flatten();
    let home = home.filter_map(|entry| Some(entry.ok()?.path())).filter(ours);
    [dir.join(FOLDER)].into_iter().chain(home).filter(|folder| folder.is_dir()).collect()
}

/// The name of a model's folder.
fn name_of(dir: &Path) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.into());
    full.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Waits for the right to build a file; also says whether somebody else had it.
fn lock(path: &Path, watch: &dyn Watch) -> Result<(Lock, bool), CacheError> {
    let mut waiting: Option<(Instant, Option<Progress>)> = None;
    loop {
        let process = match Lock::take(path)? {
            Taken::Ours(lock) => return Ok((lock, waiting.is_some())),
            Taken::Theirs { process } => process,
        };
        let progress = Progress::of(path);
        let (since, seen) = *waiting.get_or_insert_with(|| {
            let name =
                process.map_or("another process".into(), |process| format!("process {process}"));
            tracing::info!("waiting for {name}, which builds {}", path.display());
            (Instant::now(), progress)
        });
        if seen != progress {
            waiting = Some((Instant::now(), progress));
        } else if since.elapsed() > PATIENCE {
            let minutes = PATIENCE.as_secs() / 60;
            return Err(CacheError::Held { file: path.into(), process, minutes });
        }
        let Progress { done, of } = progress.unwrap_or(Progress { done: Bytes(0), of: Bytes(1) });
        watch.progress(Phase::Waiting, done, of);
        std::thread::sleep(POLL);
    }
}
