//! The model that a command is about: a folder of weights, or shapes that weights are made up in.

use crate::exit::Failure;
use crate::options::ModelArguments;
use crate::overrides;
use anyhow::Context;
use clap::{Args, ValueEnum};
use krasis_checkpoint::{Checkpoint, cache::digest};
use krasis_engine::{
    Candidate, Options, Proposal, Running, Site, StartError, Watch, cache_places, candidates,
    candidates_dummy, propose, propose_dummy, start_dummy, start_watched,
};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where weights come from.
#[derive(Args)]
pub struct WeightArguments {
    /// Where weights come from; dummy makes them up in the shapes of --model-path's config.json
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LoadFormat::Checkpoint)]
    load_format: LoadFormat,
    /// Changes a field of the config before dummy weights are made, as in num_hidden_layers=12
    #[arg(long, value_name = "FIELD=JSON", value_parser = overrides::field)]
    config_override: Vec<(String, Value)>,
    /// Makes dummy experts unequally popular: the r-th is chosen r^-S times as often as the first
    #[arg(long, value_name = "S")]
    expert_skew: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum LoadFormat {
    Checkpoint,
    Dummy,
}

/// A model.
pub enum Target {
    /// A checkpoint.
    Folder(PathBuf),
    /// A `config.json` alone.
    Shapes {
        /// Of the file, for people.
        name: String,
        /// Its fields.
        config: Value,
        /// How unequally experts are asked for.
        skew: Option<f64>,
    },
}

impl WeightArguments {
    /// The model that is meant.
    pub fn target(&self, model: &ModelArguments) -> Result<Target, Failure> {
        match self.load_format {
            LoadFormat::Checkpoint => Ok(Target::Folder(model.folder()?)),
            LoadFormat::Dummy => Target::shapes(model, &self.config_override, self.expert_skew),
        }
    }
}

impl Target {
    /// The shapes of a `config.json` of which some fields are changed.
    pub fn shapes(
        model: &ModelArguments,
        fields: &[(String, Value)],
        skew: Option<f64>,
    ) -> Result<Target, Failure> {
        let mut config = model.config()?;
        overrides::apply(&mut config, fields);
        let path = model.model_path.as_deref().unwrap_or(Path::new("model"));
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Target::Shapes { name, config, skew })
    }

    /// What it would take of a machine.
    pub fn propose(&self, options: &Options, site: &Site) -> Result<Proposal, StartError> {
        match self {
            Target::Folder(dir) => propose(dir, options, site),
            Target::Shapes { config, .. } => propose_dummy(config, options, site),
        }
    }

    /// All that could be done with its experts.
    pub fn candidates(
        &self,
        options: &Options,
        site: &Site,
        tokens: u32,
    ) -> Result<Vec<Candidate>, StartError> {
        match self {
            Target::Folder(dir) => candidates(dir, options, site, tokens),
            Target::Shapes { config, .. } => candidates_dummy(config, options, site, tokens),
        }
    }

    /// Loads it.
    pub fn start(&self, options: &Options, watch: &dyn Watch) -> Result<Running, StartError> {
        match self {
            Target::Folder(dir) => start_watched(dir, options, watch),
            Target::Shapes { config, skew, .. } => start_dummy(config, *skew, options),
        }
    }

    /// Which weights these are.
    pub fn fingerprint(&self) -> Result<u64, Failure> {
        Ok(match self {
            Target::Folder(dir) => {
                let fingerprint = Checkpoint::open(dir).and_then(|ck| ck.fingerprint());
                fingerprint.map_err(StartError::from)?
            }
            Target::Shapes { config, skew, .. } => {
                let text = serde_json::to_string(config).context("a config is JSON")?;
                digest(&format!("{text} {skew:?}"))
            }
        })
    }

    /// Folders for what is kept of it, in the order in which they are tried.
    pub fn places(&self, fingerprint: u64, options: &Options) -> Vec<PathBuf> {
        match self {
            Target::Folder(dir) => cache_places(dir, fingerprint, options),
            Target::Shapes { name, .. } => {
                let there = format!("{name}-{:08x}", fingerprint as u32);
                options.cache_home.iter().map(|home| home.join(&there)).collect()
            }
        }
    }
}
