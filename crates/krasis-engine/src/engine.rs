//! From a checkpoint to an engine that is ready: planned, allocated, filled. What it then does is in
//! `thread.rs`.

use crate::batch::Batch;
use crate::census::{Census, ExpertCensus};
use crate::device::{self, Home, Watched, allocate};
use crate::dummy::{self, Dummy};
use crate::error::StartError;
use crate::experts::{Asked, Away, AwayPlan, Experts, Overflow};
use crate::handle::{Facts, Handle, Submission};
use crate::kv::{Disk, Kind, Listed, OnDevice, Prefixes, Shape, Signature};
use crate::load::{Built, Peak, PeakMeter, Phase, Placed, Shelf, Stock, Unwatched, Watch};
use crate::network::Network;
use crate::options::{Activations, CacheUse, DeviceKind, Fault, Options};
use crate::outlook::{Lookout, Outlook};
use crate::plan::Plan;
use crate::planner::{self, Candidate, Draft, Forecast, Host, Proposal, Site};
use crate::preflight::Preflight;
use crate::rehearsal::Rehearsal;
use crate::runner::{HostMemory, Runner};
use crate::scheduler::{Limits, Scheduler};
use half::bf16;
use krasis_checkpoint::{Checkpoint, compressed_tensors};
use krasis_core::{Bytes, Layout};
use krasis_cpu::{Arena, Team};
use krasis_model::{Config, Ffn, Model, Source, describe};
use krasis_ops::{Cpu, Memory, Ops};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tokens that a checkpoint of recurrent state has to spare before a prompt is cut for it: as many as take
/// as long as the step that comes of it. Where experts lie elsewhere, that brings them all again, or
/// has the CPU compute them.
const CUT_WORTH: u32 = 128;
const CUT_WORTH_AWAY: u32 = 8192;

