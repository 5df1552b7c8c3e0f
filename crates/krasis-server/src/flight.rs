//! A request in flight: counted until its last byte, ended when the server ends or its time is over,
//! and alone with its panics.

use crate::App;
use crate::dialect::Dialect;
use crate::error::ApiError;
use crate::json;
use crate::stage::{Over, Stage};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::Frame;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Runs the request and watches its answer. An answer that must end early says so: in a stream as an
/// event, since a stream that just stopped would look complete.
pub(crate) async fn watch(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let dialect = Dialect::of(request.uri().path());
    let flight = Flight::new(app.clone());
    let mut end = Box::pin(end(app));
    let response = tokio::select! {
        response = next.run(request) => response,
        error = &mut end => return error.into_response(),
    };
    let (head, inner) = response.into_parts();
    let kind = head.headers.get(header::CONTENT_TYPE);
    let stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    if !stream {
        // What is whole already arrives whole.
        return Response::from_parts(head, inner);
    }
    let watched = Watched { inner: Some(inner), end, dialect, _flight: flight };
    Response::from_parts(head, Body::new(watched))
}

/// The answer to a request whose handler has panicked.
pub(crate) fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::bug().into_response()
}

/// Why a request has to end before its answer is complete.
async fn end(app: Arc<App>) -> ApiError {
    let mut stage = app.stage.subscribe();
    let over = stage.wait_for(|stage| matches!(stage, Stage::Over(_)));
    let time = Duration::from_secs(app.limits.request_seconds);
    match tokio::time::timeout(time, over).await {
        Ok(Ok(stage)) if *stage == Stage::Over(Over::Failed) => ApiError::over(Over::Failed),
        Ok(_) => ApiError::over(Over::Stopped),
        Err(_) => {
            let message = format!("the answer was not complete after {} s", time.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, Some("timeout"), message)
        }
    }
}

/// One of the requests that the end of the server waits for.
struct Flight(Arc<App>);

impl Flight {
    fn new(app: Arc<App>) -> Flight {
        app.in_flight.send_modify(|requests| *requests += 1);
        Flight(app)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.in_flight.send_modify(|requests| *requests -= 1);
    }
}

/// A stream of events under watch.
struct Watched<E> {
    /// Gone after the last frame, and with it the request.
    inner: Option<Body>,
    end: Pin<Box<E>>,
    dialect: Dialect,
    _flight: Flight,
}

impl<E: Future<Output = ApiError>> HttpBody for Watched<E> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let watched = self.get_mut();
        let Some(inner) = &mut watched.inner else { return Poll::Ready(None) };
        let error = if let Poll::Ready(error) = watched.end.as_mut().poll(context) {
            error
        } else {
            match catch_unwind(AssertUnwindSafe(|| Pin::new(inner).poll_frame(context))) {
                Ok(frame) => return frame,
                Err(_) => ApiError::bug(),
            }
        };
        watched.inner = None;
        let (name, body) = watched.dialect.failure(&error);
        let name = name.map(|name| format!("event: {name}\n")).unwrap_or_default();
        let event = format!("{name}data: {}\n\n", json::text(&body));
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }
}
