//! Answers that keep to a grammar: which tokens may come next, by llguidance.
//!
//! [`Grammars`] belongs to a tokenizer. It compiles [`Rules`] into a [`Grammar`], of which each answer
//! begins a [`Guide`]: told every token of the answer, it knows the tokens that may follow. What comes
//! before the part under a grammar (thoughts, headers, text before a call) is watched for the marker
//! that ends it. The next tokens are found out on a thread while the model computes.

mod calls;
mod error;
mod form;
mod guide;
mod lark;
mod plan;
mod tagged;
mod vocabulary;
mod workers;

pub use error::GrammarError;
pub use form::{Form, Strictness};
pub use guide::{Allowed, Guide};
pub use plan::{Demand, Grammar, Rules};

use crate::Tokenizer;
use std::sync::{Arc, OnceLock};
use vocabulary::Vocabulary;

/// Grammars over one tokenizer's tokens.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// Made when the first grammar asks for it: that takes a moment, and memory.
    vocabulary: OnceLock<Result<Arc<Vocabulary>, GrammarError>>,
}

impl Grammars {
    /// Of a tokenizer.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Grammars {
        Grammars { tokenizer, vocabulary: OnceLock::new() }
    }

    /// What an answer must keep to; `None` if it is free. The largest rules take seconds.
    pub fn compile(&self, rules: &Rules) -> Result<Option<Grammar>, GrammarError> {
        if rules.leave_free() {
            return Ok(None);
        }
        let vocabulary =
            self.vocabulary.get_or_init(|| Vocabulary::new(&self.tokenizer).map(Arc::new));
        plan::compile(vocabulary.as_ref().map_err(Clone::clone)?, rules).map(Some)
    }
}
