//! What the network computes: a model as one literal, the blocks that run it, and the
//! architectures that describe it. Opens no files and knows no device but through `Ops`.
#![forbid(unsafe_code)]

pub mod arch;
pub mod blocks;
pub mod buffers;
pub mod cache;
pub mod model;
pub mod source;

/// A whole `config.json`.
pub use serde_json::Value as Config;

pub use arch::{Architecture, ConfigError, describe};
pub use buffers::Buffers;
pub use cache::{Cache, CacheShape};
pub use model::{
    DeltaNet, Dense, Experts, Ffn, Gqa, Layer, Mixer, Mla, MlaHeads, Model, Moe, Query, Rope,
    Shared,
};
pub use source::{Class, Origin, Run, Source};
