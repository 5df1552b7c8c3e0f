//! Flags that describe a model and how it runs, shared by all commands.

use crate::exit::Failure;
use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use krasis_core::{Bytes, KvDtype};
use krasis_engine::experts::of_divisor;
use krasis_engine::plan::PAGE;
use krasis_engine::{
    Activations, CacheUse, DecodeStrategy, DeviceKind, Direct, ExpertBits, Options,
    PrefillStrategy, PrefixDisk, PrefixOptions, Quant, Ranks, Residency, Reuse, Shared, Starts,
};
use krasis_machine::Numa;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Prompt tokens per step on a GPU unless told otherwise: Qwen3-30B-A3B reads 8,192 tokens at 37,400 a
/// second of an H200 with it, and at 15,800 in steps of 512.
const GPU_PREFILL_CHUNK: u32 = 8192;

/// Which model, where and how precisely.
#[derive(Args, Clone)]
pub struct ModelArguments {
    /// Folder of the model [default: the demo model]
    #[arg(long, value_name = "DIR")]
    pub model_path: Option<PathBuf>,
    /// GPUs to spread layers over [default: as many as are named by the next two, or 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=64))]
    num_gpus: Option<u32>,
    /// Which GPUs, as `krasis doctor` numbers them [default: the first]
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(i32).range(0..=1023))]
    selected_gpus: Vec<i32>,
    /// GPUs share the experts that prompts have brought, over a link each, in place of layers, which are
    /// all on the first
    #[arg(long, conflicts_with = "pp_partition")]
    expert_parallel: bool,
    /// Layers of each GPU [default: as many as its memory has room for]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pp_partition: Vec<u32>,
    /// Bits of the routed experts on the CPU; 16 is as stored
    #[arg(long, value_name = "BITS", value_enum, default_value_t = BitsChoice::Sixteen)]
    cpu_expert_bits: BitsChoice,
    /// Weights that share a scale when quantised
    #[arg(long, value_name = "N", default_value = "128", value_parser = group())]
    group_size: u32,
    /// Projections of attention; bf16 is 16 bits as stored
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = QuantChoice::Bf16)]
    attention_quant: QuantChoice,
    /// Shared experts
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = QuantChoice::Bf16)]
    shared_expert_quant: QuantChoice,
    /// MLPs of dense layers
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = QuantChoice::Bf16)]
    dense_mlp_quant: QuantChoice,
    /// Output matrix
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = QuantChoice::Bf16)]
    lm_head_quant: QuantChoice,
    /// Elements of the KV cache
    #[arg(long, alias = "kv-cache-dtype", value_name = "TYPE", value_enum, default_value_t = KvChoice::Auto)]
    kv_dtype: KvChoice,
    /// Quantise weights again and replace the cache that is kept of them
    #[arg(long)]
    force_load: bool,
    /// Quantise weights at every start and keep nothing
    #[arg(long, conflicts_with = "force_load")]
    no_cache: bool,
    /// Threads of the CPU device [default: all that this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    krasis_threads: Option<u32>,
    /// Tokens that a conversation may have [default: what model and memory allow]
    #[arg(long, alias = "context-length", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context_max: Option<u32>,
    /// Compute every prompt from its beginning, and keep nothing of it for others
    #[arg(long)]
    no_prefix_cache: bool,
    /// States of recurrent layers to keep beside those of running requests [default: 16, if they fit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=4096))]
    prefix_checkpoints: Option<u32>,
    /// Host memory for prompts that the device has no more room for, in MiB [default: on a GPU 4096, or
    /// an eighth of what is available; else 0]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(..=1 << 30))]
    prefix_ram_mb: Option<u64>,
    /// Keep prompts and answers in this folder for the next start, readable for whoever may read it
    #[arg(long, value_name = "DIR", conflicts_with = "no_prefix_cache")]
    prefix_cache_dir: Option<PathBuf>,
    /// What all files in that folder may take, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 16384, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    prefix_disk_mb: u64,
    /// Prompt tokens per step [default: 512, on a GPU 8192]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prefill_chunk: Option<u32>,
    /// Prompt tokens for which experts are brought once, where layers come in groups [default: 32768]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pass_tokens: Option<u32>,
    /// Where the model runs
    #[arg(long, value_name = "NAME", value_enum, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Where routed experts lie: 1 all on the GPU; else in host memory, brought for prompts in N groups
    /// of layers (2 and more), whole layers (0), what is asked for (-1, -2), what is not hot (-3)
    /// [default: 1 if they fit, else -3]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-3..=1024))]
    expert_divisor: Option<i32>,
    /// Who computes experts in host memory while tokens are written [default: by --expert-divisor]
    #[arg(long, value_name = "NAME", value_enum)]
    decode_strategy: Option<DecodeChoice>,
    /// The same by name: persistent, layer_grouped_N, chunked, active_only, hcs_prefill; auto is what `krasis
    /// tune` has found to be the fastest here, and measures first if it has not run; manual takes no
    /// notice of what it found [default: what it found, if it has run, else what the plan foretells]
    #[arg(long, value_name = "NAME", value_parser = strategy)]
    strategy: Option<StrategyChoice>,
    /// Measure strategies again, whatever is known of them
    #[arg(long)]
    pub force_optimize: bool,
    /// File of how often experts were asked for, which is read at the start and written at the end
    /// [default: auto_optimise.json in the model's cache]
    #[arg(long, alias = "heatmap-path", value_name = "FILE")]
    pub heat_map: Option<PathBuf>,
    /// GPU memory to use, in MiB, as if the GPU had no more; with --device cpu the CPU plays such a GPU
    /// [default: all that is free]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    gpu_vram_mb: Option<u64>,
    /// GPU memory to leave alone, in MiB, for what the driver takes by itself [default: 512]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(..=1 << 30))]
    headroom_mb: Option<u64>,
    /// Host memory to use, in MiB; without a GPU, experts that it has no room for stay on the disk, in the
    /// cache of quantised weights [default: what is available]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    ram_mb: Option<u64>,
    /// Prompt tokens from which experts are brought to the GPU; fewer are computed where they lie
    /// [default: as many as make that faster]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    gpu_prefill_threshold: Option<u32>,
    /// On machines of several NUMA nodes: what is measured to be faster, each thread its own node's memory
    /// first, whatever comes, or memory where it is first written
    #[arg(long, value_name = "HOW", value_enum, default_value_t = NumaChoice::Auto)]
    numa: NumaChoice,
    /// Go on when less than 5 % of memory is left
    #[arg(long)]
    pub no_memory_watchdog: bool,
    /// Below which folder /proc and /sys lie, for tests
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub machine_root: PathBuf,
    /// GPU kernels begin when the one before has ended, to measure what beginning early saves
    #[arg(long, hide = true)]
    pub kernels_in_turn: bool,
    /// GPUs reach each other through host memory, to measure what copying by themselves saves
    #[arg(long, hide = true)]
    no_peer_copies: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BitsChoice {
    #[value(name = "4")]
    Four,
    #[value(name = "8")]
    Eight,
    #[value(name = "16")]
    Sixteen,
}

