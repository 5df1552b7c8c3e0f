//! When and where: plan, load, schedule, KV pages, run, sample. One thread owns everything below
//! [`Handle`].
#![forbid(unsafe_code)]

pub mod census;
pub mod constraint;
pub mod device;
pub mod dummy;
pub mod engine;
pub mod error;
pub mod experts;
pub mod handle;
pub mod kv;
pub mod load;
pub mod network;
pub mod options;
pub mod plan;
pub mod planner;
pub mod preflight;
pub mod request;
pub mod runner;
pub mod sample;
pub mod scheduler;
pub mod sequence;
pub mod skew;
pub mod step;

pub use census::{Census, ExpertCensus};
pub use constraint::{Allowed, Constraint, Grammar};
pub use engine::{
    Engine, Loaded, Loading, Running, build_cache, propose, propose_dummy, start, start_dummy,
    start_watched,
};
pub use error::StartError;
pub use experts::{DecodeStrategy, PrefillStrategy};
pub use handle::{Facts, Handle, Sink, Submission, SubmitError, Ticket};
pub use krasis_cuda::gpu::Starts;
pub use krasis_cuda::peer::Direct;
pub use krasis_ops::Span;
pub use kv::{PrefixDisk, PrefixOptions, Reuse};
pub use load::{Built, Peak, Phase, Unwatched, Watch, cache_folders};
pub use options::{
    Activations, CacheUse, DeviceKind, ExpertBits, Options, Quant, Ranks, Residency, Shared,
};
pub use planner::{Proposal, Site};
pub use request::{Event, Finish, InvalidRequest, Logprob, Request, Sampling, Usage};
