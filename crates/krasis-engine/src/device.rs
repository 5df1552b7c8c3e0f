//! Devices as the engine opens them: how much memory there is, and how a plan becomes a device.

use crate::error::StartError;
use crate::options::{Activations, DeviceKind, Options, Residency};
use crate::planner::{Card, Host, Site};
use crate::preflight::Preflight;
use crate::rehearsal::Rehearsal;
use half::bf16;
use krasis_core::{Bytes, KvDtype, Layout};
use krasis_cpu::{Arena, OutOfMemory, Team};
use krasis_cuda::gpu::Checking;
use krasis_cuda::programs::Build;
use krasis_cuda::{Activation, Cuda, Gpu, Noting, driver};
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
    /// Makes ready what the device needs for what will be asked of it.
    fn prepare(&mut self, _rehearsal: &Rehearsal<'_>) -> Result<(), StartError> {
        Ok(())
    }
    /// The device, with memory for a plan.
    fn build(self, plan: &Layout) -> Result<Self::Device, StartError>;
}

/// Host memory, under one of the devices that work on it.
pub struct InHost<F> {
    site: Site,
    preflight: Preflight,
    device: F,
}

impl<D: Ops + Memory + Send + 'static, F: FnOnce(Arena) -> D> Home for InHost<F> {
    type Device = D;

    fn site(&self) -> Site {
        self.site.clone()
    }

    fn build(self, plan: &Layout) -> Result<D, StartError> {
        let arena = allocate(plan, self.preflight.machine_root())?;
        Ok((self.device)(self.preflight.place(arena)))
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

    fn prepare(&mut self, rehearsal: &Rehearsal<'_>) -> Result<(), StartError> {
        self.home.prepare(rehearsal)
    }

    fn build(self, plan: &Layout) -> Result<Traced<H::Device>, StartError> {
        Ok(Traced::new(self.home.build(plan)?, self.spans))
    }
}

/// The CPU with as many threads as the user wants.
pub fn cpu(options: &Options) -> impl Home<Device = Cpu> {
    in_host(options, |arena| Cpu::new(arena, Team::new(options.threads)))
}

/// The reference.
pub fn reference(options: &Options) -> impl Home<Device = Reference> + use<> {
    in_host(options, Reference::new)
}

fn in_host<F>(options: &Options, device: F) -> InHost<F> {
    let host = Host::read(options);
    let preflight = Preflight::new(host.machine.clone(), options);
    InHost { site: Site { card: None, host }, preflight, device }
}

/// A GPU that has no kernels yet.
struct Opened<A> {
    gpu: Gpu,
    site: Site,
    /// Where kernels are kept, and how many threads compile others.
    cache: Option<PathBuf>,
    threads: usize,
    activation: std::marker::PhantomData<fn() -> A>,
}

/// The first GPU that is new enough.
pub fn gpu<A: Activation>(
    options: &Options,
) -> Result<impl Home<Device = Cuda<A, Gpu>> + use<A>, StartError> {
    if options.kv == Some(KvDtype::F16) {
        return Err(StartError::GpuKv);
    }
    let threads = options.threads.unwrap_or_else(krasis_cpu::affinity::threads);
    let cache = options.kernel_cache.clone();
    let found = driver::first()?;
    tracing::info!(gpu = %found.name, memory = %found.memory, "found");
    let mut gpu = Gpu::connect(found.clone(), Checking::Reads)?;
    gpu.limit_starts(options.kernel_starts);
    if let Some(spans) = &options.trace {
        gpu.watch(spans.clone())?;
    }
    // Speeds matter to nobody who has decided.
    let host = match options.residency {
        Residency::Device => Host::read(options),
        _ => Host::measured(options),
    };
    let site = Site { card: Some(Card::of(&found, gpu.free()?)), host };
    Ok(Opened::<A> { gpu, site, cache, threads, activation: std::marker::PhantomData })
}

impl<A: Activation> Home for Opened<A> {
    type Device = Cuda<A, Gpu>;

    fn site(&self) -> Site {
        self.site.clone()
    }

    fn prepare(&mut self, rehearsal: &Rehearsal<'_>) -> Result<(), StartError> {
        let mut listener =
            Cuda::<A, Noting>::new(rehearsal.layout(), Noting::new(self.gpu.limits()));
        rehearsal.on(&mut listener);
        let kernels = listener.into_machine().kernels;
        let wanted =
            |build: &Build| build.is_own() || kernels.iter().any(|kernel| build.makes(*kernel));
        Ok(self.gpu.compile::<A>(self.cache.as_deref(), self.threads, &wanted)?)
    }

    fn build(mut self, plan: &Layout) -> Result<Cuda<A, Gpu>, StartError> {
        let (planned, before) = (Cuda::<A, Gpu>::arena_bytes(plan), self.gpu.free()?);
        self.gpu.allocate(planned)?;
        // Others may come and go at the same time.
        let taken = Bytes(before.0.saturating_sub(self.gpu.free()?.0));
        let percent = 100.0 * (taken.0 as f64 / planned.0.max(1) as f64 - 1.0);
        tracing::info!(%planned, %taken, difference = format!("{percent:+.1} %"), "GPU memory is allocated");
        Ok(Cuda::new(plan, self.gpu))
    }
}

/// The machine with the GPU that models run on where nobody names a device, or why there is none.
/// Nothing is measured and no kernel is loaded.
pub fn with_gpu(options: &Options) -> Result<Site, StartError> {
    let (found, free) = driver::usable()?;
    Ok(Site { card: Some(Card::of(&found, free)), host: Host::read(options) })
}

/// The machine that this runs on, as a model with these options would find it: its GPU is opened, and
/// what is not known is measured.
pub fn site(options: &Options) -> Result<Site, StartError> {
    match options.device {
        DeviceKind::Cpu | DeviceKind::Reference => {
            Ok(Site { card: None, host: Host::measured(options) })
        }
        DeviceKind::Cuda(Activations::Bf16) => Ok(gpu::<bf16>(options)?.site()),
        DeviceKind::Cuda(Activations::F32) => Ok(gpu::<f32>(options)?.site()),
    }
}
