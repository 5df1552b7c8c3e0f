//! When and where: plan, load, schedule, KV pages, run, sample. One thread owns everything below
//! [`Handle`].
#![forbid(unsafe_code)]

pub mod batch;
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
pub mod outlook;
pub mod plan;
pub mod planner;
pub mod preflight;
pub mod rehearsal;
pub mod request;
pub mod runner;
pub mod sample;
pub mod scheduler;
pub mod sequence;
pub mod skew;
pub mod step;
mod thread;

pub use census::{Census, ExpertCensus};
pub use constraint::{Allowed, Constraint, Grammar};
pub use engine::{
    Engine, Loaded, Loading, Running, build_cache, candidates, candidates_dummy, propose,
    propose_dummy, start, start_dummy, start_watched,
};
pub use error::StartError;
pub use experts::{DecodeStrategy, HeatMap, PrefillStrategy};
pub use handle::{Facts, Handle, Sink, Submission, SubmitError, Ticket};
pub use krasis_cuda::gpu::Starts;
pub use krasis_cuda::peer::Direct;
pub use krasis_ops::{Span, Track};
pub use kv::{PrefixDisk, PrefixOptions, Reuse};
pub use load::{Built, Peak, Phase, Unwatched, Watch, cache_folders, cache_places};
pub use options::{
    Activations, CacheUse, DeviceKind, ExpertBits, Fault, Options, Quant, Ranks, Residency, Shared,
};
pub use outlook::{Known, Outlook};
pub use planner::{Candidate, Proposal, Site};
pub use request::{Event, Finish, InvalidRequest, Logprob, Request, Sampling, Usage};
