//! Text to token ids and back, in the shapes of vLLM, which lm-evaluation-harness uses.

use super::chat::{self, Prompt};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::tools::Tools;
use crate::{App, Loaded, json, messages};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;

/// `POST /tokenize`
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let loaded = app.model(fields.take::<String>("model")?.as_deref())?;
    let strings = fields.flag("return_token_strs")?;
    let texts = loaded.clone();
    let ids: Vec<u32> = match fields.take("messages")? {
        Some(messages) => {
            let messages = messages::checked(messages)?;
            let tools = Tools::take(&mut fields)?;
            let render = chat::render(&mut fields, &tools)?;
            let prompt = move || Ok(Prompt::new(&texts, &messages, render, tools)?.ids);
            blocking(prompt).await?
        }
        None => {
            let missing = || ApiError::field("prompt", "prompt is missing");
            let prompt = fields.take::<String>("prompt")?.ok_or_else(missing)?;
            let specials = fields.take("add_special_tokens")?.unwrap_or(true);
            blocking(move || encode(&texts, &prompt, specials)).await?
        }
    };
    let mut body = json!({
        "count": ids.len(),
        "max_model_len": loaded.handle.facts.context_max,
        "tokens": ids,
        "token_strs": null,
    });
    if strings {
        body["token_strs"] = ids.iter().map(|&id| loaded.tokenizer.token_text(id)).collect();
    }
    Ok(json::response(StatusCode::OK, &body))
}

fn encode(loaded: &Loaded, prompt: &str, specials: bool) -> Result<Vec<u32>, ApiError> {
    let ids = match specials {
        true => loaded.tokenizer.encode(prompt),
        false => loaded.tokenizer.encode_rendered(prompt),
    };
    ids.map_err(|error| ApiError { param: Some("prompt".into()), ..error.into() })
}

/// Tokenizers take their time with long texts; other requests go on meanwhile.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await?
}

/// `POST /detokenize`
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let loaded = app.model(fields.take::<String>("model")?.as_deref())?;
    let missing = || ApiError::field("tokens", "tokens is missing");
    let ids = fields.take::<Vec<u32>>("tokens")?.ok_or_else(missing)?;
    let vocab = loaded.handle.facts.vocab;
    if let Some(id) = ids.iter().find(|&&id| id >= vocab) {
        let message = format!("tokens holds {id}, but the vocabulary ends at {}", vocab - 1);
        return Err(ApiError::field("tokens", message));
    }
    let prompt = blocking(move || Ok(loaded.tokenizer.decode_all(&ids))).await?;
    Ok(json::response(StatusCode::OK, &json!({"prompt": prompt})))
}

/// `GET /tokenizer_info`
pub(super) async fn info(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let loaded = app.model(None)?;
    let specials = &loaded.tokenizer.specials;
    let template = loaded.template.as_ref().map_or(Value::Null, |known| known.source().into());
    let body = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": specials.bos,
        "eos_token": specials.eos,
        "unk_token": specials.unk,
        "pad_token": specials.pad,
        "chat_template": template,
    });
    Ok(json::response(StatusCode::OK, &body))
}
