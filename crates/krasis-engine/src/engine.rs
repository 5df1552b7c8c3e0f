//! The step, and the thread that makes it.

use crate::census::{Census, ExpertCensus, LayersCensus};
use crate::device::{self, Home, Watched, allocate};
use crate::dummy::{self, Dummy};
use crate::error::StartError;
use crate::experts::{Asked, Away, AwayPlan, Experts};
use crate::handle::{Facts, Handle, Submission};
use crate::kv::{self, Disk, Kind, Listed, OnDevices, Prefixes, Shape, Signature};
use crate::load::{Built, Peak, PeakMeter, Placed, Progress, Shelf, Stock, Unwatched, Watch};
use crate::network::Network;
use crate::options::{Activations, CacheUse, DeviceKind, Options};
use crate::plan::Plan;
use crate::planner::{Part, Proposal, Site, need_of};
use crate::preflight::Preflight;
use crate::runner::{HostMemory, Rank, Runner};
use crate::sample::Known;
use crate::scheduler::{Batch, Limits, Scheduler};
use crate::sequence::Sequence;
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
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tokens that a checkpoint of recurrent state has to spare before a prompt is cut for it: as many as take
/// as long as the step that comes of it. Where experts lie in host memory, that brings them all again, or
/// has the CPU compute them.
const CUT_WORTH: u32 = 128;
const CUT_WORTH_AWAY: u32 = 8192;

