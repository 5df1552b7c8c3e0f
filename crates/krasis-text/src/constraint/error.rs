//! Why rules cannot be kept.

/// Whose fault it is that there is no grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The form of the text.
    #[error("{0}")]
    Form(String),
    /// A tool's schema.
    #[error("{reason}")]
    Tool {
        /// Which, counted from 0.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer.
    #[error("this model's tokenizer cannot be held to a grammar: {0}")]
    Tokenizer(String),
}

/// The first line of what llguidance says, which may be followed by its state.
pub(super) fn sentence(error: impl std::fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default().trim().trim_end_matches('.');
    match line.starts_with("panic") || line.is_empty() {
        true => "the grammar's compiler cannot take it".into(),
        false => line.chars().take(300).collect(),
    }
}
