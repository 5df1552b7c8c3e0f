//! What the user may choose. Flags, and later a config file, the launcher and Python, fill this in.

use crate::experts::{DecodeStrategy, HeatMap, PrefillStrategy};
use crate::kv::PrefixOptions;
use crate::outlook::Outlook;
use krasis_core::{Bytes, KvDtype};
use krasis_cpu::Kernel;
use krasis_cpu::nodes::System;
use krasis_cuda::gpu::Starts;
use krasis_cuda::peer::Direct;
use krasis_machine::Numa;
use krasis_ops::Span;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Vector loops on all cores.
    Cpu,
    /// An NVIDIA GPU.
    Cuda(Activations),
    /// The plain loops that other devices are compared with: slow.
    Reference,
}

impl DeviceKind {
    /// Bytes of an activation.
    pub const fn act_bytes(self) -> u32 {
        match self {
            DeviceKind::Cuda(Activations::Bf16) => 2,
            DeviceKind::Cuda(Activations::F32) | DeviceKind::Cpu | DeviceKind::Reference => 4,
        }
    }
}

/// The type of activations on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// What models are made for.
    Bf16,
    /// For comparing with the CPU: a few times slower.
    F32,
}

/// How weights outside the routed experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// In the checkpoint's own type.
    AsStored,
    /// INT8 weights in lines: the CPU rounds what they meet to INT8, per 128 inputs.
    Int8,
    /// INT4 weights in lines, the same way.
    Int4,
}

/// How the routed experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertBits {
    /// INT4 with a scale per group; packed INT4 checkpoints keep their own groups.
    Int4,
    /// INT8 with a scale per group.
    Int8,
    /// In the checkpoint's own type.
    AsStored,
}

/// What becomes of weights once they are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheUse {
    /// They are kept in a file, and read from there at the next start.
    Auto,
    /// They are quantised again, and kept.
    Rebuild,
    /// They are quantised at every start.
    Off,
}

/// Where routed experts lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// On the device, or if they do not fit into its own memory, in the host's.
    Auto,
    /// All on the device.
    Device,
    /// In host memory, some of them on the device as well.
    Host {
        /// How prompts meet them.
        prefill: PrefillStrategy,
        /// Who computes them for few rows.
        decode: DecodeStrategy,
    },
}

/// How the engine's thread fails, in the forward pass of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It panics, as it does where something is wrong with the program.
    Panic(u64),
    /// Its GPU is lost.
    Lose(u64),
    /// It never comes back, as from a device that hangs.
    Hang(u64),
}

/// What several devices share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shared {
    /// Layers: each has some of them, one part behind the other.
    #[default]
    Layers,
    /// The experts that a prompt has brought: all layers are the first one's, and each device brings and
    /// computes its part of a layer's experts.
    Experts,
}

/// The devices that a model runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranks {
    /// How many; without a wish as many as the others name, or one.
    pub count: Option<usize>,
    /// GPUs by their numbers; if none is named, the first that are new enough.
    pub gpus: Vec<i32>,
    /// Layers of each; without a wish, as memory allows.
    pub partition: Vec<u32>,
    /// What they share.
    pub shared: Shared,
}

impl Ranks {
    /// How many are wanted, by whichever wish there is.
    pub fn wanted(&self) -> usize {
        let named = [self.partition.len(), self.gpus.len()].into_iter().find(|&len| len > 0);
        named.or(self.count).unwrap_or(1).max(1)
    }

    /// Devices that have no layers, but a part in prompts.
    pub fn helpers(&self) -> u32 {
        match self.shared {
            Shared::Layers => 0,
            Shared::Experts => self.wanted() as u32 - 1,
        }
    }

    /// Whether no two wishes differ.
    pub fn agree(&self) -> bool {
        let named = [self.partition.len(), self.gpus.len()].into_iter().filter(|&len| len > 0);
        named.chain(self.count).all(|count| count == self.wanted())
    }
}