/// What a wait for the disk takes at most before requests are looked at again.
const PATIENCE: Duration = Duration::from_millis(5);

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
        DeviceKind::Cpu => start_at(stock, source, options, device::cpu(options), watch),
        DeviceKind::Reference => {
            start_at(stock, source, options, device::reference(options), watch)
        }
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
    match &options.trace {
        None => launch(Engine::load_described(stock, source, options, home, watch)?),
        Some(spans) => {
            let home = Watched { home, spans: spans.clone() };
            launch(Engine::load_described(stock, source, options, home, watch)?)
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

fn launch<D: Ops + Memory + Send + 'static>(loaded: Loaded<D>) -> Result<Running, StartError> {
    let Loaded { mut engine, handle, submissions, regions, decode_bytes, loading } = loaded;
    std::thread::Builder::new()
        .name("krasis-engine".into())
        .spawn(move || engine.serve(&submissions))?;
    Ok(Running { handle, regions, decode_bytes, loading })
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
    scheduler: Scheduler,
    /// The model on its device.
    pub runner: Runner<D>,
    /// The step's work, kept for its memory.
    batch: Batch,
    /// Of requests that name no seed.
    seeds: u64,
    census: Arc<Census>,
    /// The step that fails, in tests of what happens then.
    fault: Option<u64>,
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
        let parts = Plan::parts(source, stock, options, D::ACT_BYTES, &home.site())?;
        // The cache is of the whole model, however it is spread.
        let mut nowhere = Layout::new(D::ACT_BYTES);
        let whole = Placed::plan(source, stock, options, &mut nowhere, None)?;
        let shelf = match options.cache {
            CacheUse::Off => None,
            _ => stock.shelf(&whole, options)?,
        };
        Engine::fill(stock, parts, (&whole, shelf.as_ref()), options, home, watch)
    }

    fn fill(
        stock: &impl Stock,
        parts: Vec<Part>,
        (whole, shelf): (&Placed, Option<&Shelf>),
        options: &Options,
        home: impl Home<Device = D>,
        watch: &dyn Watch,
    ) -> Result<Loaded<D>, StartError> {
        parts.iter().for_each(|part| log(part, parts.len()));
        let team = Team::new(options.threads);
        let find = |cache| match shelf {
            Some(shelf) => shelf.find(cache, whole, stock, &team, watch),
            None => Ok(None),
        };
        let mut cache = find(options.cache)?;
        let site = home.site();
        let preflight = Preflight::new(site.host.machine, options);
        let need = need_of(&parts);
        let held = preflight.look(&need);
        // Helpers come behind those that they help, of which there is one then.
        let layouts = parts.iter().map(|part| &part.plan.layout);
        let helpers = parts.iter().flat_map(|part| &part.plan.helpers);
        let layouts: Vec<&Layout> = layouts.chain(helpers).collect();
        let mut devices = home.build(&layouts)?;
        let mut helpers = devices.split_off(parts.len());
        let host = |part: &Part| -> Result<Option<Arena>, StartError> {
            let Some(_) = part.plan.away else { return Ok(None) };
            Ok(Some(preflight.place(allocate(&part.plan.host, &options.machine_root)?)))
        };
        let mut hosts = parts.iter().map(host).collect::<Result<Vec<_>, _>>()?;
        let bytes = parts.iter().map(|part| part.plan.placed.bytes()).sum();
        let mut fill = |cache: Option<&Built>| {
            let file = cache.map(|cache| &cache.file);
            let progress = Progress::begin(watch, bytes);
            let places = parts.iter().zip(&mut devices).zip(&mut hosts);
            let models = places.map(|((part, device), host)| {
                part.plan.placed.fill(device, host.as_mut(), stock, file, &team, &progress)
            });
            let models = models.collect::<Result<Vec<_>, StartError>>()?;
            progress.end();
            Ok(models)
        };
        let (mut start, mut meter) = (Instant::now(), PeakMeter::start());
        let mut models = fill(cache.as_ref());
        // A cache is found damaged as it is read: another one, and if that is damaged too, none.
        for again in [CacheUse::Rebuild, CacheUse::Off] {
            let Err(StartError::Cache(error)) = &models else { break };
            tracing::warn!("{error}");
            cache = find(again)?;
            (start, meter) = (Instant::now(), PeakMeter::start());
            models = fill(cache.as_ref());
        }
        let models = models?;
        let loading = Loading {
            bytes,
            cached: cache.as_ref().map_or(Bytes(0), |cache| cache.file.contents().bytes()),
            time: start.elapsed(),
            peak: meter.stop(fill_peak(&parts, stock, cache.is_some())?),
        };
        loading.log();
        preflight.compare(held, need.weights);
        let loaded = devices.into_iter().zip(hosts).zip(models);
        let loaded = loaded.map(|((device, host), model)| {
            let helpers = std::mem::take(&mut helpers);
            Filled { device, helpers, host, model }
        });
        let loaded = loaded.collect();
        Ok(Engine::assemble(loaded, stock, parts, loading, options))
    }

    fn assemble(
        loaded: Vec<Filled<D>>,
        stock: &impl Stock,
        parts: Vec<Part>,
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
            cut_worth: if away.is_some() { CUT_WORTH_AWAY } else { CUT_WORTH },
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
        // Looking at routes costs nothing where they lie in host memory, or have to come there.
        let looks = parts[0].site.card.is_none() || away.is_some();
        let banks = parts.iter().flat_map(|part| &part.plan.placed.banks);
        let counts = Arc::new(ExpertCensus::new(
            away.map(|away| (away.prefill, away.decode)),
            parts.iter().filter_map(|part| Some(part.plan.away.as_ref()?.pool.experts)).sum(),
            banks.filter(|_| looks).map(|bank| bank.map_or(0, |bank| bank.experts)),
        ));
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
            ranks.push(filled.rank(part, counts.clone(), before, options));
        }
        let runner = Runner { ranks, rows_max, host: HostMemory::default() };
        let fault = options.fault_at_step;
        let census = handle.census.clone();
        let engine = Engine { scheduler, runner, batch: Batch::default(), seeds, census, fault };
        Loaded { engine, handle, submissions, regions, decode_bytes, loading }
    }

    /// Works until all handles are gone and all requests are answered.
    pub fn serve(&mut self, submissions: &Receiver<Submission>) {
        let mut open = true;
        while open || self.scheduler.is_busy() {
            open = open && self.listen(submissions);
            self.step();
        }
        self.scheduler.close(&mut past(&mut self.runner));
    }

    /// One forward pass over whatever is due.
    pub fn step(&mut self) {
        let (scheduler, batch) = (&mut self.scheduler, &mut self.batch);
        if !scheduler.next_batch(&mut past(&mut self.runner), batch) {
            scheduler.count();
            if scheduler.is_loading() {
                scheduler.wait(PATIENCE);
            }
            return;
        }
        let step = self.census.steps.fetch_add(1, Ordering::Relaxed);
        assert!(self.fault != Some(step), "step {step} fails, as --fault-at-step wishes");
        let start = Instant::now();
        let hear = |index, known: Known| scheduler.hear(batch, index, known);
        self.runner.forward(&batch.input, &batch.chosen, hear);
        // Before anybody hears of the step, so that whoever has heard of it finds it counted.
        let pace = if batch.reads() { &self.census.prompts } else { &self.census.decodes };
        pace.add(batch.input.tokens.len(), start.elapsed());
        if let Some(experts) = self.census.experts.get() {
            experts.moved(self.runner.traffic());
        }
        scheduler.computed(batch, start.elapsed());
        scheduler.commit(&mut past(&mut self.runner), batch);
        scheduler.count();
    }

    /// Takes requests while there is room for them; with nothing to do, waits for one. False once
    /// there can be no more.
    pub fn listen(&mut self, submissions: &Receiver<Submission>) -> bool {
        while self.scheduler.has_room() {
            let submission = if self.scheduler.is_busy() {
                match submissions.try_recv() {
                    Ok(submission) => submission,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            } else if self.scheduler.has_errands() {
                self.scheduler.do_errands(&mut past(&mut self.runner));
                match submissions.recv_timeout(PATIENCE) {
                    Ok(submission) => submission,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return false,
                }
            } else {
                match submissions.recv() {
                    Ok(submission) => submission,
                    Err(_) => return false,
                }
            };
            self.census.queued.fetch_sub(1, Ordering::Relaxed);
            self.seeds = self.seeds.wrapping_add(1);
            self.scheduler.add(Sequence::new(submission, self.seeds));
            self.scheduler.admit(&mut past(&mut self.runner));
        }
        true
    }
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
    model: Model<Weight>,
}

impl<D: Ops + Memory> Filled<D> {
    /// Makes it ready to run behind a part with these buffers.
    fn rank(
        self,
        part: Part,
        counts: Arc<ExpertCensus>,
        before: Option<Buffers>,
        options: &Options,
    ) -> Rank<D> {
        let Part { layers, plan, .. } = part;
        let Filled { mut device, helpers, host, model } = self;
        let looks = counts.asked().is_some();
        let census = LayersCensus { all: counts, first: layers.start };
        let banks = plan.placed.banks;
        let experts = match (plan.away, host) {
            (Some(plan), Some(arena)) => {
                let host = Cpu::new(arena, Team::new(options.threads));
                let mut away = Away::new(plan, host, banks, census);
                away.warm_up(&mut device);
                Experts::Away(Box::new(away))
            }
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

/// What its sequences remember.
fn past<D>(runner: &mut Runner<D>) -> OnDevices<'_, D> {
    OnDevices(&mut runner.ranks)
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
