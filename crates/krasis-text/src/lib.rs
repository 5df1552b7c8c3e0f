//! Strings and token ids: tokenizer, chat template, streaming detokenizer, stop strings. Knows
//! nothing of tensors, engines or HTTP.
#![forbid(unsafe_code)]

mod detokenize;
mod error;
mod stop;
mod template;
mod tokenizer;

pub use detokenize::Detokenizer;
pub use error::TextError;
pub use stop::{Passage, StopStrings};
pub use template::{Render, Template};
pub use tokenizer::{Specials, Tokenizer};
