//! Why a model cannot be started.

use krasis_checkpoint::CheckpointError;
use krasis_checkpoint::cache::CacheError;
use krasis_core::Bytes;
use krasis_cuda::CudaError;
use krasis_model::ConfigError;

/// Every message is a sentence that names what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file of the checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A setting in its config.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A cache of quantised weights. Models are loaded without it then; this is for those who want
    /// the cache itself.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A cache that would be empty.
    #[error(
        "these settings quantise nothing, so there is nothing to cache: choose --cpu-expert-bits 4, for example"
    )]
    NothingQuantised,
    /// The GPU, its driver or its compiler.
    #[error(transparent)]
    Gpu(#[from] CudaError),
    /// Elements of a KV cache that only the CPU has.
    #[error(
        "a GPU keeps keys and values in F32, BF16 or FP8, not in F16: choose --kv-dtype bf16, or --device cpu"
    )]
    GpuKv,
    /// A weight that is no number.
    #[error(
        "tensor {tensor} holds an infinite number or NaN in row {row}, so it cannot be quantised: the checkpoint is damaged"
    )]
    NotFinite {
        /// Its name.
        tensor: String,
        /// Row of the loaded weight.
        row: u32,
    },
    /// The model does not fit.
    #[error("{region} needs {wanted}, but only {available} of memory is available: {remedy}")]
    Shortfall {
        /// What does not fit.
        region: &'static str,
        /// What it takes.
        wanted: Bytes,
        /// What there is.
        available: Bytes,
        /// What to change.
        remedy: String,
    },
    /// The model does not fit memory, and there is no cache that its experts could stay in.
    #[error(
        "{wanted} of weights would have to lie on the disk, because memory has no room for them, and no file can hold them there: {}",
        if why_not.is_empty() { "there is no folder for it (set KRASIS_HOME)" } else { why_not }
    )]
    NoCache {
        /// What it would take.
        wanted: Bytes,
        /// A sentence or several.
        why_not: String,
    },
    /// There is nothing to put elsewhere.
    #[error("this model has no routed experts to keep in host memory: leave --expert-divisor out")]
    NoExperts,
    /// Slots are of one size.
    #[error(
        "the experts of this model's layers differ in shape or format, so they cannot share slots: use --expert-divisor 1"
    )]
    UnlikeExperts,
    /// The model does not fit this machine; the sentence says how much of what is missing.
    #[error("{sentence}")]
    Refused {
        /// From [`krasis_machine::check`].
        sentence: String,
    },
    /// A context longer than the model knows.
    #[error(
        "a context of {wanted} tokens was asked for, but the model was made for {model}: lower --context-max"
    )]
    Context {
        /// Tokens asked for.
        wanted: u32,
        /// Tokens that the model knows.
        model: u32,
    },
    /// Layers that do not go over devices as they were told to.
    #[error(
        "{} for {layers} layers on {ranks} GPUs does not work, because every layer has to be on one of \
         them and every GPU needs one: choose --pp-partition {}",
        partition(asked),
        list(nearest)
    )]
    Partition {
        /// Layers of each, as asked for.
        asked: Vec<u32>,
        /// Devices asked for.
        ranks: usize,
        /// Layers that there are.
        layers: usize,
        /// What would work.
        nearest: Vec<usize>,
    },
    /// Nothing to help with.
    #[error(
        "--expert-parallel shares experts that prompts have brought layer by layer, and here none are: leave \
         it out, or choose --expert-divisor -3, or 2 and more"
    )]
    NothingToShare,
    /// More devices than there are.
    #[error(
        "{wanted} GPUs were asked for, but only {found} can be used: choose --num-gpus {found}"
    )]
    Ranks {
        /// Asked for.
        wanted: usize,
        /// That are there.
        found: usize,
    },
    /// The operating system refused a thread.
    #[error("the engine's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

fn list(numbers: &[impl ToString]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn partition(asked: &[u32]) -> String {
    if asked.is_empty() { "no partition".into() } else { format!("--pp-partition {}", list(asked)) }
}
