//! The step, and the thread that makes it.

use crate::dummy::Dummy;
use crate::error::StartError;
use crate::handle::{Facts, Handle, Submission};
use crate::kv::Pages;
use crate::load::Stock;
use crate::options::{DeviceKind, Options};
use crate::plan::{Plan, pages_hold_everything};
use crate::preflight::Preflight;
use crate::runner::Runner;
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use krasis_checkpoint::{Checkpoint, compressed_tensors};
use krasis_core::{Bytes, Layout};
use krasis_cpu::{Arena, OutOfMemory, Team};
use krasis_machine::{Machine, Need};
use krasis_model::{Config, Model, Source, describe};
use krasis_ops::{Cpu, Memory, Ops, Reference};
use std::path::Path;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{SystemTime, UNIX_EPOCH};

/// A model in service. It stops when the last [`Handle`] is dropped.
pub struct Running {
    /// The door.
    pub handle: Handle,
    /// What was allocated, for people.
    pub regions: Vec<(&'static str, Bytes)>,
    /// Bytes of weights that a decoded token reads.
    pub decode_bytes: Bytes,
}

/// Loads the checkpoint in `dir` and starts its thread.
pub fn start(dir: &Path, options: &Options) -> Result<Running, StartError> {
    match options.device {
        DeviceKind::Cpu => {
            let device = |arena| Cpu::new(arena, Team::new(options.threads));
            launch(Engine::load(dir, options, device)?)
        }
        DeviceKind::Reference => launch(Engine::load(dir, options, Reference::new)?),
    }
}

/// Starts a model of random weights in the shapes of a `config.json`: for measuring speed without
/// a checkpoint.
pub fn start_dummy(config: &Config, options: &Options) -> Result<Running, StartError> {
    let source = describe(config, |_| false)?;
    match options.device {
        DeviceKind::Cpu => {
            let device = |arena| Cpu::new(arena, Team::new(options.threads));
            launch(Engine::load_described(&Dummy, &source, options, device)?)
        }
        DeviceKind::Reference => {
            launch(Engine::load_described(&Dummy, &source, options, Reference::new)?)
        }
    }
}

/// What the checkpoint in `dir` would take; nothing is allocated.
pub fn estimate(dir: &Path, options: &Options) -> Result<Need, StartError> {
    let (ck, source) = open(dir)?;
    Ok(Plan::new(&source, &ck, options, Cpu::ACT_BYTES)?.need)
}

/// What random weights in the shapes of a `config.json` would take.
pub fn estimate_dummy(config: &Config, options: &Options) -> Result<Need, StartError> {
    let source = describe(config, |_| false)?;
    Ok(Plan::new(&source, &Dummy, options, Cpu::ACT_BYTES)?.need)
}

fn open(dir: &Path) -> Result<(Checkpoint, Model<Source>), StartError> {
    let ck = Checkpoint::open(dir)?;
    compressed_tensors::quantization(ck.config())?;
    let source = describe(ck.config(), |name| ck.contains(name))?;
    Ok((ck, source))
}

fn launch<D: Ops + Memory + Send + 'static>(loaded: Loaded<D>) -> Result<Running, StartError> {
    let Loaded { mut engine, handle, submissions, regions, decode_bytes } = loaded;
    std::thread::Builder::new()
        .name("krasis-engine".into())
        .spawn(move || engine.serve(&submissions))?;
    Ok(Running { handle, regions, decode_bytes })
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
}

/// One thread owns everything: there are no locks below.
pub struct Engine<D> {
    scheduler: Scheduler,
    /// The model on its device.
    pub runner: Runner<D>,
    /// Of requests that name no seed.
    seeds: u64,
}

impl<D: Ops + Memory> Engine<D> {
    /// Opens a checkpoint and loads the model that its config describes.
    pub fn load(
        dir: &Path,
        options: &Options,
        device: impl FnOnce(Arena) -> D,
    ) -> Result<Loaded<D>, StartError> {
        let (ck, source) = open(dir)?;
        Engine::load_described(&ck, &source, options, device)
    }

    /// Plans, allocates and fills a model from its description.
    pub fn load_described(
        stock: &impl Stock,
        source: &Model<Source>,
        options: &Options,
        device: impl FnOnce(Arena) -> D,
    ) -> Result<Loaded<D>, StartError> {
        let plan = Plan::new(source, stock, options, D::ACT_BYTES)?;
        for (region, bytes) in &plan.regions {
            tracing::info!(%region, %bytes, "planned");
        }
        let preflight = Preflight::look(&plan, options);
        let mut device = device(preflight.place(allocate(&plan.layout, options)?));
        let model = plan.placed.fill(&mut device, stock, &Team::new(options.threads))?;
        preflight.compare();
        Ok(Engine::assemble(device, model, source, plan, options))
    }

    fn assemble(
        device: D,
        model: Model<krasis_core::Weight>,
        source: &Model<Source>,
        plan: Plan,
        options: &Options,
    ) -> Loaded<D> {
        let facts = Facts { vocab: model.vocab, context_max: plan.context_max };
        let (handle, submissions) = Handle::new(facts, options.queue_max);
        let pages = Pages::new(plan.cache.pages, plan.cache.page, pages_hold_everything(source));
        let scheduler =
            Scheduler::new(pages, plan.cache.places, options.prefill_chunk, plan.context_max);
        let seeds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
        let decode_bytes = plan.placed.decode_bytes();
        let banks = plan.placed.banks;
        let runner = Runner {
            device,
            model,
            banks,
            caches: plan.caches,
            buffers: plan.buffers,
            step: plan.step,
        };
        let engine = Engine { scheduler, runner, seeds };
        Loaded { engine, handle, submissions, regions: plan.regions, decode_bytes }
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
        let Some(batch) = self.scheduler.next_batch() else { return };
        self.runner.forward(&batch.input);
        let scheduler = &mut self.scheduler;
        self.runner.logits(&batch.rows, |index, logits| scheduler.hear(&batch, index, logits));
        self.scheduler.commit(&batch);
    }

    /// Takes requests while there is room for them; with nothing to do, waits for one. False once
    /// there can be no more.
    fn listen(&mut self, submissions: &Receiver<Submission>) -> bool {
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
            self.seeds = self.seeds.wrapping_add(1);
            self.scheduler.add(Sequence::new(submission, self.seeds));
            self.scheduler.admit();
        }
        true
    }
}

fn allocate(layout: &Layout, options: &Options) -> Result<Arena, StartError> {
    Arena::new(layout).map_err(|OutOfMemory { wanted }| StartError::Shortfall {
        region: "the plan",
        wanted,
        available: Machine::read(&options.machine_root).available().unwrap_or_default(),
        remedy: "free memory or lower --context-max",
    })
}
