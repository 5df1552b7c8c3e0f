//! HTTP as clients of OpenAI and Anthropic speak it: chats, plain completions, responses and
//! messages, blocking and streamed, with tools and reasoning.
#![forbid(unsafe_code)]

mod access;
mod answer;
mod anthropic;
mod app;
mod constraint;
mod dialect;
mod document;
mod error;
mod fields;
mod flight;
mod generation;
mod guard;
mod items;
mod jobs;
mod json;
mod keys;
mod limits;
mod messages;
mod metrics;
mod namespaces;
mod noise;
mod openai;
mod paced;
mod page;
mod responses;
mod routes;
mod serve;
mod sse;
mod stage;
mod stored;
mod structural;
mod tls;
mod tools;
mod wishes;

pub use access::Access;
pub use answer::Answers;
pub use app::{App, Loaded, Others, Unknown};
pub use generation::{Generation, GenerationError};
pub use keys::{KeyError, Keys};
pub use limits::{LimitError, Limits};
pub use openai::ReasoningField;
pub use routes::{Entry, Needs, ROUTES, Route, router};
pub use serve::serve;
pub use stage::{Over, Progress, Stage};
pub use tls::{Tls, TlsError};
