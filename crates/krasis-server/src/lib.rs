//! HTTP as OpenAI's clients speak it: chat and plain completions, blocking and streamed.
//!
//! Text of a tool call and of reasoning is part of `content` for now: tools are rendered into the
//! prompt, and calls in the history as well, but answers are not parsed yet.
#![forbid(unsafe_code)]

mod answer;
mod app;
mod error;
mod fields;
mod generation;
mod jobs;
mod json;
mod messages;
mod openai;
mod routes;
mod serve;
mod sse;
mod wishes;

pub use app::{App, Loaded};
pub use generation::{Generation, GenerationError};
pub use routes::router;
pub use serve::serve;
