//! What every route shares.

use crate::error::ApiError;
use crate::{Answers, Generation};
use krasis_engine::Handle;
use krasis_text::{Template, TextError, Tokenizer};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// A server that may still be waiting for its model.
pub struct App {
    /// Names that the model answers to; the first is its id.
    pub names: Vec<String>,
    /// Unix time of the start, which clients see as the model's creation.
    pub created: u64,
    loaded: OnceLock<Arc<Loaded>>,
}

/// A model that can answer.
pub struct Loaded {
    /// The engine.
    pub handle: Handle,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, or why chats are refused.
    pub template: Result<Template, TextError>,
    /// How its answers are read.
    pub answers: Answers,
    /// Its sampling defaults.
    pub generation: Generation,
    /// Changes when the same request may be answered differently: version, precision.
    pub fingerprint: String,
}

impl App {
    /// A server without a model: it listens and says that it is loading. `names` holds the
    /// model's id, then its aliases.
    pub fn new(names: Vec<String>) -> App {
        assert!(!names.is_empty(), "a served model needs a name");
        App { names, created: unix_now(), loaded: OnceLock::new() }
    }

    /// The model is ready. Only the first call counts.
    pub fn ready(&self, loaded: Loaded) {
        let _ = self.loaded.set(Arc::new(loaded));
    }

    /// The model, if it is ready.
    pub fn loaded(&self) -> Option<&Arc<Loaded>> {
        self.loaded.get()
    }

    /// The model's id.
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// The model for a request that names one (or none, or "default").
    pub(crate) fn model(&self, name: Option<&str>) -> Result<Arc<Loaded>, ApiError> {
        match name {
            None | Some("" | "default") => {}
            Some(name) if self.names.iter().any(|known| known == name) => {}
            Some(name) => return Err(ApiError::no_model(name, &self.names)),
        }
        self.loaded().cloned().ok_or_else(ApiError::loading)
    }
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
