//! What the server is and has.

use crate::App;
use crate::error::ApiError;
use crate::{json, openai};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /v1/models`
pub(super) async fn list(State(app): State<Arc<App>>) -> Response {
    let models: Vec<Value> = app.names.iter().map(|name| entry(&app, name)).collect();
    let (first, last) = (app.names.first(), app.names.last());
    // In one answer what OpenAI's and Anthropic's clients look for. Codex wants its own list, of
    // which the empty one is the only part that all of its versions can read.
    let body = json!({"object": "list", "data": models, "has_more": false, "first_id": first,
                      "last_id": last, "models": []});
    json::response(StatusCode::OK, &body)
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

fn entry(app: &App, name: &str) -> Value {
    let context = app.loaded().map(|loaded| loaded.handle.facts.context_max);
    openai::model(name, app.name(), app.created, context)
}
