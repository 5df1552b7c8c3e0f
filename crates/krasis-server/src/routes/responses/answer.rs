//! One response: items as they begin, grow and end, and the response around them.

use super::super::chat::Prompt;
use super::super::run::{Api, Whole};
use super::super::unique;
use crate::answer::{Piece, Reading, Tally};
use crate::app::unix_now;
use crate::dialect::Dialect;
use crate::error::ApiError;
use crate::items::{Change, Item, Items};
use crate::namespaces::Namespaces;
use crate::openai::ChatLogprobs;
use crate::responses::KEPT;
use crate::sse::Lines;
use crate::{App, json};
use axum::http::StatusCode;
use axum::response::Response;
use krasis_engine::Logprob;
use krasis_text::{Event, Format, Tokenizer};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A response in the making.
pub(super) struct Answer {
    pub app: Arc<App>,
    pub tokenizer: Arc<Tokenizer>,
    pub format: Format,
    pub prompt: Prompt,
    pub id: String,
    /// The response as far as it does not change.
    pub told: Map<String, Value>,
    pub namespaces: Namespaces,
    pub thoughts_kept: bool,
    pub logprobs: bool,
    /// What is kept: the conversation before the answer.
    pub messages: Option<Vec<Value>>,
    pub items: Items,
    /// What clients know about each item besides its content.
    pub heads: Vec<Head>,
    /// Events so far.
    pub sequence: u64,
    pub finish: Option<&'static str>,
}

pub(super) struct Head {
    /// The item's id.
    id: String,
    /// A call's id, to which its output refers.
    call: String,
    status: &'static str,
    logprobs: Vec<Value>,
}

impl Head {
    fn new(item: &Item) -> Head {
        let (prefix, call) = match item {
            Item::Thoughts(_) => ("rs", String::new()),
            Item::Text(_) => ("msg", String::new()),
            Item::Call(call) => {
                ("fc", call.id.clone().unwrap_or_else(|| format!("call_{}", unique())))
            }
        };
        let id = format!("{prefix}_{}", unique());
        Head { id, call, status: "in_progress", logprobs: Vec::new() }
    }
}

impl Answer {
    /// An item as a whole, whatever its state.
    fn item(&self, index: usize) -> Value {
        let Head { id, call, status, .. } = &self.heads[index];
        match &self.items.list[index] {
            Item::Thoughts(text) => {
                let content = self.part_json(index).into_iter().collect::<Vec<_>>();
                let mut item = json!({"id": id, "type": "reasoning", "status": status,
                                      "summary": [], "content": content});
                if self.thoughts_kept {
                    item["encrypted_content"] = format!("{KEPT}{text}").into();
                }
                item
            }
            Item::Text(_) => {
                let content = self.part_json(index).into_iter().collect::<Vec<_>>();
                json!({"id": id, "type": "message", "status": status, "role": "assistant",
                       "content": content})
            }
            Item::Call(known) => {
                let mut item = json!({"id": id, "type": "function_call", "status": status,
                    "call_id": call, "name": known.name, "arguments": known.arguments});
                if let Some((namespace, name)) = self.namespaces.apart(&known.name) {
                    item["name"] = name.into();
                    item["namespace"] = namespace.into();
                }
                item
            }
        }
    }

    /// The one part of an item that has parts.
    fn part_json(&self, index: usize) -> Option<Value> {
        match &self.items.list[index] {
            Item::Thoughts(text) => Some(json!({"type": "reasoning_text", "text": text})),
            Item::Text(text) => Some(json!({"type": "output_text", "text": text,
                "annotations": [], "logprobs": self.heads[index].logprobs})),
            Item::Call(_) => None,
        }
    }

