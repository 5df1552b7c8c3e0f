//! The step, and the thread that makes it.

use crate::census::{Census, ExpertCensus};
use crate::device::{self, Home, Watched, allocate};
use crate::dummy::{self, Dummy};
use crate::error::StartError;
use crate::experts::{Asked, Away, AwayPlan, Experts};
use crate::handle::{Facts, Handle, Submission};
use crate::kv::{Disk, Kind, Listed, OnDevice, Prefixes, Shape, Signature};
use crate::load::{Built, Peak, PeakMeter, Placed, Shelf, Stock, Unwatched, Watch};
use crate::network::Network;
use crate::options::{Activations, CacheUse, DeviceKind, Options};
use crate::outlook::{Lookout, Outlook, Verdict};
use crate::plan::Plan;
use crate::planner::{Candidate, Draft, Forecast, Host, Proposal, Site};
use crate::preflight::Preflight;
use crate::runner::{HostMemory, Runner};
use crate::sample::Known;
use crate::scheduler::{Batch, Limits, Scheduler};
use crate::sequence::Sequence;
use half::bf16;
use krasis_checkpoint::{Checkpoint, compressed_tensors};
use krasis_core::{Bytes, Layout};
use krasis_cpu::{Arena, Team};
use krasis_model::{Config, Ffn, Model, Source, describe};
use krasis_ops::{Cpu, Memory, Ops};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
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
    /// What speed is held against, if anybody looks.
    lookout: Option<Lookout>,
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
        let plan = Plan::new(source, stock, options, D::ACT_BYTES, &home.site())?;
        let shelf = match options.cache {
            CacheUse::Off => None,
            _ => stock.shelf(&plan.placed, options)?,
        };
        let mut site = home.site();
        if options.outlook == Outlook::Foretold && site.card.is_none() {
            // What the memory of this very machine can do is known only when it is measured.
            site.host = Host::measured(options);
        }
        let lookout = Lookout::new(
            &options.outlook,
            &Forecast::new(source, &plan, &site),
            plan.away.as_ref().map(|away| away.decode),
            plan.pass_tokens,
        );
        let mut loaded = Engine::fill(stock, plan, shelf.as_ref(), options, home, watch)?;
        loaded.engine.lookout = lookout;
        Ok(loaded)
    }

    fn fill(
        stock: &impl Stock,
        plan: Plan,
        shelf: Option<&Shelf>,
        options: &Options,
        home: impl Home<Device = D>,
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
            Some(shelf) => shelf.find(cache, placed, stock, &team, watch),
            None => Ok(None),
        };
        let mut cache = find(options.cache)?;
        let site = home.site();
        // Looking at routes costs nothing where they lie in host memory, or have to come there.
        let looks = site.card.is_none() || plan.away.is_some();
        let preflight = Preflight::new(site.host.machine, options);
        let held = preflight.look(&plan.need);
        let mut device = home.build(&plan.layout)?;
        let mut host = match &plan.away {
            Some(_) => {
                let arena = allocate(&plan.host, &options.machine_root)?;
                Some(preflight.place(arena))
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
        preflight.compare(held, plan.need.weights);
        let away = plan.away.as_ref();
        let counted =
            placed.banks.iter().filter(|_| looks).map(|bank| bank.map_or(0, |bank| bank.experts));
        let counts = ExpertCensus::new(
            away.map(|away| (away.prefill, away.decode, away.threshold)),
            away.map_or(0, |away| away.pool.experts),
            counted,
        );
        Ok(Engine::assemble(device, host, model, stock, plan, counts, loading, options))
    }

    fn assemble(
        mut device: D,
        host: Option<Arena>,
        model: Model<krasis_core::Weight>,
        stock: &impl Stock,
        plan: Plan,
        counts: ExpertCensus,
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
            cut_worth: if plan.away.is_some() { CUT_WORTH_AWAY } else { CUT_WORTH },
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
        let counts = Arc::new(counts);
        let _ = handle.census.experts.set(counts.clone());
        let experts = match (plan.away, host) {
            (Some(plan), Some(arena)) => {
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
        let engine = Engine {
            scheduler,
            runner,
            batch: Batch::default(),
            seeds,
            census,
            fault,
            lookout: None,
        };
        let regions = [plan.regions, plan.host_regions].concat();
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
            experts.moved(self.runner.experts.traffic());
        }
        let taken = start.elapsed();
        scheduler.computed(batch, taken);
        let verdict = self.lookout.as_mut().and_then(|of| compare(of, batch, taken));
        scheduler.commit(&mut past(&mut self.runner), batch);
        scheduler.count();
        if let Some(verdict) = verdict {
            self.tell(verdict);
        }
    }

    /// Says that it is slower than was expected, and wishes for what is known to be faster.
    fn tell(&self, Verdict { sentence, wish }: Verdict) {
        tracing::warn!("{sentence}");
        if let Ok(mut remarks) = self.census.remarks.lock() {
            remarks.push(sentence);
        }
        if let (Some(experts), Some(known)) = (self.census.experts.get(), wish) {
            experts.wish(known.decode, known.threshold);
        }
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
            self.heed_wishes();
            self.census.queued.fetch_sub(1, Ordering::Relaxed);
            self.seeds = self.seeds.wrapping_add(1);
            self.scheduler.add(Sequence::new(submission, self.seeds));
            self.scheduler.admit(&mut past(&mut self.runner));
        }
        true
    }

    /// Changes what was wished to be changed, if nobody is being answered.
    fn heed_wishes(&mut self) {
        let Some(experts) = self.census.experts.get().filter(|_| !self.scheduler.is_busy()) else {
            return;
        };
        if let Some((decode, threshold)) = experts.take_wish()
            && self.runner.experts.switch(decode, threshold)
        {
            tracing::info!(%decode, threshold, "goes on");
            experts.switched(decode, threshold);
            if let Some(lookout) = &mut self.lookout {
                lookout.switched(decode);
            }
        }
    }
}

/// Holds a step against what was expected, if that is about such steps.
fn compare(lookout: &mut Lookout, batch: &Batch, taken: Duration) -> Option<Verdict> {
    let of_one = batch.input.state.len() == 1;
    match &batch.input.positions[..] {
        [past] if !batch.reads() => lookout.wrote(*past, taken),
        all @ [0, ..] if of_one && batch.reads() => lookout.read(all.len() as u32, taken),
        _ => None,
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

/// What its sequences remember.
fn past<D>(runner: &mut Runner<D>) -> OnDevice<'_, D> {
    OnDevice { device: &mut runner.device, caches: &runner.network.caches }
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