/// A model in service. It stops when the last [`Handle`] is dropped.
pub struct Running {
    /// The door.
    pub handle: Handle,
    /// What was allocated, for people.
    pub regions: Vec<(&'static str, Bytes)>,
    /// Bytes of weights that a decoded token reads.
    pub decode_bytes: Bytes,
    /// What loading took.
    pub loading: Loading,
    /// Ends when the last handle is dropped and all that it asked for is done; the device is free then.
    pub thread: JoinHandle<()>,
}

/// What loading took.
#[derive(Clone, Copy, Debug)]
pub struct Loading {
    /// All weights.
    pub bytes: Bytes,
    /// Those that were read from a cache.
    pub cached: Bytes,
    /// Time to bring them into memory, that of building the cache aside.
    pub time: Duration,
    /// Memory at that time.
    pub peak: Peak,
}

/// Loads the checkpoint in `dir` and starts its thread.
pub fn start(dir: &Path, options: &Options) -> Result<Running, StartError> {
    start_watched(dir, options, &Unwatched)
}

/// The same for those who want to see how far it is.
pub fn start_watched(
    dir: &Path,
    options: &Options,
    watch: &dyn Watch,
) -> Result<Running, StartError> {
    let (ck, source) = describe_checkpoint(dir)?;
    start_described(&ck, &source, options, watch)
}

/// Builds the cache of a checkpoint's weights, or finds it; nothing if it cannot be built, which is
/// told as a warning. The memory that running the model takes is not asked for.
pub fn build_cache(
    dir: &Path,
    options: &Options,
    watch: &dyn Watch,
) -> Result<Option<Built>, StartError> {
    let (ck, source) = describe_checkpoint(dir)?;
    let placed = Placed::plan(&source, &ck, options, &mut Layout::new(Cpu::ACT_BYTES), None)?;
    match Shelf::of(&placed, &ck, options)? {
        Some(shelf) => shelf.find(options.cache, &placed, &ck, &Team::new(options.threads), watch),
        None => Err(StartError::NothingQuantised),
    }
}

fn describe_checkpoint(dir: &Path) -> Result<(Checkpoint, Model<Source>), StartError> {
    let ck = Checkpoint::open(dir)?;
    compressed_tensors::quantization(ck.config())?;
    let source = describe(ck.config(), |name| ck.contains(name))?;
    Ok((ck, source))
}

/// Starts a model of random weights in the shapes of a `config.json`: for measuring speed without
/// a checkpoint. Its experts are equally popular, or as unequally as `skew` says (see
/// [`crate::skew`]).
pub fn start_dummy(
    config: &Config,
    skew: Option<f64>,
    options: &Options,
) -> Result<Running, StartError> {
    let mut source = describe(config, |_| false)?;
    if let Some(skew) = skew {
        dummy::skew_routers(&mut source, skew);
    }
    start_described(&Dummy, &source, options, &Unwatched)
}

fn start_described(
    stock: &impl Stock,
    source: &Model<Source>,
    options: &Options,
    watch: &dyn Watch,
) -> Result<Running, StartError> {
    match options.device {
        DeviceKind::Cpu => start_traced(stock, source, options, device::cpu(options), watch),
        DeviceKind::Reference => {
            start_traced(stock, source, options, device::reference(options), watch)
        }
        // These send spans of their own.
        DeviceKind::Cuda(Activations::Bf16) => {
            start_at(stock, source, options, device::gpu::<bf16>(options)?, watch)
        }
        DeviceKind::Cuda(Activations::F32) => {
            start_at(stock, source, options, device::gpu::<f32>(options)?, watch)
        }
    }
}

fn start_at(
    stock: &impl Stock,
    source: &Model<Source>,
    options: &Options,
    home: impl Home,
    watch: &dyn Watch,
) -> Result<Running, StartError> {
    launch(Engine::load_described(stock, source, options, home, watch)?)
}

/// The same with a watch on each operation, if anybody wants to know how long they take.
fn start_traced(
    stock: &impl Stock,
    source: &Model<Source>,
    options: &Options,
    home: impl Home,
    watch: &dyn Watch,
) -> Result<Running, StartError> {
    match &options.trace {
        None => start_at(stock, source, options, home, watch),
        Some(spans) => {
            let home = Watched { home, spans: spans.clone() };
            start_at(stock, source, options, home, watch)
        }
    }
}

/// What the checkpoint in `dir` would take of a machine, and how fast it would be; nothing is
/// allocated.
pub fn propose(dir: &Path, options: &Options, site: &Site) -> Result<Proposal, StartError> {
    let (ck, source) = describe_checkpoint(dir)?;
    Proposal::new(&source, &ck, options, site)
}

/// The same of random weights in the shapes of a `config.json`.
pub fn propose_dummy(
    config: &Config,
    options: &Options,
    site: &Site,
) -> Result<Proposal, StartError> {
    let source = describe(config, |_| false)?;
    Proposal::new(&source, &Dummy, options, site)
}

/// All that could be done with the experts of the checkpoint in `dir`, with prompts of so many tokens.
pub fn candidates(
    dir: &Path,
    options: &Options,
    site: &Site,
    tokens: u32,
) -> Result<Vec<Candidate>, StartError> {
    let (ck, source) = describe_checkpoint(dir)?;
    Ok(draft(&source, &ck, options, site).candidates(tokens))
}

/// The same of random weights in the shapes of a `config.json`.
pub fn candidates_dummy(
    config: &Config,
    options: &Options,
    site: &Site,
    tokens: u32,
) -> Result<Vec<Candidate>, StartError> {
    let source = describe(config, |_| false)?;
    Ok(draft(&source, &Dummy, options, site).candidates(tokens))
}

fn draft<'a, S: Stock>(
    model: &'a Model<Source>,
    stock: &'a S,
    options: &'a Options,
    site: &'a Site,
) -> Draft<'a, S> {
    Draft { model, stock, options, act_bytes: options.device.act_bytes(), site }
}

fn launch<D: Ops + Memory + Send + 'static>(loaded: Loaded<D>) -> Result<Running, StartError> {
    let Loaded { mut engine, handle, submissions, regions, decode_bytes, loading } = loaded;
    let thread = std::thread::Builder::new()
        .name("krasis-engine".into())
        .spawn(move || engine.serve(&submissions))?;
    Ok(Running { handle, regions, decode_bytes, loading, thread })
}

