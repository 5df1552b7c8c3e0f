//! JSON in and out: bodies with limits, and answers that survive every client's line splitter.

use crate::error::ApiError;
use crate::fields::Fields;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::time::Duration;

/// Agents send whole files in their prompts; axum's own 2 MB would refuse them.
const BODY_BYTES_MAX: usize = 32 << 20;

/// A body must have arrived after this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

impl<S: Sync> FromRequest<S> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Fields, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // A browser sends text/plain across origins without asking; JSON it does not.
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let message = format!("the content type is '{kind}': send application/json");
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(ApiError::new(status, Some("unsupported_media_type"), message));
        }
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > BODY_BYTES_MAX) {
            return Err(too_large());
        }
        let body = to_bytes(request.into_body(), BODY_BYTES_MAX);
        let body = tokio::time::timeout(BODY_TIMEOUT, body).await.map_err(|_| {
            let message = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, Some("timeout"), message)
        })?;
        let body = body.map_err(|error| match is_length_limit(&error) {
            true => too_large(),
            false => {
                let message = format!("the body could not be read: {error}");
                ApiError::new(StatusCode::BAD_REQUEST, Some("incomplete_body"), message)
            }
        })?;
        Fields::parse(&body)
    }
}

fn too_large() -> ApiError {
    let message = format!("the body is larger than {} MiB", BODY_BYTES_MAX >> 20);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, Some("body_too_large"), message)
}

fn is_length_limit(error: &axum::Error) -> bool {
    // The error's type belongs to a crate below axum; its words have been stable for years.
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.to_string().contains("length limit exceeded") {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An answer in JSON.
pub(crate) fn response(status: StatusCode, value: &impl Serialize) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (status, json, Body::from(text(value))).into_response()
}

/// JSON in which no client sees a line break: some split streams at U+0085, U+2028 and U+2029.
/// Outside of strings JSON holds none of them, so an escape is always right.
pub(crate) fn text(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("answers are plain structs of strings");
    match json.contains(['\u{85}', '\u{2028}', '\u{2029}']) {
        false => json,
        true => json
            .replace('\u{85}', "\\u0085")
            .replace('\u{2028}', "\\u2028")
            .replace('\u{2029}', "\\u2029"),
    }
}
