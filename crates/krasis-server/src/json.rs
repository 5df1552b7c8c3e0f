//! JSON in and out: bodies with limits, and answers that survive every client's line splitter.

use crate::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::limits::Limits;
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde::Serialize;
use std::pin::pin;
use std::sync::Arc;
use tokio::time::Instant;

impl FromRequest<Arc<App>> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Fields, ApiError> {
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
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > app.limits.body_bytes) {
            return Err(too_large(&app.limits));
        }
        let body = read(request.into_body(), &app.limits).await?;
        Fields::parse(&body, &app.limits)
    }
}

/// Reads a body. Its time grows with what has arrived, so a slow line may send a long prompt, while
/// bytes that trickle in hold a connection for seconds only.
async fn read(body: Body, limits: &Limits) -> Result<Vec<u8>, ApiError> {
    let start = Instant::now();
    let (mut stream, mut bytes) = (pin!(body.into_data_stream()), Vec::new());
    loop {
        let chunk = std::future::poll_fn(|context| stream.as_mut().poll_next(context));
        let deadline = start + limits.body_time(bytes.len());
        match tokio::time::timeout_at(deadline, chunk).await {
            Err(_) => {
                let message = format!("the body stopped coming after {} bytes", bytes.len());
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, Some("timeout"), message));
            }
            Ok(None) => return Ok(bytes),
            Ok(Some(Ok(chunk))) if (bytes.len() + chunk.len()) as u64 <= limits.body_bytes => {
                bytes.extend_from_slice(&chunk);
            }
            Ok(Some(Ok(_))) => return Err(too_large(limits)),
            Ok(Some(Err(error))) => {
                let message = format!("the body could not be read: {error}");
                return Err(ApiError::new(
                    StatusCode::BAD_REQUEST,
                    Some("incomplete_body"),
                    message,
                ));
            }
        }
    }
}

fn too_large(limits: &Limits) -> ApiError {
    let message = format!("the body is larger than {} bytes", limits.body_bytes);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, Some("body_too_large"), message)
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
