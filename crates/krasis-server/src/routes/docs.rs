//! What the server says about its own routes.

use crate::{document, json};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

/// `GET /openapi.json`
pub(super) async fn json() -> Response {
    json::response(StatusCode::OK, &document::openapi())
}

/// `GET /docs`: the same for people. The page asks for nothing, and may not.
pub(super) async fn page() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(document::page())).into_response()
}