    fn event(&mut self, kind: &'static str, mut body: Value, lines: &mut Lines) {
        body["type"] = kind.into();
        body["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        lines.event(kind, &body);
    }

    /// An event about an item.
    fn about(&mut self, index: usize, kind: &'static str, mut body: Value, lines: &mut Lines) {
        body["item_id"] = self.heads[index].id.clone().into();
        body["output_index"] = index.into();
        if !matches!(self.items.list[index], Item::Call(_)) {
            body["content_index"] = 0.into();
        }
        self.event(kind, body, lines);
    }

    /// An item is there, and nothing in it yet: clients add to what they are told here.
    fn begin(&mut self, index: usize, lines: &mut Lines) {
        let mut item = self.item(index);
        if !matches!(self.items.list[index], Item::Call(_)) {
            item["content"] = json!([]);
        }
        if let Some(kept) = item.get_mut("encrypted_content") {
            kept.take();
        }
        let body = json!({"output_index": index, "item": item});
        self.event("response.output_item.added", body, lines);
        if let Some(mut part) = self.part_json(index) {
            part["text"] = "".into();
            self.about(index, "response.content_part.added", json!({"part": part}), lines);
        }
    }

    fn grow(&mut self, index: usize, more: String, logprobs: Vec<Value>, lines: &mut Lines) {
        let (kind, body) = match self.items.list[index] {
            Item::Thoughts(_) => ("response.reasoning_text.delta", json!({"delta": more})),
            Item::Text(_) => {
                let body = json!({"delta": more, "logprobs": logprobs});
                self.heads[index].logprobs.extend(logprobs);
                ("response.output_text.delta", body)
            }
            Item::Call(_) => ("response.function_call_arguments.delta", json!({"delta": more})),
        };
        self.about(index, kind, body, lines);
    }

    fn end(&mut self, index: usize, lines: &mut Lines) {
        let done = match &self.items.list[index] {
            Item::Thoughts(text) => Some(("response.reasoning_text.done", json!({"text": text}))),
            Item::Text(text) => {
                let logprobs = &self.heads[index].logprobs;
                let body = json!({"text": text, "logprobs": logprobs});
                Some(("response.output_text.done", body))
            }
            Item::Call(call) => call.complete.then(|| {
                let name =
                    self.namespaces.apart(&call.name).map_or(&call.name[..], |(_, name)| name);
                let body = json!({"name": name, "arguments": call.arguments});
                ("response.function_call_arguments.done", body)
            }),
        };
        if let Some((kind, body)) = done {
            self.about(index, kind, body, lines);
        }
        if let Some(part) = self.part_json(index) {
            self.about(index, "response.content_part.done", json!({"part": part}), lines);
        }
        let body = json!({"output_index": index, "item": self.item(index)});
        self.event("response.output_item.done", body, lines);
    }

    /// Takes what the model has said and tells it. Log-probabilities go with the first text.
    fn take(&mut self, said: Vec<Event>, mut logprobs: Vec<Value>, lines: &mut Lines) {
        for event in said {
            for change in self.items.add(event) {
                self.tell(change, &mut logprobs, lines);
            }
        }
    }

    fn tell(&mut self, change: Change, logprobs: &mut Vec<Value>, lines: &mut Lines) {
        match change {
            Change::Begins(index) => {
                self.heads.push(Head::new(&self.items.list[index]));
                self.begin(index, lines);
            }
            Change::Grows(index, more) => {
                let text = matches!(self.items.list[index], Item::Text(_));
                let logprobs = if text { std::mem::take(logprobs) } else { Vec::new() };
                self.grow(index, more, logprobs, lines);
            }
            Change::Ends(index) => {
                let cut = match &self.items.list[index] {
                    Item::Call(call) => !call.complete,
                    // What another item follows is complete, whatever becomes of that.
                    _ => self.finish == Some("length"),
                };
                self.heads[index].status = if cut { "incomplete" } else { "completed" };
                self.end(index, lines);
            }
        }
    }

    fn logprobs(&self, logprobs: &[Logprob]) -> Vec<Value> {
        let entries = ChatLogprobs::new(&self.tokenizer, logprobs).content;
        let value = |entry| serde_json::to_value(entry).expect("plain structs of strings");
        entries.iter().filter(|_| self.logprobs).map(value).collect()
    }

    /// The response as it is at its end; it is kept, if it shall be.
    fn over(&mut self, tally: Tally, lines: &mut Lines) -> Value {
        if let Some(change) = self.items.end() {
            self.tell(change, &mut Vec::new(), lines);
        }
        let mut response = self.told.clone();
        let cut = self.finish == Some("length");
        let status = if cut { "incomplete" } else { "completed" };
        let details = cut.then(|| json!({"reason": "max_output_tokens"}));
        let output: Value = (0..self.heads.len()).map(|index| self.item(index)).collect();
        for (name, value) in [
            ("status", status.into()),
            ("completed_at", unix_now().into()),
            ("incomplete_details", details.into()),
            ("output", output),
            ("usage", usage(tally)),
        ] {
            response.insert(name.into(), value);
        }
        let response = Value::Object(response);
        if let Some(mut messages) = self.messages.take() {
            messages.extend(self.message());
            self.app.stored.put(&self.id, response.clone(), messages, &self.app.limits);
        }
        response
    }

    /// The answer as a message of a conversation that goes on.
    fn message(&self) -> Option<Value> {
        let (mut said, mut thoughts, mut calls) = (String::new(), String::new(), Vec::new());
        for (item, head) in self.items.list.iter().zip(&self.heads) {
            match item {
                Item::Text(text) => said += text,
                Item::Thoughts(text) => thoughts += text,
                Item::Call(call) => {
                    let function = json!({"name": call.name, "arguments": call.arguments});
                    calls.push(json!({"id": head.call, "type": "function", "function": function}));
                }
            }
        }
        let mut message = json!({"role": "assistant", "content": said});
        if !thoughts.is_empty() {
            message["reasoning_content"] = thoughts.into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        (!self.heads.is_empty()).then_some(message)
    }
}

fn usage(tally: Tally) -> Value {
    json!({
        "input_tokens": tally.prompt,
        "input_tokens_details": {"cached_tokens": tally.cached},
        "output_tokens": tally.completion,
        "output_tokens_details": {"reasoning_tokens": tally.reasoning},
        "total_tokens": tally.prompt + tally.completion,
    })
}

impl Api for Answer {
    const DIALECT: Dialect = Dialect::Responses;

    fn reading(&self) -> Reading {
        self.prompt.reading(self.format)
    }

    fn open(&mut self, _: Tally, lines: &mut Lines) {
        for kind in ["response.created", "response.in_progress"] {
            self.event(kind, json!({"response": self.told}), lines);
        }
    }

    fn prompt(&mut self, _: usize, _: &[Logprob], _: Tally, _: &mut Lines) {}

    fn part(&mut self, _: usize, piece: Piece, _: Tally, lines: &mut Lines) {
        let logprobs = self.logprobs(&piece.logprobs);
        self.take(piece.said, logprobs, lines);
        self.finish = self.finish.or(piece.finish);
    }

    fn close(&mut self, tally: Tally, lines: &mut Lines) {
        let response = self.over(tally, lines);
        let kind = match self.finish {
            Some("length") => "response.incomplete",
            _ => "response.completed",
        };
        self.event(kind, json!({"response": response}), lines);
    }

    fn fail(&mut self, error: &ApiError, lines: &mut Lines) {
        let mut response = self.told.clone();
        response.insert("status".into(), "failed".into());
        let output: Value = (0..self.heads.len()).map(|index| self.item(index)).collect();
        response.insert("output".into(), output);
        let error = json!({"code": "server_error", "message": error.message});
        response.insert("error".into(), error);
        self.event("response.failed", json!({"response": response}), lines);
    }

    fn whole(&mut self, answers: Vec<Whole>, tally: Tally) -> Response {
        // The events are those of a stream that nobody reads.
        for piece in answers.into_iter().flat_map(|whole| whole.pieces) {
            let mut lines = Lines::default();
            self.part(0, piece, tally, &mut lines);
        }
        let response = self.over(tally, &mut Lines::default());
        json::response(StatusCode::OK, &response)
    }
}
