//! The routes and what surrounds them: request ids, one line of log, errors for wrong paths.

mod chat;
mod completions;
mod models;
mod run;

use crate::App;
use crate::error::ApiError;
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/health", get(models::health))
        .route("/version", get(models::version))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(accompany))
        .with_state(app)
}

/// Routes of OpenAI's that a model of text does not have.
const UNSUPPORTED: [&str; 6] =
    ["/v1/embeddings", "/v1/audio", "/v1/images", "/v1/moderations", "/v1/files", "/v1/responses"];

/// Routes that clients ask for without their prefix when the base URL is wrong.
const PREFIXED: [&str; 3] = ["/chat/completions", "/completions", "/models"];

async fn not_found(uri: Uri) -> ApiError {
    let path = uri.path();
    if UNSUPPORTED.iter().any(|route| path.starts_with(route)) {
        let message = format!("{path} is not supported by this server");
        return ApiError::new(StatusCode::NOT_FOUND, Some("unsupported_endpoint"), message);
    }
    let message = match PREFIXED.iter().find(|route| path.ends_with(**route)) {
        Some(route) => format!(
            "there is no route {path}, but there is /v1{route}: check the client's base URL"
        ),
        None => format!("there is no route {path}"),
    };
    ApiError::new(StatusCode::NOT_FOUND, Some("unknown_route"), message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), message)
}

/// Gives each request an id (its own, if it brings one) and the log a line.
async fn accompany(request: Request, next: Next) -> Response {
    const NAME: &str = "x-request-id";
    let given = request.headers().get(NAME).filter(|id| id.len() <= 128 && id.to_str().is_ok());
    let id = given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&format!("req-{}", unique())).expect("hexadecimal digits")
    });
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let start = Instant::now();
    let mut response = next.run(request).await;
    tracing::info!(
        id = id.to_str().unwrap_or_default(),
        status = response.status().as_u16(),
        ms = start.elapsed().as_millis() as u64,
        "{method} {path}"
    );
    response.headers_mut().insert(NAME, id);
    response
}

/// 16 hexadecimal digits that no other call returns, from the keys that `HashMap` draws.
fn unique() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
