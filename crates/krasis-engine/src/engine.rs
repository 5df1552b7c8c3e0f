//! The step, and the thread that makes it.

use crate::census::{Census, ExpertCensus};
use crate::device::{self, Home, Watched, allocate};
use crate::dummy::{self, Dummy};
use crate::error::StartError;
use crate::experts::{Asked, Away, Experts};
use crate::handle::{Facts, Handle, Submission};
use crate::kv::Pages;
use crate::load::{Built, Peak, PeakMeter, Placed, Shelf, Stock, Unwatched, Watch};
use crate::network::Network;
use crate::options::{Activations, CacheUse, DeviceKind, Options};
use crate::plan::{Plan, pages_hold_everything};
use crate::preflight::Preflight;
use crate::runner::{HostMemory, Runner};
use crate::sample::Known;
use crate::scheduler::{Batch, Limits, Scheduler};
use crate::sequence::Sequence;
use half::bf16;
use krasis_checkpoint::{Checkpoint, compressed_tensors};
use krasis_core::{Bytes, Layout};
use krasis_cpu::{Arena, Team};
use krasis_machine::Need;
use krasis_model::{Config, Ffn, Model, Source, describe};
use krasis_ops::{Cpu, Memory, Ops};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
    match &options.trace {
        None => launch(Engine::load_described(stock, source, options, home, watch)?),
        Some(spans) => {
            let home = Watched { home, spans: spans.clone() };
            launch(Engine::load_described(stock, source, options, home, watch)?)
        }
    }
}

/// What the checkpoint in `dir` would take of the host; nothing is allocated.
pub fn estimate(dir: &Path, options: &Options) -> Result<Need, StartError> {
    let (ck, source) = describe_checkpoint(dir)?;
    Ok(Plan::new(&source, &ck, options, &device::cpu(options))?.need)
}