/// An engine that has not started yet.
pub struct Loaded<D> {
    /// The engine.
    pub engine: Engine<D>,
    /// Its door.
    pub handle: Handle,
    /// What the door leads to, for [`Engine::serve`].
    pub submissions: Receiver<Submission>,
    /// What was allocated, for people.
    pub regions: Vec<(&'static str, Bytes)>,
    /// Bytes of weights that a decoded token reads.
    pub decode_bytes: Bytes,
    /// What loading took.
    pub loading: Loading,
}

/// One thread owns everything: there are no locks below.
pub struct Engine<D> {
    pub(crate) scheduler: Scheduler,
    /// The model on its device.
    pub runner: Runner<D>,
    /// The step's work, kept for its memory.
    pub(crate) batch: Batch,
    /// That of a step beside it.
    pub(crate) beside: Batch,
    /// Requests so far.
    pub(crate) requests: u64,
    /// Of requests that name no seed: this plus their number.
    pub(crate) seeds: u64,
    pub(crate) census: Arc<Census>,
    /// How it fails, in tests of what happens then.
    pub(crate) fault: Option<Fault>,
    /// What speed is held against, if anybody looks.
    pub(crate) lookout: Option<Lookout>,
}

impl<D: Ops + Memory> Engine<D> {
    /// Opens a checkpoint and loads the model that its config describes.
    pub fn load(
        dir: &Path,
        options: &Options,
        home: impl Home<Device = D>,
    ) -> Result<Loaded<D>, StartError> {
        Engine::load_watched(dir, options, home, &Unwatched)
    }

    /// The same for those who want to see how far it is.
    pub fn load_watched(
        dir: &Path,
        options: &Options,
        home: impl Home<Device = D>,
        watch: &dyn Watch,
    ) -> Result<Loaded<D>, StartError> {
        let (ck, source) = describe_checkpoint(dir)?;
        Engine::load_described(&ck, &source, options, home, watch)
    }

    /// Plans, allocates and fills a model from its description.
    pub fn load_described(
        stock: &impl Stock,
        source: &Model<Source>,
        options: &Options,
        home: impl Home<Device = D>,
        watch: &dyn Watch,
    ) -> Result<Loaded<D>, StartError> {
        let site = home.site();
        let plan = Plan::new(source, stock, options, D::ACT_BYTES, &site)?;
        let shelf = match options.cache {
            CacheUse::Off => None,
            _ => stock.shelf(&plan.placed, options)?,
        };
        let overflows = plan.overflow.is_some();
        let lookout = lookout(source, &plan, options, &site);
        match Engine::fill(stock, source, plan, shelf.as_ref(), options, home, watch) {
            Err(StartError::NoCache { wanted, why_not }) if overflows => {
                // What would do without the disk.
                let options = &Options { cache: CacheUse::Off, ..options.clone() };
                let act_bytes = D::ACT_BYTES;
                let draft = Draft { model: source, stock, options, act_bytes, site: &site };
                let else_ = draft.plan().err().map(|error| format!("; without one, {error}"));
                let why_not = why_not + &else_.unwrap_or_default();
                Err(StartError::NoCache { wanted, why_not })
            }
            loaded => {
                let mut loaded = loaded?;
                loaded.engine.lookout = lookout;
                Ok(loaded)
            }
        }
    }

