//! What can be wrong with a model's text files or with a text.

use std::path::PathBuf;

/// Why a text file of the model, or a text, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The model's folder holds no tokenizer that we read.
    #[error(
        "{} is missing: Krasis reads the tokenizer from this file; \
         copy it from the model's original repository",
        file.display()
    )]
    NoTokenizer {
        /// The file looked for.
        file: PathBuf,
    },
    /// A file is there but cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is there and is not what its name says.
    #[error("{} cannot be used: {reason}", file.display())]
    Malformed {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The text is too long to be worth tokenizing.
    #[error("the text has {bytes} bytes, but at most {bytes_max} are taken: shorten it")]
    TooLong {
        /// As given.
        bytes: usize,
        /// Largest accepted.
        bytes_max: usize,
    },
    /// The tokenizer gave up.
    #[error("the text cannot be tokenized: {reason}")]
    Untokenizable {
        /// What the tokenizer says.
        reason: String,
    },
    /// The model has no chat template.
    #[error(
        "this model has no chat template (no chat_template.jinja, no chat_template.json, and no \
         chat_template in tokenizer_config.json): use plain completions"
    )]
    NoTemplate,
    /// The template refused the conversation by `raise_exception`.
    #[error("the chat template refuses this conversation: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// The template stumbled over this conversation.
    #[error("the chat template cannot render this conversation (line {line}): {reason}")]
    Unrenderable {
        /// Line in the template, 0 when unknown.
        line: usize,
        /// What the template engine says.
        reason: String,
    },
    /// The template ran too long or wrote too much.
    #[error("the chat template exceeds its {bound} of {limit}")]
    OutOfBounds {
        /// What is bounded.
        bound: &'static str,
        /// How far.
        limit: u64,
    },
    /// A message is not what the template can take.
    #[error("{field}: {reason}")]
    Message {
        /// Where in the request, such as `messages[2].tool_calls[0].function.arguments`.
        field: String,
        /// What is wrong and what to send instead.
        reason: String,
    },
}
