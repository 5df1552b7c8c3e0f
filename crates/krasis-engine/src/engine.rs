//! From a checkpoint to an engine that is ready: planned, allocated, filled. What it then does is in
//! `thread.rs`.

use crate::batch::Batch;
use crate::census::{Census, ExpertCensus, LayersCensus};
use crate::device::{self, Home, Watched, allocate};
use crate::dummy::{self, Dummy};
use crate::error::StartError;
use crate::experts::{Asked, Away, AwayPlan, Experts, Level, Overflow};
use crate::handle::{Facts, Handle, Submission};
use crate::kv::{self, Disk, Kind, Listed, Prefixes, Shape, Signature};
use crate::load::{
    Built, Peak, PeakMeter, Phase, Placed, Progress, Shelf, Stock, Unwatched, Watch,
};
use crate::network::Network;
use crate::options::{Activations, CacheUse, DeviceKind, Fault, Options};
use crate::outlook::{Lookout, Outlook};
use crate::plan::Plan;
use crate::planner::{self, Candidate, Draft, Forecast, Host, Part, Proposal, Site, need_of};
use crate::preflight::{Preflight, team};
use crate::rehearsal::Rehearsal;
use crate::runner::{HostMemory, Rank, Runner};
use crate::scheduler::{Limits, Scheduler};
use half::bf16;
use krasis_checkpoint::{Checkpoint, compressed_tensors};
use krasis_core::{Bytes, Layout, Weight};
use krasis_cpu::{Arena, Team};
use krasis_model::{Buffers, Config, Ffn, Model, Source, describe};
use krasis_ops::{Cpu, Memory, Ops};
use std::borrow::Cow;
use std::ops::Range;
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
    pub regions: Vec<(Cow<'static, str>, Bytes)>,
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
            start_at(stock, source, options, device::gpus::<bf16>(options)?, watch)
        }
        DeviceKind::Cuda(Activations::F32) => {
            start_at(stock, source, options, device::gpus::<f32>(options)?, watch)
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
    Draft { model, before: 0, stock, options, act_bytes: options.device.act_bytes(), site }
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
    pub regions: Vec<(Cow<'static, str>, Bytes)>,
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
    /// Has experts lie evenly on NUMA nodes.
    pub(crate) level: Level,
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
        let parts = Plan::parts(source, stock, options, D::ACT_BYTES, &site)?;
        // The cache is of the whole model, however it is spread.
        let mut nowhere = Layout::new(D::ACT_BYTES);
        let whole = Placed::plan(source, stock, options, &mut nowhere, None)?;
        let overflows = parts[0].plan.placed.banks_stay;
        let whole = if overflows { whole.leave_banks() } else { whole };
        let shelf = match options.cache {
            CacheUse::Off => None,
            _ => stock.shelf(&whole, options)?,
        };
        let lookout = lookout(&parts, options);
        match Engine::fill(stock, source, parts, (&whole, shelf.as_ref()), options, home, watch) {
            Err(StartError::NoCache { wanted, why_not }) if overflows => {
                // What would do without the disk.
                let options = &Options { cache: CacheUse::Off, ..options.clone() };
                let act_bytes = D::ACT_BYTES;
                let draft =
                    Draft { model: source, before: 0, stock, options, act_bytes, site: &site };
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
        parts: Vec<Part>,
        (whole, shelf): (&Placed, Option<&Shelf>),
        options: &Options,
        mut home: impl Home<Device = D>,
        watch: &dyn Watch,
    ) -> Result<Loaded<D>, StartError> {
        parts.iter().for_each(|part| log(part, parts.len()));
        let team = team(options);
        let find = |cache| match shelf {
            Some(shelf) if whole.banks_stay => {
                shelf.demand(cache, whole, stock, &team, watch).map(Some)
            }
            Some(shelf) => shelf.find(cache, whole, stock, &team, watch),
            None => Ok(None),
        };
        let mut cache = find(options.cache)?;
        let mut site = home.site();
        site.host.disk = cache.as_ref().filter(|_| whole.banks_stay).and_then(|c| c.file.rate());
        if let Some(overflow) = planner::Overflow::of(source, &parts[0].plan, &site) {
            tracing::warn!("{overflow}");
        }
        let preflight = Preflight::new(site.host.machine, options);
        let need = need_of(&parts);
        let held = preflight.look(&need);
        let own_first = preflight.own_first(&team);
        // Helpers come behind those that they help, of which there is one then.
        let layouts = parts.iter().map(|part| &part.plan.layout);
        let helpers = parts.iter().flat_map(|part| &part.plan.helpers);
        let layouts: Vec<&Layout> = layouts.chain(helpers).collect();
        let rehearsal = |part| Rehearsal::new(part, options.sequences_max);
        let rehearsals: Vec<Rehearsal> = parts.iter().map(|part| rehearsal(&part.plan)).collect();
        home.prepare(&rehearsals)?;
        let mut devices = home.build(&layouts)?;
        let mut helpers = devices.split_off(parts.len());
        let host = |part: &Part| -> Result<Option<Arena>, StartError> {
            let Some(_) = part.plan.away else { return Ok(None) };
            Ok(Some(preflight.place(allocate(&part.plan.host, &options.machine_root)?)))
        };
        let mut hosts = parts.iter().map(host).collect::<Result<Vec<_>, _>>()?;
        let counts = counts(&parts);
        let bytes = parts.iter().map(|part| part.plan.placed.bytes()).sum();
        let mut fill = |cache: Option<&Built>| {
            let file = cache.map(|cache| &*cache.file);
            let progress = Progress::begin(watch, bytes);
            let places = parts.iter().zip(&mut devices).zip(&mut hosts);
            let models = places.map(|((part, device), host)| {
                part.plan.placed.fill(device, host.as_mut(), stock, file, &team, &progress)
            });
            let models = models.collect::<Result<Vec<_>, StartError>>()?;
            progress.end();
            let Part { plan, .. } = &parts[0];
            let overflow = match (&plan.overflow, cache) {
                (Some(slots), Some(cache)) => {
                    let banks = plan.placed.banks.clone();
                    let volume = plan.placed.volume(&cache.file)?;
                    let mut overflow = Overflow::new(slots.clone(), banks, volume, counts.clone())?;
                    let (of, done) = (slots.held(), AtomicU64::new(0));
                    overflow.warm_up(&mut devices[0], |bytes| {
                        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                        watch.progress(Phase::Loading, Bytes(done.min(of.0)), of);
                    })?;
                    Some(overflow)
                }
                _ => None,
            };
            Ok::<_, StartError>((models, overflow))
        };
        let (mut start, mut meter) = (Instant::now(), PeakMeter::start());
        let mut models = fill(cache.as_ref());
        // A cache is found damaged as it is read: another one, and if that is damaged too, none.
        for again in [CacheUse::Rebuild, CacheUse::Off] {
            let Err(StartError::Cache(error)) = &models else { break };
            if whole.banks_stay && again == CacheUse::Off {
                break;
            }
            tracing::warn!("{error}");
            cache = find(again)?;
            (start, meter) = (Instant::now(), PeakMeter::start());
            models = fill(cache.as_ref());
        }
        let (models, mut overflow) = models?;
        let of_slots = |part: &Part| part.plan.overflow.as_ref().map(|overflow| overflow.held());
        let held_experts = parts.iter().filter_map(of_slots).sum();
        let loading = Loading {
            bytes: bytes + held_experts,
            cached: cache.as_ref().map_or(Bytes(0), |cache| cache.file.contents().bytes()),
            time: start.elapsed(),
            peak: meter.stop(fill_peak(&parts, stock, cache.is_some())? + held_experts),
        };
        loading.log();
        preflight.compare(held, need.weights);
        if own_first {
            let settled = devices.iter_mut().try_for_each(|device| device.settle());
            let settled =
                settled.and_then(|()| hosts.iter_mut().flatten().try_for_each(Arena::settle));
            if let Err(error) = settled {
                tracing::warn!(
                    "on which NUMA nodes memory lies cannot be read, so threads read what comes: \
                     {error}; allow move_pages (docker: --cap-add SYS_NICE)"
                );
            }
        }
        let loaded = devices.into_iter().zip(hosts).zip(models);
        let loaded = loaded.map(|((device, host), model)| {
            let (helpers, overflow) = (std::mem::take(&mut helpers), overflow.take());
            Filled { device, helpers, host, overflow, model }
        });
        let loaded = loaded.collect();
        Ok(Engine::assemble(loaded, stock, parts, counts, loading, options))
    }

    fn assemble(
        loaded: Vec<Filled<D>>,
        stock: &impl Stock,
        parts: Vec<Part>,
        counts: Arc<ExpertCensus>,
        loading: Loading,
        options: &Options,
    ) -> Loaded<D> {
        let plan = &parts[0].plan;
        let vocab = loaded.last().map_or(0, |last| last.model.vocab);
        let facts = Facts { vocab, context_max: plan.context_max };
        let (handle, submissions) = Handle::new(facts, options.queue_max);
        let of_all = |kind| parts.iter().map(|part| kv::bytes(&part.plan.caches, kind)).sum();
        let away = parts.iter().find_map(|part| part.plan.away.as_ref());
        let shape = Shape {
            pages: plan.cache.pages,
            page: plan.cache.page,
            places: parts.iter().map(|part| part.plan.cache.places).max().unwrap_or(0),
            sequences: options.sequences_max.max(1),
            page_bytes: of_all(Kind::Page),
            state_bytes: of_all(Kind::State),
            ram: plan.prefix_ram,
            cut_worth: match (away, &plan.overflow) {
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
        let decode_bytes = parts.iter().map(|part| part.plan.placed.decode_bytes()).sum();
        let _ = handle.census.experts.set(counts.clone());
        let (rows_max, several) = (plan.rows_max, parts.len() > 1);
        let (mut ranks, mut regions) = (Vec::<Rank<D>>::new(), Vec::new());
        for (filled, part) in loaded.into_iter().zip(parts) {
            let all = [&part.plan.regions[..], &part.plan.host_regions].concat();
            regions.extend(all.into_iter().map(|(name, bytes)| match several {
                true => (format!("{name} of layers {}", span(&part.layers)).into(), bytes),
                false => (name.into(), bytes),
            }));
            let before = ranks.last().map(|rank| rank.network.buffers);
            ranks.push(filled.rank(part, counts.clone(), before, (several, options)));
        }
        let first_of_pass = options.sequences_max.max(1);
        let mut runner = Runner { ranks, rows_max, first_of_pass, host: HostMemory::default() };
        runner.warm_up(options.sequences_max);
        let engine = Engine {
            scheduler,
            runner,
            batch: Batch::default(),
            beside: Batch::default(),
            requests: 0,
            seeds,
            census: handle.census.clone(),
            level: Level::default(),
            fault: options.fault,
            lookout: None,
        };
        Loaded { engine, handle, submissions, regions, decode_bytes, loading }
    }
}

/// What speed will be held against; of several devices nobody knows yet.
fn lookout(parts: &[Part], options: &Options) -> Option<Lookout> {
    let [Part { model, plan, site, .. }] = parts else { return None };
    let mut site = site.clone();
    if options.outlook == Outlook::Foretold && site.card.is_none() {
        // What the memory of this very machine can do is known only when it is measured.
        site.host = Host::measured(options);
    }
    let forecast = Forecast::new(model, plan, &site);
    let decode = plan.away.as_ref().map(|away| away.decode);
    Lookout::new(&options.outlook, &forecast, decode, plan.pass_tokens)
}

/// Who is asked for, as far as it is looked at: that costs nothing where routes lie in host memory, or have
/// to come there.
fn counts(parts: &[Part]) -> Arc<ExpertCensus> {
    let away = parts.iter().find_map(|part| part.plan.away.as_ref());
    let looks = parts[0].site.card.is_none() || away.is_some();
    let banks = parts.iter().flat_map(|part| &part.plan.placed.banks);
    Arc::new(ExpertCensus::new(
        away.map(|away| (away.prefill, away.decode, away.threshold)),
        parts.iter().filter_map(|part| Some(part.plan.away.as_ref()?.pool.experts)).sum(),
        banks.filter(|_| looks).map(|bank| bank.map_or(0, |bank| bank.experts)),
    ))
}

/// Experts per token, at most.
fn top_k(model: &Model<Weight>) -> u32 {
    let of = |layer: &krasis_model::Layer<_>| match &layer.ffn {
        Ffn::Moe(moe) => moe.routing.top_k,
        Ffn::Dense(_) => 0,
    };
    model.layers.iter().map(of).max().unwrap_or(0)
}

/// A part of a model that has been loaded.
struct Filled<D> {
    device: D,
    helpers: Vec<D>,
    /// Its experts, if they are not on the device.
    host: Option<Arena>,
    /// Or if they are on the disk.
    overflow: Option<Overflow>,
    model: Model<Weight>,
}

impl<D: Ops + Memory> Filled<D> {
    /// Makes it ready to run behind a part with these buffers.
    fn rank(
        self,
        part: Part,
        counts: Arc<ExpertCensus>,
        before: Option<Buffers>,
        (several, options): (bool, &Options),
    ) -> Rank<D> {
        let Part { layers, plan, .. } = part;
        let Filled { mut device, helpers, host, overflow, model } = self;
        let looks = counts.asked().is_some();
        let census = LayersCensus { all: counts, first: layers.start };
        let banks = plan.placed.banks;
        let experts = match (plan.away, host, overflow) {
            (Some(plan), Some(arena), _) => {
                let host = Cpu::new(arena, team(options));
                let mut away = Away::new(plan, host, banks, census);
                // A map is of all layers: parts of a model begin cold.
                if let Some(map) = options.heat_map.as_ref().filter(|_| !several)
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
                Experts::Device(banks, looks.then(|| Asked::new(census, pairs)))
            }
        };
        let b = plan.buffers;
        let takes = before.map(|before| [(before.residual, b.residual), (before.normed, b.normed)]);
        let network = Network { model, caches: plan.caches, buffers: b, before: layers.start };
        Rank { device, helpers, network, experts, step: plan.step, takes }
    }
}

/// Says what is planned.
fn log(part: &Part, parts: usize) {
    if parts > 1 {
        let device = part.site.card.as_ref().map_or("CPU", |card| &card.name);
        tracing::info!(layers = span(&part.layers), device, "one of {parts} parts");
    }
    for (region, bytes) in &part.plan.regions {
        tracing::info!(%region, %bytes, "planned");
    }
    for (region, bytes) in &part.plan.host_regions {
        tracing::info!(%region, %bytes, "planned in host memory");
    }
    if let Some(away) = &part.plan.away {
        let AwayPlan { prefill, decode, threshold, hot, .. } = away;
        tracing::info!(?prefill, ?decode, threshold, hot, "experts lie in host memory");
    }
}

/// Layers as people count them: from 0, the last one named.
fn span(layers: &Range<usize>) -> String {
    format!("{} to {}", layers.start, layers.end - 1)
}

/// What loading takes at most: parts come one after the other.
fn fill_peak(parts: &[Part], stock: &impl Stock, cached: bool) -> Result<Bytes, StartError> {
    let (mut filled, mut peak) = (Bytes(0), Bytes(0));
    for Part { plan, .. } in parts {
        peak = peak.max(filled + plan.placed.fill_peak(stock, cached)?);
        filled += plan.placed.bytes();
    }
    Ok(peak)
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
