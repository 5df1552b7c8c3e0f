//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's API.

use super::chat::{Asked, Prompt, Room};
use super::run::{Api, Run, Whole};
use super::unique;
use crate::answer::{Piece, Reading, Tally};
use crate::dialect::Dialect;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::items::{Call, Change, Item, Items};
use crate::sse::Lines;
use crate::{App, anthropic, json};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use krasis_engine::Logprob;
use krasis_text::Format;
use serde_json::{Value, json};
use std::sync::Arc;

/// Stands where Anthropic signs thoughts: clients drop thoughts without a signature from the
/// conversation, and here nothing has to be proved.
const SIGNATURE: &str = "krasis";

/// `POST /v1/messages`
pub(super) async fn create(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let loaded = app.model(fields.take::<String>("model")?.as_deref())?;
    anthropic::into_chat(&mut fields)?;
    let Asked { wishes, prompt, requests, .. } =
        Asked::take(&loaded, &mut fields, Room::AtMost).await?;
    let message = Message {
        id: format!("msg_{}", unique()),
        model: app.name().to_owned(),
        format: loaded.answers.format,
        prompt,
        items: Items::default(),
        end: End::default(),
    };
    Run::start(&app, &loaded, &wishes, requests, message)?.respond().await
}

/// `POST /v1/messages/count_tokens`: what the prompt has with system, tools and template.
pub(super) async fn count(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let loaded = app.model(fields.take::<String>("model")?.as_deref())?;
    anthropic::into_chat(&mut fields)?;
    let prompt = Prompt::take(&loaded, &mut fields).await?;
    Ok(json::response(StatusCode::OK, &json!({"input_tokens": prompt.ids.len()})))
}

/// The assistant's message.
struct Message {
    id: String,
    model: String,
    format: Format,
    prompt: Prompt,
    items: Items,
    end: End,
}

/// Why the message ended.
#[derive(Default)]
struct End {
    finish: Option<&'static str>,
    stopped_by: Option<String>,
}

impl End {
    fn reason(&self) -> &'static str {
        match (self.finish, &self.stopped_by) {
            (Some("tool_calls"), _) => "tool_use",
            (Some("length"), _) => "max_tokens",
            (_, Some(_)) => "stop_sequence",
            _ => "end_turn",
        }
    }

    /// What called tools was not stopped for its own sake.
    fn sequence(&self) -> Option<&str> {
        self.stopped_by.as_deref().filter(|_| self.reason() == "stop_sequence")
    }
}

impl Message {
    fn json(&self, content: Vec<Value>, end: Option<&End>, usage: Value) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": end.map(End::reason),
            "stop_sequence": end.and_then(End::sequence),
            "usage": usage,
        })
    }

    fn tell(&self, change: Change, lines: &mut Lines) {
        let (kind, index, name, value) = match change {
            Change::Begins(index) => {
                let block = beginning(&self.items.list[index]);
                ("content_block_start", index, "content_block", block)
            }
            Change::Grows(index, more) => {
                let delta = match &self.items.list[index] {
                    Item::Thoughts(_) => json!({"type": "thinking_delta", "thinking": more}),
                    Item::Text(_) => json!({"type": "text_delta", "text": more}),
                    Item::Call(_) => json!({"type": "input_json_delta", "partial_json": more}),
                };
                ("content_block_delta", index, "delta", delta)
            }
            Change::Ends(index) => {
                if let Item::Thoughts(_) = self.items.list[index] {
                    let delta = json!({"type": "signature_delta", "signature": SIGNATURE});
                    let kind = "content_block_delta";
                    lines.event(kind, &json!({"type": kind, "index": index, "delta": delta}));
                }
                let kind = "content_block_stop";
                return lines.event(kind, &json!({"type": kind, "index": index}));
            }
        };
        lines.event(kind, &json!({"type": kind, "index": index, name: value}));
    }
}

/// A block as it begins.
fn beginning(item: &Item) -> Value {
    match item {
        Item::Thoughts(_) => json!({"type": "thinking", "thinking": "", "signature": ""}),
        Item::Text(_) => json!({"type": "text", "text": ""}),
        Item::Call(call) => {
            json!({"type": "tool_use", "id": id(call), "name": call.name, "input": {}})
        }
    }
}

/// A whole block. A call that was cut off is none: its input must be an object, and half of one
/// would look like all.
fn block(item: &Item) -> Option<Value> {
    match item {
        Item::Thoughts(text) => {
            Some(json!({"type": "thinking", "thinking": text, "signature": SIGNATURE}))
        }
        Item::Text(text) => Some(json!({"type": "text", "text": text})),
        Item::Call(call) => {
            let input: Value = serde_json::from_str(&call.arguments).ok()?;
            let (id, name) = (id(call), &call.name);
            let block = json!({"type": "tool_use", "id": id, "name": name, "input": input});
            call.complete.then_some(block)
        }
    }
}

fn id(call: &Call) -> String {
    call.id.clone().unwrap_or_else(|| format!("toolu_{}", unique()))
}

/// Anthropic counts the tokens of the prompt that were read apart from those that were found.
fn usage(tally: Tally) -> Value {
    json!({
        "input_tokens": tally.prompt.saturating_sub(tally.cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tally.cached,
        "output_tokens": tally.completion,
    })
}

impl Api for Message {
    const DIALECT: Dialect = Dialect::Anthropic;

    fn reading(&self) -> Reading {
        self.prompt.reading(self.format)
    }

    fn open(&mut self, tally: Tally, lines: &mut Lines) {
        let message = self.json(Vec::new(), None, usage(tally));
        lines.event("message_start", &json!({"type": "message_start", "message": message}));
        lines.event("ping", &json!({"type": "ping"}));
    }

    fn prompt(&mut self, _: usize, _: &[Logprob], _: Tally, _: &mut Lines) {}

    fn part(&mut self, _: usize, piece: Piece, _: Tally, lines: &mut Lines) {
        for event in piece.said {
            for change in self.items.add(event) {
                self.tell(change, lines);
            }
        }
        if piece.finish.is_some() {
            self.end = End { finish: piece.finish, stopped_by: piece.stopped_by };
        }
    }

    fn close(&mut self, tally: Tally, lines: &mut Lines) {
        if let Some(change) = self.items.end() {
            self.tell(change, lines);
        }
        let delta = json!({"stop_reason": self.end.reason(), "stop_sequence": self.end.sequence()});
        let kind = "message_delta";
        lines.event(kind, &json!({"type": kind, "delta": delta, "usage": usage(tally)}));
        lines.event("message_stop", &json!({"type": "message_stop"}));
    }

    fn whole(&mut self, answers: Vec<Whole>, tally: Tally) -> Response {
        for piece in answers.into_iter().flat_map(|whole| whole.pieces) {
            for event in piece.said {
                self.items.add(event);
            }
            self.end = End { finish: piece.finish, stopped_by: piece.stopped_by };
        }
        let content = self.items.list.iter().filter_map(block).collect();
        let message = self.json(content, Some(&self.end), usage(tally));
        json::response(StatusCode::OK, &message)
    }
}
