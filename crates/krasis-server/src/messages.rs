//! Chat messages: what is refused, and the variants that become one.
//!
//! Past calls and their results are history: clients keep them as some server sent them, so what
//! is odd about them is mended where its meaning is plain. Only a result of a call that nobody
//! made is refused.

use crate::error::ApiError;
use crate::noise;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;

/// Checks a conversation and brings it to the form that templates know.
pub(crate) fn checked(messages: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages is empty: give at least one"));
    }
    let mut calls = Calls::default();
    let mut checked = Vec::with_capacity(messages.len());
    for (index, message) in messages.into_iter().enumerate() {
        let field = format!("messages[{index}]");
        let Value::Object(message) = message else {
            return Err(ApiError::field(&field, format!("{field} is not an object")));
        };
        let mut message = one(message, &field, &mut calls)?;
        let system = matches!(message["role"].as_str(), Some("system" | "developer"));
        if system && quieted(&mut message["content"]) == Left::Nothing {
            continue;
        }
        checked.push(Value::Object(message));
    }
    Ok(checked)
}

/// Whether something is left of a text.
#[derive(PartialEq)]
enum Left {
    Nothing,
    Something,
}

/// Takes out of a system message what is none of the model's business.
fn quieted(content: &mut Value) -> Left {
    let quiet = |text: &mut String| {
        let rest = noise::quiet(text);
        if rest.len() == text.len() {
            return Left::Something;
        }
        *text = rest.to_owned();
        if text.is_empty() { Left::Nothing } else { Left::Something }
    };
    match content {
        Value::String(text) => quiet(text),
        Value::Array(parts) => {
            let given = parts.len();
            parts.retain_mut(|part| match &mut part["text"] {
                Value::String(text) => quiet(text) == Left::Something,
                _ => true,
            });
            if parts.is_empty() && given > 0 { Left::Nothing } else { Left::Something }
        }
        _ => Left::Something,
    }
}

/// The calls of a conversation so far.
#[derive(Default)]
struct Calls {
    /// Their ids.
    ids: Vec<String>,
    /// Positions of those without a result.
    unanswered: VecDeque<usize>,
    /// Positions of those that came without an id, and got one.
    nameless: Vec<usize>,
}

impl Calls {
    fn made(&mut self, call: &mut Value) {
        let index = self.ids.len();
        let id = match call["id"].as_str().filter(|id| !id.is_empty()) {
            Some(id) => id.to_owned(),
            None => {
                // The same in every request, or prompts would not be known again.
                self.nameless.push(index);
                format!("call_{index}")
            }
        };
        call["id"] = id.clone().into();
        self.ids.push(id);
        self.unanswered.push_back(index);
    }

    /// The id of the call that a result belongs to: the one that it names, or without a name the
    /// first that has no result yet. `None` if there is no such call.
    fn answered(&mut self, id: Option<&str>) -> Option<String> {
        let known = |&index: &usize| id.is_none_or(|id| self.ids[index] == id);
        let place = self.unanswered.iter().position(known).or_else(|| {
            // An id that the call itself lacked.
            let unknown = id.is_some_and(|id| !self.ids.iter().any(|known| known == id));
            let nameless = |index: &usize| unknown && self.nameless.contains(index);
            self.unanswered.iter().position(nameless)
        });
        match place.and_then(|place| self.unanswered.remove(place)) {
            Some(index) => Some(self.ids[index].clone()),
            // A second result, which some clients send in parts.
            None => self.ids.iter().find(|known| id == Some(known.as_str())).cloned(),
        }
    }
}

