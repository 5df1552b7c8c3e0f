//! What the user may choose about what is kept of prompts and answers.

use krasis_core::Bytes;
use std::path::PathBuf;

/// What is kept for requests that begin as others did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixOptions {
    /// Whether anything is.
    pub reuse: Reuse,
    /// States of recurrent layers on the device; without a wish, 16, or what a sixteenth of the memory
    /// holds that weights and activations leave.
    pub checkpoints: Option<u32>,
    /// Host memory for what the device has no more room for; without a wish, none where that is the
    /// same memory, and else 4 GiB, or an eighth of what is available.
    pub ram: Option<Bytes>,
    /// A folder that outlives the process.
    pub disk: Option<PrefixDisk>,
}

/// Whether requests take what others have computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// The longest prefix that is known.
    Longest,
    /// Nothing.
    Nothing,
}

/// Where pages and states outlive the process. They are made of what people say, and the tokens of it
/// lie beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixDisk {
    /// The folder, which several models may share.
    pub dir: PathBuf,
    /// What all files in it may take.
    pub bytes: Bytes,
}

impl Default for PrefixOptions {
    fn default() -> PrefixOptions {
        PrefixOptions { reuse: Reuse::Longest, checkpoints: None, ram: None, disk: None }
    }
}