    fn fill(
        stock: &impl Stock,
        source: &Model<Source>,
        plan: Plan,
        shelf: Option<&Shelf>,
        options: &Options,
        mut home: impl Home<Device = D>,
        watch: &dyn Watch,
    ) -> Result<Loaded<D>, StartError> {
        for (region, bytes) in &plan.regions {
            tracing::info!(%region, %bytes, "planned");
        }
        for (region, bytes) in &plan.host_regions {
            tracing::info!(%region, %bytes, "planned in host memory");
        }
        if let Some(away) = &plan.away {
            let AwayPlan { prefill, decode, threshold, hot, .. } = away;
            tracing::info!(?prefill, ?decode, threshold, hot, "experts lie in host memory");
        }
        let (placed, team) = (&plan.placed, Team::new(options.threads));
        let find = |cache| match shelf {
            Some(shelf) if placed.banks_stay => {
                shelf.demand(cache, placed, stock, &team, watch).map(Some)
            }
            Some(shelf) => shelf.find(cache, placed, stock, &team, watch),
            None => Ok(None),
        };
        let mut cache = find(options.cache)?;
        let mut site = home.site();
        site.host.disk = cache.as_ref().filter(|_| placed.banks_stay).and_then(|c| c.file.rate());
        if let Some(overflow) = planner::Overflow::of(source, &plan, &site) {
            tracing::warn!("{overflow}");
        }
        // Looking at routes costs nothing where they lie in host memory, or have to come there.
        let looks = site.card.is_none() || plan.away.is_some();
        let preflight = Preflight::new(site.host.machine, options);
        let held = preflight.look(&plan.need);
        home.prepare(&Rehearsal::new(&plan, options.sequences_max))?;
        let mut device = home.build(&plan.layout)?;
        let mut host = match &plan.away {
            Some(_) => {
                let arena = allocate(&plan.host, &options.machine_root)?;
                Some(preflight.place(arena))
            }
            None => None,
        };
        let away = plan.away.as_ref();
        let counted =
            placed.banks.iter().filter(|_| looks).map(|bank| bank.map_or(0, |bank| bank.experts));
        let counts = Arc::new(ExpertCensus::new(
            away.map(|away| (away.prefill, away.decode, away.threshold)),
            away.map_or(0, |away| away.pool.experts),
            counted,
        ));
        let mut fill = |cache: Option<&Built>| {
            let file = cache.map(|cache| &cache.file);
            let (device, file) = (&mut device, file.map(|file| &**file));
            let model = placed.fill(device, host.as_mut(), stock, file, &team, watch)?;
            let overflow = match (&plan.overflow, cache) {
                (Some(plan), Some(cache)) => {
                    let (banks, counts) = (placed.banks.clone(), counts.clone());
                    let volume = placed.volume(&cache.file)?;
                    let mut overflow = Overflow::new(plan.clone(), banks, volume, counts)?;
                    let (of, done) = (plan.held(), AtomicU64::new(0));
                    overflow.warm_up(device, |bytes| {
                        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                        watch.progress(Phase::Loading, Bytes(done.min(of.0)), of);
                    })?;
                    Some(overflow)
                }
                _ => None,
            };
            Ok::<_, StartError>((model, overflow))
        };
        let (mut start, mut meter) = (Instant::now(), PeakMeter::start());
        let mut model = fill(cache.as_ref());
        // A cache is found damaged as it is read: another one, and if that is damaged too, none.
        for again in [CacheUse::Rebuild, CacheUse::Off] {
            let Err(StartError::Cache(error)) = &model else { break };
            if placed.banks_stay && again == CacheUse::Off {
                break;
            }
            tracing::warn!("{error}");
            cache = find(again)?;
            (start, meter) = (Instant::now(), PeakMeter::start());
            model = fill(cache.as_ref());
        }
        let (model, overflow) = model?;
        let held_experts = plan.overflow.as_ref().map_or(Bytes(0), |overflow| overflow.held());
        let loading = Loading {
            bytes: placed.bytes() + held_experts,
            cached: cache.as_ref().map_or(Bytes(0), |cache| cache.file.contents().bytes()),
            time: start.elapsed(),
            peak: meter.stop(placed.fill_peak(stock, cache.is_some())? + held_experts),
        };
        loading.log();
        preflight.compare(held, plan.need.weights);
        Ok(Engine::assemble(device, (host, overflow), model, stock, plan, counts, loading, options))
    }

