//! Server-sent events: one JSON document per event, comments while nothing happens.

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

/// Events that wait to be sent.
#[derive(Default)]
pub(crate) struct Lines(VecDeque<String>);

impl Lines {
    pub fn push(&mut self, value: &impl Serialize) {
        self.0.push_back(json::text(value));
    }

    /// The stream cannot go on. Clients raise what stands under `error`; a stream that just ended
    /// would look like a complete answer.
    pub fn fail(&mut self, error: &ApiError) {
        self.push(&error.body());
    }

    /// The stream is complete.
    pub fn done(&mut self) {
        self.0.push_back("[DONE]".into());
    }
}

/// The response that sends a source's chunks. It is dropped when the client disconnects, and the
/// source with it.
pub(crate) fn response(source: impl Source, first: Lines) -> Response {
    let stream = Chunks { source, lines: first, open: true };
    let pings = KeepAlive::new().interval(PING_EVERY).text("ping");
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
            if let Some(line) = chunks.lines.0.pop_front() {
                return Poll::Ready(Some(Ok(Event::default().data(line))));
            }
            if !chunks.open {
                return Poll::Ready(None);
            }
            chunks.open = ready!(chunks.source.poll_more(context, &mut chunks.lines));
        }
    }
}
