//! What the server says about its own routes.

use crate::{App, document, json, page};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use std::sync::Arc;

/// `GET /openapi.json`
pub(super) async fn json() -> Response {
    json::response(StatusCode::OK, &document::openapi())
}

/// `GET /docs`: the same for people, whose browsers send no key. It is the same of every server, so it
/// needs none.
pub(super) async fn page(State(app): State<Arc<App>>) -> Response {
    page::html(document::page(app.access.keys.wanted()))
}
