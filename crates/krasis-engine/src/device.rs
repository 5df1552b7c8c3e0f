//! Devices as the engine opens them: how much memory there is, and how a plan becomes a device.

use crate::error::StartError;
use crate::options::{Activations, DeviceKind, Options, Residency, Shared};
use crate::planner::{Card, Host, Site};
use crate::preflight::{Preflight, team};
use crate::rehearsal::Rehearsal;
use half::bf16;
use krasis_core::{Bytes, KvDtype, Layout};
use krasis_cpu::{Arena, OutOfMemory};
use krasis_cuda::driver::{self, Found};
use krasis_cuda::gpu::Checking;
use krasis_cuda::programs::Build;
use krasis_cuda::{Activation, Cuda, Gpu, Noting};
use krasis_machine::Machine;
use krasis_ops::{Cpu, Memory, Ops, Reference, Span, Traced};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

/// Where a plan is carried out.
pub trait Home {
    /// What works there.
    type Device: Ops + Memory + Send + 'static;
    /// The machine, and what of it a plan may take.
    fn site(&self) -> Site;
    /// Makes ready what the devices need for what will be asked of them.
    fn prepare(&mut self, _rehearsals: &[Rehearsal<'_>]) -> Result<(), StartError> {
        Ok(())
    }
    /// The devices, each with memory for one of the plans.
    fn build(self, plans: &[&Layout]) -> Result<Vec<Self::Device>, StartError>;
}

/// Host memory, under one of the devices that work on it.
pub struct InHost<F> {
    site: Site,
    preflight: Preflight,
    device: F,
}

impl<D: Ops + Memory + Send + 'static, F: Fn(Arena) -> D> Home for InHost<F> {
    type Device = D;

    fn site(&self) -> Site {
        self.site.clone()
    }

    fn build(self, plans: &[&Layout]) -> Result<Vec<D>, StartError> {
        let device = |plan: &&Layout| {
            let arena = allocate(plan, self.preflight.machine_root())?;
            Ok((self.device)(self.preflight.place(arena)))
        };
        plans.iter().map(device).collect()
    }
}

/// Host memory for a plan, on the machine whose files lie below a folder.
pub(crate) fn allocate(plan: &Layout, machine_root: &Path) -> Result<Arena, StartError> {
    Arena::new(plan).map_err(|OutOfMemory { wanted }| StartError::Shortfall {
        region: "the plan",
        wanted,
        available: Machine::read(machine_root).available().unwrap_or_default(),
        remedy: "free memory or lower --context-max".into(),
    })
}

/// Any of the places, with a watch on what works there.
pub struct Watched<H> {
    /// The place.
    pub home: H,
    /// Who wants to know how long each operation takes.
    pub spans: Sender<Span>,
}

impl<H: Home> Home for Watched<H> {
    type Device = Traced<H::Device>;

    fn site(&self) -> Site {
        self.home.site()
    }

    fn prepare(&mut self, rehearsals: &[Rehearsal<'_>]) -> Result<(), StartError> {
        self.home.prepare(rehearsals)
    }

    fn build(self, plans: &[&Layout]) -> Result<Vec<Traced<H::Device>>, StartError> {
        let devices = self.home.build(plans)?.into_iter();
        Ok(devices.map(|device| Traced::new(device, self.spans.clone())).collect())
    }
}

/// The CPU with as many threads as the user wants.
pub fn cpu(options: &Options) -> impl Home<Device = Cpu> {
    in_host(options, |arena| Cpu::new(arena, team(options)))
}

/// The reference.
pub fn reference(options: &Options) -> impl Home<Device = Reference> + use<> {
    in_host(options, Reference::new)
}

fn in_host<F>(options: &Options, device: F) -> InHost<F> {
    let host = Host::read(options);
    let preflight = Preflight::new(host.machine.clone(), options);
    InHost { site: Site { card: None, others: Vec::new(), host }, preflight, device }
}

/// GPUs that have no kernels yet.
struct Opened<A> {
    gpus: Vec<Gpu>,
    shared: Shared,
    site: Site,
    /// Where kernels are kept, and how many threads compile others.
    cache: Option<PathBuf>,
    threads: usize,
    activation: std::marker::PhantomData<fn() -> A>,
}

/// As many GPUs as are wanted, or all that there are: those that were named, or the first that are new
/// enough.
pub fn gpus<A: Activation>(
    options: &Options,
) -> Result<impl Home<Device = Cuda<A, Gpu>> + use<A>, StartError> {
    if options.kv == Some(KvDtype::F16) {
        return Err(StartError::GpuKv);
    }
    let threads = options.threads.unwrap_or_else(krasis_cpu::affinity::threads);
    let cache = options.kernel_cache.clone();
    let chosen = driver::choose(&options.ranks.gpus, options.ranks.wanted())?;
    let (mut gpus, mut cards) = (Vec::new(), Vec::new());
    for found in &chosen {
        let Found { ordinal, name, memory, .. } = found;
        tracing::info!(gpu = %name, ordinal, %memory, "found");
        let connected = Gpu::connect(found.clone(), Checking::Reads);
        let mut gpu = connected.map_err(|error| error.of_gpu(*ordinal))?;
        gpu.limit_starts(options.kernel_starts);
        gpu.limit_links(options.gpu_links);
        if let Some(spans) = &options.trace {
            gpu.watch(spans.clone())?;
        }
        cards.push(card_of(found, gpu.free()?, &chosen));
        gpus.push(gpu);
    }
    // Speeds matter to nobody who has decided.
    let host = match options.residency {
        Residency::Device => Host::read(options),
        _ => Host::measured(options),
    };
    let others = cards.split_off(1);
    let site = Site { card: cards.pop(), others, host };
    let (shared, activation) = (options.ranks.shared, std::marker::PhantomData);
    Ok(Opened::<A> { gpus, shared, site, cache, threads, activation })
}

impl<A: Activation> Home for Opened<A> {
    type Device = Cuda<A, Gpu>;

