//! Server-sent events: one JSON document per event, comments while nothing happens.

use crate::dialect::Dialect;
use crate::error::ApiError;
use crate::json;
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Proxies close connections that say nothing; the first token of a long prompt takes minutes.
const PING_EVERY: Duration = Duration::from_secs(10);

/// What makes the chunks of a stream.
pub(crate) trait Source: Send + Unpin + 'static {
    /// Appends the next chunks. `false` when there are no more.
    fn poll_more(&mut self, context: &mut Context<'_>, lines: &mut Lines) -> Poll<bool>;
}

/// Events that wait to be sent: a name, if they have one, and data.
#[derive(Default)]
pub(crate) struct Lines(VecDeque<(Option<&'static str>, String)>);

impl Lines {
    pub fn push(&mut self, value: &impl Serialize) {
        self.0.push_back((None, json::text(value)));
    }

    /// An event with a name.
    pub fn event(&mut self, name: &'static str, value: &impl Serialize) {
        self.0.push_back((Some(name), json::text(value)));
    }

    /// The stream cannot go on. Clients raise what stands under `error`; a stream that just ended
    /// would look like a complete answer.
    pub fn fail(&mut self, dialect: Dialect, error: &ApiError) {
        let (name, body) = dialect.failure(error);
        self.0.push_back((name, json::text(&body)));
    }

    /// The stream is complete.
    pub fn done(&mut self) {
        self.0.push_back((None, "[DONE]".into()));
    }
}

/// The response that sends a source's chunks. It is dropped when the client disconnects, and the
/// source with it.
pub(crate) fn response(source: impl Source, first: Lines, dialect: Dialect) -> Response {
    let stream = Chunks { source, lines: first, open: true };
    let pings = KeepAlive::new().interval(PING_EVERY);
    let pings = match dialect {
        Dialect::Anthropic => {
            pings.event(Event::default().event("ping").data("{\"type\":\"ping\"}"))
        }
        Dialect::OpenAi | Dialect::Responses => pings.text("ping"),
    };
    let mut response = Sse::new(stream).keep_alive(pings).into_response();
    // nginx would collect the stream otherwise.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(unbuffered, HeaderValue::from_static("no"));
    response
}

struct Chunks<S> {
    source: S,
    lines: Lines,
    open: bool,
}

impl<S: Source> Stream for Chunks<S> {
    type Item = Result<Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let chunks = self.get_mut();
        loop {
            if let Some((name, data)) = chunks.lines.0.pop_front() {
                let event = name.into_iter().fold(Event::default(), Event::event);
                return Poll::Ready(Some(Ok(event.data(data))));
            }
            if !chunks.open {
                return Poll::Ready(None);
            }
            chunks.open = ready!(chunks.source.poll_more(context, &mut chunks.lines));
        }
    }
}
