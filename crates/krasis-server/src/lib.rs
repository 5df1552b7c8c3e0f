//! HTTP as OpenAI's clients speak it: chat and plain completions, blocking and streamed, with
//! tools and reasoning.
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
mod tools;
mod wishes;

pub use answer::Answers;
pub use app::{App, Loaded};
pub use generation::{Generation, GenerationError};
pub use openai::ReasoningField;
pub use routes::router;
pub use serve::serve;
