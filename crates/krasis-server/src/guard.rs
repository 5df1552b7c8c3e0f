//! What every request passes before its route: who it is for, where it comes from, its key, and
//! whether the server is in a state to answer.

use crate::App;
use crate::error::ApiError;
use crate::routes::{Entry, Needs, Route};
use crate::stage::Stage;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// Refuses requests that mean another server and those of foreign web pages.
pub(crate) async fn site(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let (uri, headers) = (request.uri(), request.headers());
    match app.access.host(uri, headers).and_then(|()| app.access.origin(uri, headers)) {
        Ok(()) => next.run(request).await,
        Err(error) => refuse(request, error).await,
    }
}

/// Refuses requests without a key, and those that need a model while there is none.
pub(crate) async fn key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = path.and_then(|path| Route::find(path, request.method()));
    let open = route.is_some_and(|route| route.entry == Entry::Open);
    let keyed = if open { Ok(()) } else { app.access.key(request.headers()) };
    // A method that the route does not have needs nothing, but is answered with 405.
    let needs_model = route.is_some_and(|route| route.needs == Needs::Model);
    let ready = match app.stage() {
        stage if needs_model && stage != Stage::Ready => Err(ApiError::not_now(&stage)),
        _ => Ok(()),
    };
    match keyed.and(ready) {
        Ok(()) => next.run(request).await,
        Err(error) => refuse(request, error).await,
    }
}

/// What a refused client may still send, and for how long, before its connection ends. Without
/// reading, the connection would be reset, and the client would not see why.
const DISCARDED_BYTES: usize = 1 << 20;
const DISCARDING: Duration = Duration::from_secs(2);

async fn refuse(request: Request, error: ApiError) -> Response {
    if request.method() != Method::GET {
        let discard = discard(request.into_body());
        let _ = tokio::time::timeout(DISCARDING, discard).await;
    }
    error.into_response()
}

async fn discard(body: Body) {
    let (mut stream, mut bytes) = (pin!(body.into_data_stream()), 0);
    while bytes <= DISCARDED_BYTES {
        match std::future::poll_fn(|context| stream.as_mut().poll_next(context)).await {
            Some(Ok(chunk)) => bytes += chunk.len(),
            _ => return,
        }
    }
}
