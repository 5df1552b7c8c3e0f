//! Answers that keep to a grammar: which tokens may come next, by llguidance.
//!
//! [`Grammars`] belongs to a tokenizer. It compiles [`Rules`] into a [`Grammar`], of which each answer
//! begins a [`Guide`]: told every token of the answer, it knows the tokens that may follow. What comes
//! before the part under a grammar (thoughts, headers, text before a call) is watched for the marker
//! that ends it. The next tokens are found out on a thread while the model computes.

mod calls;
mod error;
mod form;
mod gbnf;
mod guide;
mod lark;
mod plan;
mod tagged;
mod tags;
mod vocabulary;
mod workers;

pub use error::GrammarError;
pub use form::{Form, Strictness, Tag, Tags};
pub use guide::{Allowed, Guide};
pub use plan::{Demand, Grammar, Rules};

use crate::Tokenizer;
use std::sync::{Arc, OnceLock};
use vocabulary::Vocabulary;

/// Grammars over one tokenizer's tokens.
pub struct Grammars(Arc<Shared>);

struct Shared {
    tokenizer: Arc<Tokenizer>,
    /// Large vocabularies take a second and 100 MiB, so this is made when it is first wanted.
    vocabulary: OnceLock<Result<Arc<Vocabulary>, GrammarError>>,
}

impl Grammars {
    /// Of a tokenizer.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Grammars {
        Grammars(Arc::new(Shared { tokenizer, vocabulary: OnceLock::new() }))
    }

    /// Makes the vocabulary known in the background, so that the first grammar waits for what is left
    /// of that at most.
    pub fn prepare(&self) {
        let shared = self.0.clone();
        let thread = std::thread::Builder::new().name("krasis-vocabulary".into());
        // Without a thread, it is made when it is wanted.
        let _ = thread.spawn(move || shared.vocabulary().is_ok());
    }

    /// What an answer must keep to; `None` if it is free. The largest rules take seconds.
    pub fn compile(&self, rules: &Rules) -> Result<Option<Grammar>, GrammarError> {
        if rules.leave_free() {
            return Ok(None);
        }
        plan::compile(self.0.vocabulary()?, rules).map(Some)
    }
}

impl Shared {
    fn vocabulary(&self) -> Result<&Arc<Vocabulary>, GrammarError> {
        let vocabulary =
            self.vocabulary.get_or_init(|| Vocabulary::new(&self.tokenizer).map(Arc::new));
        vocabulary.as_ref().map_err(Clone::clone)
    }
}