    fn assemble(
        mut device: D,
        (host, overflow): (Option<Arena>, Option<Overflow>),
        model: Model<krasis_core::Weight>,
        stock: &impl Stock,
        plan: Plan,
        counts: Arc<ExpertCensus>,
        loading: Loading,
        options: &Options,
    ) -> Loaded<D> {
        let facts = Facts { vocab: model.vocab, context_max: plan.context_max };
        let (handle, submissions) = Handle::new(facts, options.queue_max);
        let shape = Shape {
            pages: plan.cache.pages,
            page: plan.cache.page,
            places: plan.cache.places,
            sequences: options.sequences_max.max(1),
            page_bytes: OnDevice::<D>::bytes(&plan.caches, Kind::Page),
            state_bytes: OnDevice::<D>::bytes(&plan.caches, Kind::State),
            ram: plan.prefix_ram,
            cut_worth: match (&plan.away, &plan.overflow) {
                (None, None) => CUT_WORTH,
                _ => CUT_WORTH_AWAY,
            },
        };
        let disk = open_disk(stock, options, &shape);
        let prefixes = Prefixes::new(shape, &options.prefix, disk, handle.census.clone());
        let limits = Limits {
            pages_max: plan.step.pages_max(),
            pass_tokens: plan.pass_tokens,
            context_max: plan.context_max,
        };
        let scheduler = Scheduler::new(prefixes, limits, handle.census.clone());
        let seeds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
        let decode_bytes = plan.placed.decode_bytes();
        let banks = plan.placed.banks;
        let _ = handle.census.experts.set(counts.clone());
        let experts = match (plan.away, host, overflow) {
            (Some(plan), Some(arena), _) => {
                let host = Cpu::new(arena, Team::new(options.threads));
                let mut away = Away::new(plan, host, banks, counts);
                if let Some(map) = &options.heat_map
                    && !away.remember(map)
                {
                    tracing::warn!("the heat map is of other layers, so nothing is hot yet");
                }
                away.warm_up(&mut device);
                Experts::Away(Box::new(away))
            }
            (.., Some(overflow)) => Experts::Overflow(Box::new(overflow)),
            _ => {
                let pairs = plan.rows_max * top_k(&model);
                let asked = counts.asked().is_some().then(|| Asked::new(counts.clone(), pairs));
                Experts::Device(banks, asked)
            }
        };
        let network = Network { model, caches: plan.caches, buffers: plan.buffers };
        let mut runner = Runner {
            device,
            network,
            experts,
            step: plan.step,
            rows_max: plan.rows_max,
            first_of_pass: options.sequences_max.max(1),
            host: HostMemory::default(),
        };
        runner.warm_up(options.sequences_max);
        let engine = Engine {
            scheduler,
            runner,
            batch: Batch::default(),
            beside: Batch::default(),
            requests: 0,
            seeds,
            census: handle.census.clone(),
            fault: options.fault,
            lookout: None,
        };
        let regions = [plan.regions, plan.host_regions].concat();
        Loaded { engine, handle, submissions, regions, decode_bytes, loading }
    }
}

/// What a plan's speed will be held against.
fn lookout(source: &Model<Source>, plan: &Plan, options: &Options, site: &Site) -> Option<Lookout> {
    let mut site = site.clone();
    if options.outlook == Outlook::Foretold && site.card.is_none() {
        // What the memory of this very machine can do is known only when it is measured.
        site.host = Host::measured(options);
    }
    let forecast = Forecast::new(source, plan, &site);
    let decode = plan.away.as_ref().map(|away| away.decode);
    Lookout::new(&options.outlook, &forecast, decode, plan.pass_tokens)
}

/// Experts per token, at most.
fn top_k(model: &Model<krasis_core::Weight>) -> u32 {
    let of = |layer: &krasis_model::Layer<_>| match &layer.ffn {
        Ffn::Moe(moe) => moe.routing.top_k,
        Ffn::Dense(_) => 0,
    };
    model.layers.iter().map(of).max().unwrap_or(0)
}

/// The disk for what outlives the process, if there is to be one; what is wrong with it is said, and
/// costs no more than time.
fn open_disk(stock: &impl Stock, options: &Options, shape: &Shape) -> Option<(Disk, Vec<Listed>)> {
    let wanted = options.prefix.disk.as_ref()?;
    let signature = match stock.fingerprint() {
        Ok(Some(fingerprint)) => Signature::of(fingerprint, options, shape),
        Ok(None) => return None,
        Err(error) => {
            tracing::warn!("no prefixes on disk: {error}");
            return None;
        }
    };
    let opened = Disk::open(wanted, signature, shape.page as usize);
    opened.inspect_err(|error| tracing::warn!("no prefixes on disk: {error}")).ok()
}

impl Loading {
    fn log(&self) {
        let Loading { bytes, cached, time, peak } = self;
        let seconds = time.as_secs_f64();
        let rate = bytes.0 as f64 / seconds / 1e9;
        tracing::info!(
            "loaded {bytes}, {cached} of it from the cache, in {seconds:.2} s ({rate:.2} GB/s); {peak}"
        );
    }
}