/// One message.
fn one(
    mut message: Map<String, Value>,
    field: &str,
    calls: &mut Calls,
) -> Result<Map<String, Value>, ApiError> {
    message.retain(|_, value| !value.is_null());
    let role = message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
    match role.as_str() {
        "system" | "developer" | "user" | "assistant" | "tool" => {}
        // The form that tools had before tool calls.
        "function" => drop(message.insert("role".into(), "tool".into())),
        _ => {
            let field = format!("{field}.role");
            let message = format!(
                "{field} is '{role}', but must be system, developer, user, assistant or tool"
            );
            return Err(ApiError::field(field, message));
        }
    }
    if role == "assistant" {
        assistant(&mut message, field)?;
        let past = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        past.into_iter().flatten().for_each(|call| calls.made(call));
    }
    if matches!(role.as_str(), "tool" | "function") {
        let id = message.get("tool_call_id").and_then(Value::as_str);
        match (calls.answered(id), id) {
            (Some(id), _) => drop(message.insert("tool_call_id".into(), id.into())),
            (None, None) => {}
            (None, Some(id)) => {
                let field = format!("{field}.tool_call_id");
                let message =
                    format!("{field} is '{id}', which no tool call before it has as its id");
                return Err(ApiError::field(field, message));
            }
        }
    }
    content(&mut message, field)?;
    Ok(message)
}

fn assistant(message: &mut Map<String, Value>, field: &str) -> Result<(), ApiError> {
    if let Some(call) = message.shift_remove("function_call") {
        let call = json!([{"type": "function", "function": call}]);
        message.entry("tool_calls").or_insert(call);
    }
    if let Some(reasoning) = message.get("reasoning").filter(|reasoning| reasoning.is_string()) {
        // Both names are in use; templates ask for the first.
        let reasoning = reasoning.clone();
        message.entry("reasoning_content").or_insert(reasoning);
    }
    let Some(calls) = message.get_mut("tool_calls") else { return Ok(()) };
    let Some(calls) = calls.as_array_mut() else {
        let field = format!("{field}.tool_calls");
        let message = format!("{field} must be a list of calls");
        return Err(ApiError::field(field, message));
    };
    for (index, call) in calls.iter_mut().enumerate() {
        // Some clients send the function's fields without the envelope.
        if call["function"].is_null() && call["name"].is_string() {
            let mut function = Map::new();
            for name in ["name", "arguments"] {
                function.insert(name.into(), call[name].clone());
            }
            *call = json!({"id": call["id"], "type": "function", "function": function});
        }
        if !call["function"]["name"].is_string() {
            let field = format!("{field}.tool_calls[{index}]");
            let message = format!("{field} is not a call of a function with a name");
            return Err(ApiError::field(field, message));
        }
        call["type"] = "function".into();
        if call["function"]["arguments"].is_null() {
            call["function"]["arguments"] = "{}".into();
        }
    }
    if calls.is_empty() {
        message.shift_remove("tool_calls");
    }
    Ok(())
}

fn content(message: &mut Map<String, Value>, field: &str) -> Result<(), ApiError> {
    let silent = message.contains_key("tool_calls") || message["role"] == "assistant";
    let result = message["role"] == "tool";
    let field = format!("{field}.content");
    match message.get_mut("content") {
        None if silent => {
            message.insert("content".into(), Value::Null);
            Ok(())
        }
        // A tool that had nothing to say.
        None if result => {
            message.insert("content".into(), "".into());
            Ok(())
        }
        None => Err(ApiError::field(&field, format!("{field} is missing"))),
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(parts)) => {
            for (index, part) in parts.iter_mut().enumerate() {
                let kind = part["type"].as_str().unwrap_or_default();
                let is_text = matches!(kind, "text" | "input_text" | "output_text");
                if !is_text || !part["text"].is_string() {
                    let field = format!("{field}[{index}]");
                    let message =
                        format!("{field} is of type '{kind}': this model reads text parts only");
                    return Err(ApiError::field(field, message));
                }
                part["type"] = "text".into();
            }
            Ok(())
        }
        Some(_) => {
            let message = format!("{field} must be a string or a list of parts");
            Err(ApiError::field(&field, message))
        }
    }
}
