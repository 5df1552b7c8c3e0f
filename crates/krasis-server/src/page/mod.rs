//! The web page: files that are built in, and what browsers are told about them.
//!
//! They hold nothing of this server's, so they need no key; what they ask the API for does.

use crate::error::ApiError;
use axum::extract::Path;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// What a file may do in a browser: load from this server, and nothing else. Trusted types without a
/// policy forbid whatever would parse a text as HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// One file.
struct Asset {
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

const CSS: &str = "text/css; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! asset {
    ($name:literal, $kind:expr) => {
        Asset { name: $name, kind: $kind, bytes: include_bytes!(concat!("../../page/", $name)) }
    };
}

/// All of them; the first is the page.
const ASSETS: [Asset; 11] = [
    asset!("index.html", HTML),
    asset!("api.js", SCRIPT),
    asset!("chat.js", SCRIPT),
    asset!("dom.js", SCRIPT),
    asset!("draw.js", SCRIPT),
    asset!("icon.svg", "image/svg+xml"),
    asset!("main.js", SCRIPT),
    asset!("markdown.js", SCRIPT),
    asset!("page.css", CSS),
    asset!("settings.js", SCRIPT),
    asset!("status.js", SCRIPT),
];

/// `GET /`
pub(crate) async fn index() -> Response {
    response(HTML, ASSETS[0].bytes)
}

/// `GET /page/NAME`
pub(crate) async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS[1..].iter().find(|asset| asset.name == name) {
        Some(asset) => response(asset.kind, asset.bytes),
        None => {
            let message = "the page has no such file".to_owned();
            ApiError::new(StatusCode::NOT_FOUND, Some("unknown_route"), message).into_response()
        }
    }
}

/// A document for browsers.
pub(crate) fn html(page: String) -> Response {
    response(HTML, page)
}

fn response(kind: &'static str, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        // For browsers that know no frame-ancestors.
        (header::X_FRAME_OPTIONS, "DENY"),
        // Another program may have this address tomorrow.
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests;