/// What random weights in the shapes of a `config.json` would take.
pub fn estimate_dummy(config: &Config, options: &Options) -> Result<Need, StartError> {
    let source = describe(config, |_| false)?;
    Ok(Plan::new(&source, &Dummy, options, &device::cpu(options))?.need)
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
    pub regions: Vec<(&'static str, Bytes)>,
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
        let plan = Plan::new(source, stock, options, &home)?;
        let shelf = match options.cache {
            CacheUse::Off => None,
            _ => stock.shelf(&plan.placed, options)?,
        };
        Engine::fill(stock, source, plan, shelf.as_ref(), options, home, watch)
    }

    fn fill(
        stock: &impl Stock,
        source: &Model<Source>,
        plan: Plan,
        shelf: Option<&Shelf>,
        options: &Options,
        home: impl Home<Device = D>,
        watch: &dyn Watch,
    ) -> Result<Loaded<D>, StartError> {
        for (region, bytes) in &plan.regions {
            tracing::info!(%region, %bytes, "planned");
        }
        let (placed, team) = (&plan.placed, Team::new(options.threads));
        let find = |cache| match shelf {
            Some(shelf) => shelf.find(cache, placed, stock, &team, watch),
            None => Ok(None),
        };
        let mut cache = find(options.cache)?;
        let preflight = home.preflight().cloned();
        let held = preflight.as_ref().map(|preflight| preflight.look(&plan.need));
        let mut device = home.build(&plan.layout)?;
        let mut host = match &plan.away {
            Some(_) => {
                let arena = allocate(&plan.host, &options.machine_root)?;
                Some(Preflight::new(options).place(arena))
            }
            None => None,
        };
        let mut fill = |cache: Option<&Built>| {
            let file = cache.map(|cache| &cache.file);
            placed.fill(&mut device, host.as_mut(), stock, file, &team, watch)
        };
        let (mut start, mut meter) = (Instant::now(), PeakMeter::start());
        let mut model = fill(cache.as_ref());
        // A cache is found damaged as it is read: another one, and if that is damaged too, none.
        for again in [CacheUse::Rebuild, CacheUse::Off] {
            let Err(StartError::Cache(error)) = &model else { break };
            tracing::warn!("{error}");
            cache = find(again)?;
            (start, meter) = (Instant::now(), PeakMeter::start());
            model = fill(cache.as_ref());
        }
        let model = model?;
        let loading = Loading {
            bytes: placed.bytes(),
            cached: cache.as_ref().map_or(Bytes(0), |cache| cache.file.contents().bytes()),
            time: start.elapsed(),
            peak: meter.stop(placed.fill_peak(stock, cache.is_some())?),
        };
        loading.log();
        // Looking at routes costs nothing where they lie in host memory, or have to come there.
        let looks = preflight.is_some() || plan.away.is_some();
        if let (Some(preflight), Some(held)) = (preflight, held) {
            preflight.compare(held, plan.need.weights);
        }
        let away = plan.away.as_ref();
        let counted =
            placed.banks.iter().filter(|_| looks).map(|bank| bank.map_or(0, |bank| bank.experts));
        let counts = ExpertCensus::new(
            away.map(|away| (away.prefill, away.decode)),
            away.map_or(0, |away| away.pool.experts),
            counted,
        );
        Ok(Engine::assemble(device, host, model, source, plan, counts, loading, options))
    }

    fn assemble(
        mut device: D,
        host: Option<Arena>,
        model: Model<krasis_core::Weight>,
        source: &Model<Source>,
        plan: Plan,
        counts: ExpertCensus,
        loading: Loading,
        options: &Options,
    ) -> Loaded<D> {
        let facts = Facts { vocab: model.vocab, context_max: plan.context_max };
        let (handle, submissions) = Handle::new(facts, options.queue_max);
        let pages = Pages::new(plan.cache.pages, plan.cache.page, pages_hold_everything(source));
        let limits = Limits {
            places: plan.cache.places,
            pages_max: plan.step.pages_max(),
            pass_tokens: plan.pass_tokens,
            context_max: plan.context_max,
        };
        let scheduler = Scheduler::new(pages, limits, handle.census.clone());
        let seeds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
        let decode_bytes = plan.placed.decode_bytes();
        let banks = plan.placed.banks;
        let counts = Arc::new(counts);
        let _ = handle.census.experts.set(counts.clone());
        let experts = match (plan.away, host) {
            (Some(plan), Some(arena)) => {
                let host = Cpu::new(arena, Team::new(options.threads));
                let mut away = Away::new(plan, host, banks, counts);
                away.warm_up(&mut device);
                Experts::Away(Box::new(away))
            }
            _ => {
                let pairs = plan.rows_max * top_k(&model);
                let asked = counts.asked().is_some().then(|| Asked::new(counts.clone(), pairs));
                Experts::Device(banks, asked)
            }
        };
        let network = Network { model, caches: plan.caches, buffers: plan.buffers };
        let runner = Runner {
            device,
            network,
            experts,
            step: plan.step,
            rows_max: plan.rows_max,
            host: HostMemory::default(),
        };
        let fault = options.fault_at_step;
        let census = handle.census.clone();
        let engine = Engine { scheduler, runner, batch: Batch::default(), seeds, census, fault };
        Loaded { engine, handle, submissions, regions: plan.regions, decode_bytes, loading }
    }

    /// Works until all handles are gone and all requests are answered.
    pub fn serve(&mut self, submissions: &Receiver<Submission>) {
        let mut open = true;
        while open || self.scheduler.is_busy() {
            open = open && self.listen(submissions);
            self.step();
        }
    }

    /// One forward pass over whatever is due.
    pub fn step(&mut self) {
        let (scheduler, batch) = (&mut self.scheduler, &mut self.batch);
        if !scheduler.next_batch(batch) {
            scheduler.count();
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
            experts.moved(self.runner.experts.traffic());
        }
        scheduler.commit(batch);
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
            } else {
                match submissions.recv() {
                    Ok(submission) => submission,
                    Err(_) => return false,
                }
            };
            self.census.queued.fetch_sub(1, Ordering::Relaxed);
            self.seeds = self.seeds.wrapping_add(1);
            self.scheduler.add(Sequence::new(submission, self.seeds));
            self.scheduler.admit();
        }
        true
    }
}

/// Experts per token, at most.
fn top_k(model: &Model<krasis_core::Weight>) -> u32 {
    let of = |layer: &krasis_model::Layer<_>| match &layer.ffn {
        Ffn::Moe(moe) => moe.routing.top_k,
        Ffn::Dense(_) => 0,
    };
    model.layers.iter().map(of).max().unwrap_or(0)
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
