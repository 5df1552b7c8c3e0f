//! Strings and token ids: tokenizer, chat template, streaming detokenizer, stop strings. Knows
//! nothing of tensors, engines or HTTP.
#![forbid(unsafe_code)]

mod answer;
mod constraint;
mod detokenize;
mod error;
mod stop;
mod template;
mod tokenizer;

pub use answer::{End, Event, Format, Parser, Reasoning, Start, ToolFormat};
pub use constraint::{
    Allowed, Demand, Form, Grammar, GrammarError, Grammars, Guide, Rules, Strictness, Tag, Tags,
};
pub use detokenize::Detokenizer;
pub use error::TextError;
pub use stop::{Passage, StopStrings};
pub use template::{Render, Template};
pub use tokenizer::{Specials, Tokenizer};
