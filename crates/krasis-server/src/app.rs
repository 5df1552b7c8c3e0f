//! What every route shares.

use crate::access::Access;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::stage::{Over, Progress, Stage};
use crate::stored::Stored;
use crate::{Answers, Generation};
use krasis_engine::Handle;
use krasis_text::{Grammars, Template, TextError, Tokenizer};
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// A server that may still be waiting for its model.
pub struct App {
    /// Names that the model answers to; the first is its id.
    pub names: Vec<String>,
    /// Unix time of the start, which clients see as the model's creation.
    pub created: u64,
    /// Who may come in.
    pub access: Access,
    /// What they may take.
    pub limits: Limits,
    /// What becomes of requests that name another model.
    pub others: Others,
    /// What becomes of fields that nobody knows, in chats and completions.
    pub unknown: Unknown,
    pub(crate) metrics: Metrics,
    pub(crate) stored: Stored,
    pub(crate) started: Instant,
    /// Requests between admission and the last byte of their answer.
    pub(crate) in_flight: watch::Sender<usize>,
    pub(crate) stage: watch::Sender<Stage>,
    loaded: OnceLock<Arc<Loaded>>,
}

/// Requests for a model that the server does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// 404.
    Refused,
    /// The model answers under any name.
    Answered,
}

/// Fields of a request that mean nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Every client sends extras.
    Ignored,
    /// 400, for whoever looks for a misspelt one.
    Refused,
}

/// A model that can answer.
pub struct Loaded {
    /// The engine.
    pub handle: Handle,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// What answers can be held to, in its tokens.
    pub grammars: Grammars,
    /// Its chat template, or why chats are refused.
    pub template: Result<Template, TextError>,
    /// How its answers are read.
    pub answers: Answers,
    /// Its sampling defaults.
    pub generation: Generation,
    /// Changes when the same request may be answered differently: version, precision.
    pub fingerprint: String,
    /// Where it runs, in words.
    pub device: String,
    /// What was allocated: words and bytes.
    pub regions: Vec<(Cow<'static, str>, u64)>,
}

impl App {
    /// A server without a model: it listens and says that it is loading. `names` holds the
    /// model's id, then its aliases.
    pub fn new(names: Vec<String>, access: Access, limits: Limits) -> App {
        assert!(!names.is_empty(), "a served model needs a name");
        App {
            metrics: Metrics::new(&names[0]),
            stored: Stored::default(),
            names,
            created: unix_now(),
            access,
            limits,
            others: Others::Refused,
            unknown: Unknown::Ignored,
            started: Instant::now(),
            in_flight: watch::Sender::new(0),
            stage: watch::Sender::new(Stage::Loading(Progress { phase: "starting", percent: 0 })),
            loaded: OnceLock::new(),
        }
    }

    /// Loading has come so far.
    pub fn loading(&self, progress: Progress) {
        self.stage.send_if_modified(|stage| match stage {
            Stage::Loading(known) if *known != progress => {
                *known = progress;
                true
            }
            _ => false,
        });
    }

    /// The model is ready. Only the first call counts.
    pub fn ready(&self, loaded: Loaded) {
        let _ = self.loaded.set(Arc::new(loaded));
        self.advance(Stage::Ready);
    }

    /// New requests are refused from now on.
    pub fn drain(&self) {
        self.advance(Stage::Draining);
    }

    /// Answers in flight end now, and their clients are told why.
    pub fn over(&self, why: Over) {
        self.advance(Stage::Over(why));
    }

    /// Stages follow each other in one direction only.
    fn advance(&self, next: Stage) {
        let age = |stage: &Stage| match stage {
            Stage::Loading(_) => 0,
            Stage::Ready => 1,
            Stage::Draining => 2,
            Stage::Over(_) => 3,
        };
        self.stage.send_if_modified(|stage| {
            let newer = age(&next) > age(stage);
            if newer {
                *stage = next;
            }
            newer
        });
    }

    /// What the server can do now.
    pub fn stage(&self) -> Stage {
        self.stage.borrow().clone()
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
            Some(_) if self.others == Others::Answered => {}
            Some(name) => return Err(ApiError::no_model(name, &self.names)),
        }
        self.loaded().cloned().ok_or_else(|| ApiError::not_now(&self.stage()))
    }

    /// Looks at what of a request nobody has taken.
    pub(crate) fn complete(&self, fields: &Fields) -> Result<(), ApiError> {
        match fields.unknown().filter(|_| self.unknown == Unknown::Refused) {
            None => Ok(()),
            Some(name) => Err(ApiError::unsupported(name, format!("{name} is not a known field"))),
        }
    }
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
