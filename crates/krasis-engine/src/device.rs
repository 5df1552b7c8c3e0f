//! Devices as the engine opens them: how much memory there is, and how a plan becomes a device.

use crate::error::StartError;
use crate::options::Options;
use crate::preflight::Preflight;
use krasis_core::{Bytes, KvDtype, Layout};
use krasis_cpu::{Arena, OutOfMemory, Team};
use krasis_cuda::gpu::Checking;
use krasis_cuda::{Activation, Cuda, Gpu, WORKSPACE_BYTES, driver};
use krasis_machine::Machine;
use krasis_ops::{Cpu, Memory, Ops, Reference, Span, Traced};
use std::path::Path;
use std::sync::mpsc::Sender;

/// Where a plan is carried out.
pub trait Home {
    /// What works there.
    type Device: Ops + Memory + Send + 'static;
    /// Memory that a plan may take.
    fn available(&self) -> Bytes;
    /// What judges plans there and looks at what becomes of them, where it is the host's memory.
    fn preflight(&self) -> Option<&Preflight> {
        None
    }
    /// The device, with memory for a plan.
    fn build(self, plan: &Layout) -> Result<Self::Device, StartError>;
}

/// Host memory, under one of the devices that work on it.
pub struct Host<F> {
    preflight: Preflight,
    device: F,
}

impl<D: Ops + Memory + Send + 'static, F: FnOnce(Arena) -> D> Home for Host<F> {
    type Device = D;

    fn available(&self) -> Bytes {
        self.preflight.available().unwrap_or(Bytes(u64::MAX))
    }

    fn preflight(&self) -> Option<&Preflight> {
        Some(&self.preflight)
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
        remedy: "free memory or lower --context-max",
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

    fn available(&self) -> Bytes {
        self.home.available()
    }

    fn preflight(&self) -> Option<&Preflight> {
        self.home.preflight()
    }

    fn build(self, plan: &Layout) -> Result<Traced<H::Device>, StartError> {
        Ok(Traced::new(self.home.build(plan)?, self.spans))
    }
}

/// The CPU with as many threads as the user wants.
pub fn cpu(options: &Options) -> impl Home<Device = Cpu> {
    Host {
        preflight: Preflight::new(options),
        device: |arena| Cpu::new(arena, Team::new(options.threads)),
    }
}

/// The reference.
pub fn reference(options: &Options) -> impl Home<Device = Reference> + use<> {
    Host { preflight: Preflight::new(options), device: Reference::new }
}

/// A GPU whose kernels are ready.
struct Opened<A> {
    gpu: Gpu,
    free: Bytes,
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
    let cache = options.kernel_cache.as_deref();
    let found = driver::first()?;
    tracing::info!(gpu = %found.name, memory = %found.memory, "found");
    let mut gpu = Gpu::open::<A>(found, cache, threads, Checking::Reads)?;
    gpu.limit_starts(options.kernel_starts);
    let free = gpu.free()?;
    Ok(Opened::<A> { gpu, free, activation: std::marker::PhantomData })
}

impl<A: Activation> Home for Opened<A> {
    type Device = Cuda<A, Gpu>;

    fn available(&self) -> Bytes {
        Bytes(self.free.0.saturating_sub(WORKSPACE_BYTES.0))
    }

    fn build(mut self, plan: &Layout) -> Result<Cuda<A, Gpu>, StartError> {
        self.gpu.allocate(Cuda::<A, Gpu>::arena_bytes(plan))?;
        Ok(Cuda::new(plan, self.gpu))
    }
}
