//! What the server is and has.

use crate::App;
use crate::error::ApiError;
use crate::{json, openai};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /v1/models`
pub(super) async fn list(State(app): State<Arc<App>>) -> Response {
    let models: Vec<Value> = app.names.iter().map(|name| entry(&app, name)).collect();
    json::response(StatusCode::OK, &json!({"object": "list", "data": models}))
}

/// `GET /v1/models/{id}`. Ids may hold slashes.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    match app.names.contains(&id) {
        true => Ok(json::response(StatusCode::OK, &entry(&app, &id))),
        false => Err(ApiError::no_model(&id, &app.names)),
    }
}

/// `GET /health`: whether requests will be answered.
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    match app.loaded() {
        Some(_) => json::response(StatusCode::OK, &json!({"status": "ok"})),
        None => {
            let body = json!({"status": "loading"});
            let response = json::response(StatusCode::SERVICE_UNAVAILABLE, &body);
            ([(header::RETRY_AFTER, "5")], response).into_response()
        }
    }
}

/// `GET /version`
pub(super) async fn version() -> Response {
    json::response(StatusCode::OK, &json!({"version": env!("CARGO_PKG_VERSION")}))
}

fn entry(app: &App, name: &str) -> Value {
    let context = app.loaded().map(|loaded| loaded.handle.facts.context_max);
    openai::model(name, app.name(), app.created, context)
}