    fn site(&self) -> Site {
        self.site.clone()
    }

    fn prepare(&mut self, rehearsals: &[Rehearsal<'_>]) -> Result<(), StartError> {
        let mut kernels = std::collections::HashSet::new();
        for rehearsal in rehearsals {
            let machine = Noting::new(self.gpus[0].limits());
            let mut listener = Cuda::<A, Noting>::new(rehearsal.layout(), machine);
            rehearsal.on(&mut listener);
            kernels.extend(listener.into_machine().kernels);
        }
        let wanted =
            |build: &Build| build.is_own() || kernels.iter().any(|kernel| build.makes(*kernel));
        for gpu in &mut self.gpus {
            gpu.compile::<A>(self.cache.as_deref(), self.threads, &wanted)?;
        }
        Ok(())
    }

    fn build(mut self, plans: &[&Layout]) -> Result<Vec<Cuda<A, Gpu>>, StartError> {
        for (gpu, plan) in self.gpus.iter_mut().zip(plans) {
            let (planned, before) = (Cuda::<A, Gpu>::arena_bytes(plan), gpu.free()?);
            gpu.allocate(planned)?;
            // Others may come and go at the same time.
            let taken = Bytes(before.0.saturating_sub(gpu.free()?.0));
            let percent = 100.0 * (taken.0 as f64 / planned.0.max(1) as f64 - 1.0);
            tracing::info!(%planned, %taken, difference = format!("{percent:+.1} %"), "GPU memory is allocated");
        }
        self.gpus.truncate(plans.len());
        for number in 1..self.gpus.len() {
            let (before, after) = self.gpus.split_at_mut(number);
            match self.shared {
                Shared::Layers => before[number - 1].meet(&after[0])?,
                Shared::Experts => {
                    before[0].meet(&after[0])?;
                    after[0].meet(&before[0])?;
                }
            }
        }
        let gpus = self.gpus.into_iter().zip(plans);
        Ok(gpus.map(|(gpu, plan)| Cuda::new(plan, gpu)).collect())
    }
}

/// A GPU of those that were chosen. One that was named twice has two halves.
fn card_of(found: &Found, free: Bytes, chosen: &[Found]) -> Card {
    let times = chosen.iter().filter(|other| other.ordinal == found.ordinal).count();
    Card::of(found, Bytes(free.0 / times as u64))
}

/// The machine with the GPUs that models run on where nobody names a device, or why there is none.
/// Nothing is measured and no kernel is loaded.
pub fn with_gpu(options: &Options) -> Result<Site, StartError> {
    let usable = driver::usable(&options.ranks.gpus, options.ranks.wanted())?;
    let (chosen, free): (Vec<Found>, Vec<Bytes>) = usable.into_iter().unzip();
    let cards = chosen.iter().zip(free).map(|(found, free)| card_of(found, free, &chosen));
    let mut others: Vec<Card> = cards.collect();
    let card = Some(others.remove(0));
    Ok(Site { card, others, host: Host::read(options) })
}

/// The machine that this runs on, as a model with these options would find it: its GPUs are opened, and
/// what is not known is measured.
pub fn site(options: &Options) -> Result<Site, StartError> {
    match options.device {
        DeviceKind::Cpu | DeviceKind::Reference => {
            Ok(Site { card: None, others: Vec::new(), host: Host::measured(options) })
        }
        DeviceKind::Cuda(Activations::Bf16) => Ok(gpus::<bf16>(options)?.site()),
        DeviceKind::Cuda(Activations::F32) => Ok(gpus::<f32>(options)?.site()),
    }
}