#[derive(Clone, Copy, ValueEnum)]
enum QuantChoice {
    Bf16,
    Int8,
    Int4,
}

#[derive(Clone, Copy, ValueEnum)]
enum KvChoice {
    Auto,
    Bf16,
    /// On the CPU only
    F16,
    #[value(name = "fp8_e4m3")]
    Fp8E4m3,
}

/// The values of --strategy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StrategyChoice {
    /// What was measured, or is measured now.
    Auto,
    /// The other flags.
    Manual,
    /// All experts on the GPU.
    Persistent,
    /// Experts in host memory.
    Prefill(PrefillStrategy),
}

fn strategy(name: &str) -> Result<StrategyChoice, String> {
    Ok(match name {
        "auto" => StrategyChoice::Auto,
        "manual" => StrategyChoice::Manual,
        "persistent" => StrategyChoice::Persistent,
        name => {
            StrategyChoice::Prefill(PrefillStrategy::named(name).ok_or(
                "use auto, manual, persistent, layer_grouped_N (N from 1 to 1024), chunked, active_only or \
                 hcs_prefill",
            )?)
        }
    })
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum DeviceChoice {
    /// The first NVIDIA GPU that can be used and has room for the model, else the CPU
    Auto,
    /// Vector loops on all cores
    Cpu,
    /// NVIDIA GPUs; experts that they have no room for stay in host memory
    Cuda,
    /// The same with f32 activations, to compare with the CPU: slower
    CudaF32,
    /// Plain loops that everything else is compared with: slow
    Reference,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum DecodeChoice {
    /// The CPU
    PureCpu,
    /// The GPU the hottest, which stay there, and the CPU the others
    HcsHybrid,
    /// The GPU; each layer has as many places
    Compact,
    /// The GPU; what was used longest ago makes place
    Lru,
}

#[derive(Clone, Copy, ValueEnum)]
enum NumaChoice {
    Auto,
    Local,
    Interleave,
    Off,
}

fn group() -> impl TypedValueParser<Value = u32> {
    PossibleValuesParser::new(["32", "64", "128"])
        .map(|group| group.parse().expect("one of three numbers"))
}

impl ModelArguments {
    /// The engine's options for the device that was named, or the CPU. Those of a server keep their
    /// defaults.
    pub fn options(&self) -> Result<Options, Failure> {
        self.options_on(self.device)
    }

    /// Threads of the CPU, if they were named.
    pub fn threads(&self) -> Option<usize> {
        self.krasis_threads.map(|threads| threads as usize)
    }

    /// Whether flags say what a GPU holds.
    pub fn is_about_a_gpu(&self) -> bool {
        let named =
            matches!(self.strategy, Some(StrategyChoice::Persistent | StrategyChoice::Prefill(_)));
        let one = self.expert_divisor.is_some() || self.gpu_vram_mb.is_some() || named;
        one || self.names_several_gpus()
    }

    /// Whether flags say which GPUs, or what they share.
    fn names_several_gpus(&self) -> bool {
        !self.pp_partition.is_empty() || !self.selected_gpus.is_empty() || self.expert_parallel
    }

    /// Whether no GPU may be used.
    pub fn wants_no_gpu(&self) -> bool {
        self.num_gpus == Some(0)
    }

    /// Whether where experts lie follows from the flags.
    pub fn is_decided(&self) -> bool {
        let decided = self.strategy.is_some_and(|strategy| strategy != StrategyChoice::Auto);
        self.expert_divisor.is_some() || (decided && !self.force_optimize)
    }

    /// Whether strategies are to be measured if they have not been.
    pub fn measures(&self) -> bool {
        self.force_optimize || self.strategy == Some(StrategyChoice::Auto)
    }

    /// The same for a device.
    pub fn options_on(&self, device: DeviceChoice) -> Result<Options, Failure> {
        let on_gpu = matches!(device, DeviceChoice::Cuda | DeviceChoice::CudaF32);
        if let Some(gpus) = self.num_gpus.filter(|&gpus| (gpus > 0) != on_gpu) {
            let other = if on_gpu { "--device cpu" } else { "--num-gpus 0, or add --device cuda" };
            let message =
                format!("--num-gpus {gpus} with this device: use {other}, or leave it out");
            return Err(Failure::say(Failure::GPU, message));
        }
        if matches!(device, DeviceChoice::Auto | DeviceChoice::Reference) && self.is_about_a_gpu() {
            let message = "--expert-divisor, --strategy and --gpu-vram-mb say what a GPU holds, and there is \
                           none: add --device cuda where there is one, --device cpu to have the CPU play it, \
                           or leave them out";
            return Err(Failure::say(Failure::CONFIG, message));
        }
        if !on_gpu && self.names_several_gpus() {
            let message = "--pp-partition, --selected-gpus and --expert-parallel are for GPUs: add \
                           --device cuda, or leave them out";
            return Err(Failure::say(Failure::CONFIG, message));
        }
        if self.expert_parallel && self.num_gpus.unwrap_or(1) == 1 && self.selected_gpus.len() < 2 {
            let message =
                "--expert-parallel is for several GPUs: add --num-gpus 2, or leave it out";
            return Err(Failure::say(Failure::CONFIG, message));
        }
        self.agree()?;
        let quant = |choice| match choice {
            QuantChoice::Bf16 => Quant::AsStored,
            QuantChoice::Int8 => Quant::Int8,
            QuantChoice::Int4 => Quant::Int4,
        };
        let defaults = Options::default();
        let context_max = match self.context_max {
            None => overridden("CTX_SIZE_OVERRIDE")?.filter(|&tokens| tokens > 0),
            wanted => wanted,
        };
        let tokens: Option<u32> = overridden("MAX_TOTAL_TOKENS_OVERRIDE")?;
        let kv_pages = tokens.map(|tokens| tokens.div_ceil(PAGE));
        Ok(Options {
            device: match device {
                DeviceChoice::Auto | DeviceChoice::Cpu => DeviceKind::Cpu,
                DeviceChoice::Cuda => DeviceKind::Cuda(Activations::Bf16),
                DeviceChoice::CudaF32 => DeviceKind::Cuda(Activations::F32),
                DeviceChoice::Reference => DeviceKind::Reference,
            },
            ranks: Ranks {
                count: self.num_gpus.filter(|_| on_gpu).map(|count| count as usize),
                gpus: self.selected_gpus.clone(),
                partition: self.pp_partition.clone(),
                shared: if self.expert_parallel { Shared::Experts } else { Shared::Layers },
            },
            expert_bits: match self.cpu_expert_bits {
                BitsChoice::Four => ExpertBits::Int4,
                BitsChoice::Eight => ExpertBits::Int8,
                BitsChoice::Sixteen => ExpertBits::AsStored,
            },
            residency: self.residency(),
            device_bytes: self.gpu_vram_mb.map(|mebibytes| Bytes(mebibytes << 20)),
            ram: self.ram_mb.map(|mebibytes| Bytes(mebibytes << 20)),
            headroom: self.headroom_mb.map_or(defaults.headroom, |mib| Bytes(mib << 20)),
            prompt_rows: self.gpu_prefill_threshold,
            pass_tokens: self.pass_tokens.unwrap_or(defaults.pass_tokens),
            group: self.group_size,
            attention: quant(self.attention_quant),
            shared_expert: quant(self.shared_expert_quant),
            dense_mlp: quant(self.dense_mlp_quant),
            lm_head: quant(self.lm_head_quant),
            cache: match (self.no_cache, self.force_load) {
                (true, _) => CacheUse::Off,
                (_, true) => CacheUse::Rebuild,
                _ => CacheUse::Auto,
            },
            cache_home: cache_home(),
            kv: match self.kv_dtype {
                KvChoice::Auto => None,
                KvChoice::Bf16 => Some(KvDtype::Bf16),
                KvChoice::F16 => Some(KvDtype::F16),
                KvChoice::Fp8E4m3 => Some(KvDtype::F8E4M3),
            },
            threads: self.threads(),
            numa: match self.numa {
                NumaChoice::Auto => Numa::Auto,
                NumaChoice::Local => Numa::Local,
                NumaChoice::Interleave => Numa::Interleave,
                NumaChoice::Off => Numa::Off,
            },
            machine_root: self.machine_root.clone(),
            context_max,
            kv_pages,
            memory_fraction: overridden("MEM_FRACTION_OVERRIDE")?,
            prefix: PrefixOptions {
                reuse: if self.no_prefix_cache { Reuse::Nothing } else { Reuse::Longest },
                checkpoints: self.prefix_checkpoints,
                ram: self.prefix_ram_mb.map(|mebibytes| Bytes(mebibytes << 20)),
                disk: self
                    .prefix_cache_dir
                    .clone()
                    .map(|dir| PrefixDisk { dir, bytes: Bytes(self.prefix_disk_mb << 20) }),
            },
            prefill_chunk: self.prefill_chunk.unwrap_or(match device {
                // A GPU reads the weights again for every step, and is slow with few rows of an expert.
                DeviceChoice::Cuda | DeviceChoice::CudaF32 => GPU_PREFILL_CHUNK,
                _ => defaults.prefill_chunk,
            }),
            kernel_cache: kernel_cache(),
            gpu_links: if self.no_peer_copies { Direct::Never } else { Direct::IfRight },
            kernel_starts: if self.kernels_in_turn { Starts::InTurn } else { Starts::Early },
            ..defaults
        })
    }

    /// Flags that say the same thing twice, or half of it.
    fn agree(&self) -> Result<(), Failure> {
        let named = self.strategy.is_some_and(|strategy| strategy != StrategyChoice::Manual);
        let message = if named && self.expert_divisor.is_some() {
            "--strategy and --expert-divisor both say where experts lie: leave one of them out"
        } else if self.decode_strategy.is_some() && !self.is_decided() {
            "--decode-strategy needs --strategy NAME or --expert-divisor beside it"
        } else if self.force_optimize && self.expert_divisor.is_some() {
            "--force-optimize measures which strategy is best, and --expert-divisor names one: leave one \
             of them out"
        } else {
            return Ok(());
        };
        Err(Failure::say(Failure::CONFIG, message))
    }

    fn residency(&self) -> Residency {
        let named = match (self.strategy, self.expert_divisor) {
            (Some(StrategyChoice::Prefill(prefill)), _) => Some((prefill, usual(prefill))),
            (Some(StrategyChoice::Persistent), _) => None,
            (_, Some(divisor)) => of_divisor(divisor),
            (_, None) => return Residency::Auto,
        };
        let Some((prefill, decode)) = named else { return Residency::Device };
        let decode = match self.decode_strategy {
            None => decode,
            Some(DecodeChoice::PureCpu) => DecodeStrategy::PureCpu,
            Some(DecodeChoice::HcsHybrid) => DecodeStrategy::HcsHybrid,
            Some(DecodeChoice::Compact) => DecodeStrategy::Compact,
            Some(DecodeChoice::Lru) => DecodeStrategy::Lru,
        };
        Residency::Host { prefill, decode }
    }

    /// The model's config alone: that of its folder, or a file of any name.
    pub fn config(&self) -> Result<Value, Failure> {
        let file = match &self.model_path {
            Some(file) if file.is_file() => file.clone(),
            _ => self.folder()?.join("config.json"),
        };
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let config =
            serde_json::from_str(&text).with_context(|| format!("{}: not JSON", file.display()))?;
        Ok(config)
    }

    /// The model's folder.
    pub fn folder(&self) -> Result<PathBuf, Failure> {
        folder(self.model_path.as_deref())
    }
}

/// Who writes tokens beside a way to read prompts, as divisors have it.
fn usual(prefill: PrefillStrategy) -> DecodeStrategy {
    match prefill {
        PrefillStrategy::LayerGrouped(_) | PrefillStrategy::Chunked => DecodeStrategy::PureCpu,
        PrefillStrategy::ActiveOnly => DecodeStrategy::Compact,
        PrefillStrategy::HcsPrefill => DecodeStrategy::HcsHybrid,
    }
}

/// A model's folder: the one given, or the demo's wherever the program was started from.
pub fn folder(model_path: Option<&Path>) -> Result<PathBuf, Failure> {
    match model_path {
        Some(dir) if dir.is_dir() => Ok(dir.to_owned()),
        Some(dir) => {
            let message = format!("--model-path {}: there is no such folder", dir.display());
            Err(Failure::say(Failure::MODEL, message))
        }
        None => demo().ok_or_else(|| {
            let message = "the demo model was not found (in $KRASIS_HOME/models/krasis-demo \
                           and demo/model beside the program): give --model-path DIR";
            Failure::say(Failure::MODEL, message)
        }),
    }
}

/// Where caches go if a model's folder cannot be written.
pub fn cache_home() -> Option<PathBuf> {
    let home = variable("KRASIS_HOME").map(|home| home.join("cache"));
    home.or_else(user_cache)
}

/// Where compiled GPU kernels are kept.
fn kernel_cache() -> Option<PathBuf> {
    let home = variable("KRASIS_HOME").or_else(user_cache);
    home.map(|home| home.join("kernels"))
}

/// Our part of the user's folder for what can be made again.
fn user_cache() -> Option<PathBuf> {
    let user = || Some(variable("HOME")?.join(".cache"));
    Some(variable("XDG_CACHE_HOME").or_else(user)?.join("krasis"))
}

/// A number from the environment.
fn overridden<T: FromStr>(name: &str) -> Result<Option<T>, Failure> {
    let Some(text) = variable(name) else { return Ok(None) };
    let number = text.to_str().and_then(|text| text.parse().ok());
    let refused = || format!("{name} is {}, which is no number that it may be", text.display());
    number.map(Some).ok_or_else(|| Failure::say(Failure::CONFIG, refused()))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Where the demo model may lie: the user's folder, then the checkout that the program was built
/// in, found from the program and, for installed ones, from where it was compiled.
fn demo() -> Option<PathBuf> {
    let home =
        std::env::var_os("KRASIS_HOME").map(|home| PathBuf::from(home).join("models/krasis-demo"));
    let program = std::env::current_exe().unwrap_or_default();
    let beside = program.ancestors().skip(1).map(|folder| folder.join("demo/model"));
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/model");
    let mut places = home.into_iter().chain(beside).chain([built]);
    let found = places.find(|dir| dir.join("config.json").is_file())?;
    Some(found.canonicalize().unwrap_or(found))
}
