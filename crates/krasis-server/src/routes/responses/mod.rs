//! `POST /v1/responses`, and what is kept of its answers: OpenAI's Responses API.

mod answer;

use super::chat::{Asked, Room};
use super::run::Run;
use super::unique;
use crate::app::unix_now;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::items::Items;
use crate::namespaces::Namespaces;
use crate::wishes::Wishes;
use crate::{App, json, responses};
use answer::Answer;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// `POST /v1/responses`
pub(super) async fn create(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let loaded = app.model(fields.take::<String>("model")?.as_deref())?;
    let id = format!("resp_{}", unique());
    let mut told = told(&id, app.name(), &fields);
    let keeps = fields.take("store")?.unwrap_or(true);
    let wanted = Wanted::take(&mut fields)?;
    let earlier = match fields.take::<String>("previous_response_id")? {
        None => Vec::new(),
        Some(id) => match app.stored.get(&id) {
            Some(entry) => entry.messages.clone(),
            // The route is there, whatever the field names.
            None => return Err(ApiError { status: StatusCode::BAD_REQUEST, ..unknown(&id) }),
        },
    };
    let namespaces = Namespaces::take(&mut fields)?;
    let messages = responses::into_chat(&mut fields, &earlier).map_err(renamed)?;
    let asked = Asked::take(&loaded, &mut fields, Room::AtMost).await.map_err(renamed)?;
    let Asked { wishes, logprobs, prompt, requests } = asked;
    tell_sampling(&mut told, &wishes);
    let answer = Answer {
        app: app.clone(),
        tokenizer: loaded.tokenizer.clone(),
        format: loaded.answers.format,
        prompt,
        id,
        told,
        namespaces,
        thoughts_kept: wanted.thoughts_kept,
        logprobs: logprobs.is_some(),
        messages: keeps.then_some(messages),
        items: Items::default(),
        heads: Vec::new(),
        sequence: 0,
        finish: None,
    };
    Run::start(&app, &loaded, &wishes, requests, answer)?.respond().await
}

/// `GET /v1/responses/{id}`
pub(super) async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let entry = app.stored.get(&id).ok_or_else(|| unknown(&id))?;
    Ok(json::response(StatusCode::OK, &entry.response))
}

/// `DELETE /v1/responses/{id}`
pub(super) async fn forget(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    match app.stored.remove(&id) {
        true => {
            let body = json!({"id": id, "object": "response", "deleted": true});
            Ok(json::response(StatusCode::OK, &body))
        }
        false => Err(unknown(&id)),
    }
}

fn unknown(id: &str) -> ApiError {
    let message = format!(
        "there is no response '{id}': the newest are kept, unless store is false, until the server \
         ends; send the whole conversation in input instead"
    );
    ApiError {
        param: Some("previous_response_id".into()),
        ..ApiError::new(StatusCode::NOT_FOUND, Some("previous_response_not_found"), message)
    }
}

/// What is wrong is told in this API's names.
fn renamed(error: ApiError) -> ApiError {
    let param = error.param.map(|param| match param.as_str() {
        "messages" => "input".into(),
        "max_tokens" => "max_output_tokens".into(),
        "response_format" => "text".into(),
        _ => param,
    });
    ApiError { param, ..error }
}

/// What the answer shall have besides text.
struct Wanted {
    /// Thoughts also in the form in which clients send them back.
    thoughts_kept: bool,
}

impl Wanted {
    fn take(fields: &mut Fields) -> Result<Wanted, ApiError> {
        // One answer: these are a chat's.
        ["n", "logprobs"].iter().for_each(|name| drop(fields.value(name)));
        let include: Vec<String> = fields.take("include")?.unwrap_or_default();
        let included = |name: &str| include.iter().any(|one| one == name);
        match included("message.output_text.logprobs") {
            true => fields.put("logprobs", true.into()),
            // Checked all the same.
            false => drop(fields.within("top_logprobs", 0, 20)?),
        }
        Ok(Wanted { thoughts_kept: included("reasoning.encrypted_content") })
    }
}

/// The parts of a response that repeat its request.
fn told(id: &str, model: &str, fields: &Fields) -> Map<String, Value> {
    let said = |name: &str| fields.look(name).cloned().unwrap_or_default();
    let or = |name: &str, otherwise: Value| fields.look(name).cloned().unwrap_or(otherwise);
    let reasoning = json!({"effort": null, "summary": null});
    let body = json!({
        "id": id,
        "object": "response",
        "created_at": unix_now(),
        "completed_at": null,
        "status": "in_progress",
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": said("instructions"),
        "max_output_tokens": said("max_output_tokens"),
        "max_tool_calls": null,
        "metadata": or("metadata", json!({})),
        "model": model,
        "output": [],
        "parallel_tool_calls": or("parallel_tool_calls", true.into()),
        "previous_response_id": said("previous_response_id"),
        "prompt_cache_key": said("prompt_cache_key"),
        "reasoning": or("reasoning", reasoning),
        "safety_identifier": said("safety_identifier"),
        "service_tier": "default",
        "store": or("store", true.into()),
        "text": or("text", json!({"format": {"type": "text"}})),
        "tool_choice": or("tool_choice", "auto".into()),
        "tools": or("tools", json!([])),
        "top_logprobs": or("top_logprobs", 0.into()),
        "truncation": "disabled",
        "usage": null,
        "user": said("user"),
    });
    match body {
        Value::Object(body) => body,
        _ => unreachable!("an object is an object"),
    }
}

fn tell_sampling(told: &mut Map<String, Value>, wishes: &Wishes) {
    let sampling = &wishes.sampling;
    for (name, value) in [
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
    ] {
        told.insert(name.into(), value.into());
    }
}
