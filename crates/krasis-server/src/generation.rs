//! The model's own sampling defaults: `generation_config.json`.

use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What a model recommends, used where a request says nothing (as vLLM does). What the model
/// leaves open as well is OpenAI's default: temperature 1, everything else off.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Keep the most likely tokens.
    pub top_k: Option<u32>,
    /// Keep tokens up to this probability.
    pub top_p: Option<f32>,
    /// Drop tokens less likely than this part of the best.
    pub min_p: Option<f32>,
    /// Against repetition.
    pub repetition_penalty: Option<f32>,
    /// Tokens to generate when the request names no number.
    pub tokens_max: Option<u32>,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
}

/// Why `generation_config.json` or `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The file is there but cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not what its name says.
    #[error("{} cannot be used: {source}", file.display())]
    Malformed {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The fields of both files that matter here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    temperature: Option<f32>,
    top_k: Option<i64>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    max_new_tokens: Option<u32>,
    eos_token_id: Option<Eos>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Eos {
    One(u32),
    Many(Vec<u32>),
}

impl Generation {
    /// Reads `generation_config.json`; the end-of-sequence tokens come from `config.json` if only
    /// that names them. Both files may be missing.
    pub fn read(dir: &Path) -> Result<Generation, GenerationError> {
        let generation = read(&dir.join("generation_config.json"))?;
        let eos = match generation.eos_token_id {
            Some(eos) => Some(eos),
            None => read(&dir.join("config.json"))?.eos_token_id,
        };
        Ok(Generation {
            temperature: generation.temperature,
            // -1 is "off" in some files.
            top_k: generation.top_k.map(|top_k| u32::try_from(top_k).unwrap_or(0)),
            top_p: generation.top_p,
            min_p: generation.min_p,
            repetition_penalty: generation.repetition_penalty,
            tokens_max: generation.max_new_tokens,
            eos: match eos {
                None => Vec::new(),
                Some(Eos::One(token)) => vec![token],
                Some(Eos::Many(tokens)) => tokens,
            },
        })
    }
}

fn read(file: &Path) -> Result<File, GenerationError> {
    match std::fs::read(file) {
        Ok(json) => serde_json::from_slice(&json)
            .map_err(|source| GenerationError::Malformed { file: file.to_owned(), source }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(source) => Err(GenerationError::Unreadable { file: file.to_owned(), source }),
    }
}