/// Everything that can be chosen about a running model.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it runs.
    pub device: DeviceKind,
    /// On how many of those.
    pub ranks: Ranks,
    /// Routed experts.
    pub expert_bits: ExpertBits,
    /// Where they lie.
    pub residency: Residency,
    /// Memory of the device that may be used; without a wish, what is free.
    pub device_bytes: Option<Bytes>,
    /// Host memory that may be used; without a wish, what is available.
    pub ram: Option<Bytes>,
    /// The part of the memory there is that may be used, from 0.1 to 0.95; without a wish, all.
    pub memory_fraction: Option<f64>,
    /// GPU memory that is left alone, for what the driver takes by itself.
    pub headroom: Bytes,
    /// Rows from which a pass is a prompt's: its experts are brought to the device. Without a wish, as
    /// many as make that faster.
    pub prompt_rows: Option<u32>,
    /// Prompt tokens of a pass that takes its layers in groups: experts are brought once for each.
    pub pass_tokens: u32,
    /// How often experts were asked for in other runs, if that is known: those are hot from the start.
    pub heat_map: Option<Arc<HeatMap>>,
    /// What speed is held against while it runs.
    pub outlook: Outlook,
    /// Inputs that share a scale in quantised weights: 32, 64 or 128.
    pub group: u32,
    /// Projections of attention and delta nets.
    pub attention: Quant,
    /// Shared experts.
    pub shared_expert: Quant,
    /// MLPs of dense layers.
    pub dense_mlp: Quant,
    /// Output matrix.
    pub lm_head: Quant,
    /// Whether quantised weights are kept.
    pub cache: CacheUse,
    /// Where they are kept if the model's folder cannot be written.
    pub cache_home: Option<PathBuf>,
    /// Element type of the KV cache; without a wish, that of the device's activations.
    pub kv: Option<KvDtype>,
    /// Threads of the CPU device; without a wish, all that this process may use.
    pub threads: Option<usize>,
    /// What is done about several NUMA nodes.
    pub numa: Numa,
    /// Below which folder the machine's `/proc` and `/sys` lie: `/`, or a test's.
    pub machine_root: PathBuf,
    /// Who is asked about pages of memory: this machine's kernel, or a test's.
    pub kernel: Arc<dyn Kernel>,
    /// Tokens that a sequence may hold; without a wish, what model and memory allow.
    pub context_max: Option<u32>,
    /// KV pages of 16 tokens for all sequences; without a wish, what memory allows.
    pub kv_pages: Option<u32>,
    /// What is kept of prompts and answers.
    pub prefix: PrefixOptions,
    /// Prompt tokens per step: smaller steps let other sequences speak sooner.
    pub prefill_chunk: u32,
    /// Sequences that run at a time.
    pub sequences_max: u32,
    /// Requests that may wait.
    pub queue_max: usize,
    /// Who wants to know how long each operation takes, or each kernel of a GPU.
    pub trace: Option<Sender<Span>>,
    /// Folder of compiled GPU kernels; without one they are compiled for every start.
    pub kernel_cache: Option<PathBuf>,
    /// How the engine's thread fails: for tests of what happens then.
    pub fault: Option<Fault>,
    /// When GPU kernels may begin, at the earliest.
    pub kernel_starts: Starts,
    /// Whether GPUs may copy to each other.
    pub gpu_links: Direct,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            device: DeviceKind::Cpu,
            ranks: Ranks::default(),
            expert_bits: ExpertBits::AsStored,
            residency: Residency::Auto,
            device_bytes: None,
            ram: None,
            memory_fraction: None,
            headroom: Bytes(512 << 20),
            prompt_rows: None,
            pass_tokens: 32_768,
            heat_map: None,
            outlook: Outlook::Nothing,
            group: 128,
            attention: Quant::AsStored,
            shared_expert: Quant::AsStored,
            dense_mlp: Quant::AsStored,
            lm_head: Quant::AsStored,
            cache: CacheUse::Auto,
            cache_home: None,
            kv: None,
            threads: None,
            numa: Numa::Auto,
            machine_root: PathBuf::from("/"),
            kernel: Arc::new(System),
            context_max: None,
            kv_pages: None,
            prefix: PrefixOptions::default(),
            prefill_chunk: 512,
            sequences_max: 8,
            queue_max: 64,
            trace: None,
            kernel_cache: None,
            fault: None,
            kernel_starts: Starts::Early,
            gpu_links: Direct::IfRight,
        }
    }
}
