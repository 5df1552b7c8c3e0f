//! OpenAI messages in the shape that a template takes.

use super::probe::{Arguments, Content, Interjection, Shape, silence_message};
use crate::TextError;
use crate::answer::ToolFormat;
use serde_json::{Value, json};
use std::collections::HashMap;

/// The messages with content, arguments and roles as the template needs them. Order is kept:
/// a system message in the middle stays there, or every turn would change the prompt's prefix.
pub(super) fn shaped(messages: &[Value], shape: &Shape) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for (index, message) in messages.iter_mut().enumerate() {
        if message["role"] == "developer" && !shape.developer {
            message["role"] = json!("system");
        }
        let system = matches!(message["role"].as_str(), Some("system" | "developer"));
        if index > 0 && system && shape.interjection == Interjection::User {
            message["role"] = json!("user");
        }
        if let Some(thoughts) = message.get("reasoning_content").filter(|_| shape.thinking) {
            message["thinking"] = thoughts.clone();
        }
        shape_content(message, shape);
        shape_arguments(message, shape);
    }
    if shape.format.tools == Some(ToolFormat::KimiK2) {
        number_calls(&mut messages);
    }
    messages
}

/// Kimi's template prints a call's id where the model writes name and number, so ids that come
/// from elsewhere would teach it another format.
fn number_calls(messages: &mut [Value]) {
    let mut ids: HashMap<String, String> = HashMap::new();
    let mut count = 0;
    for message in messages {
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten().filter(|call| call.is_object()) {
            let id = call["id"].as_str().unwrap_or_default().to_owned();
            if !id.starts_with("functions.") {
                let name = call["function"]["name"].as_str().unwrap_or_default();
                let numbered = format!("functions.{name}:{count}");
                call["id"] = numbered.clone().into();
                ids.insert(id, numbered);
            }
            count += 1;
        }
        if let Some(id) = message["tool_call_id"].as_str().and_then(|id| ids.get(id)) {
            message["tool_call_id"] = id.clone().into();
        }
    }
}

fn shape_content(message: &mut Value, shape: &Shape) {
    let calls = message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty());
    let content = match message.get("content") {
        None | Some(Value::Null) => return silence_message(message, shape.silence),
        Some(Value::String(text)) if text.is_empty() && calls => {
            return silence_message(message, shape.silence);
        }
        Some(Value::String(text)) if shape.content == Content::Parts => {
            json!([{"type": "text", "text": text}])
        }
        Some(Value::Array(parts)) if shape.content == Content::String => joined(parts).into(),
        Some(_) => return,
    };
    message["content"] = content;
}

/// Text of all parts, one line each (as vLLM joins them).
fn joined(parts: &[Value]) -> String {
    let texts = parts.iter().filter_map(|part| part["text"].as_str().or(part.as_str()));
    texts.collect::<Vec<_>>().join("\n")
}

/// Arguments that are no JSON object come from models that were cut off or slipped. The call is
/// history, so a conversation with it must go on: where only an object can be printed, it is
/// their text under one name.
fn shape_arguments(message: &mut Value, shape: &Shape) {
    let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) else { return };
    for tool_call in calls {
        // Some clients send the function's fields without the envelope.
        let function = match tool_call.get_mut("function") {
            Some(function) => function,
            None => tool_call,
        };
        let Some(arguments) = function.get_mut("arguments") else { continue };
        *arguments = match (&*arguments, shape.arguments) {
            (Value::String(_), Arguments::String) | (Value::Object(_), Arguments::Mapping) => {
                continue;
            }
            (Value::String(text), Arguments::Mapping) if text.trim().is_empty() => json!({}),
            (Value::String(text), Arguments::Mapping) => match serde_json::from_str(text) {
                Ok(Value::Object(mapping)) => Value::Object(mapping),
                _ => json!({"arguments": text}),
            },
            (Value::Null, Arguments::Mapping) => json!({}),
            (value, Arguments::Mapping) => json!({"arguments": value}),
            (value, Arguments::String) => value.to_string().into(),
        };
    }
}

/// Bytes of all strings: what bounds of time and output are proportional to.
pub(super) fn text_bytes(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(|item| 1 + text_bytes(item)).sum(),
        Value::Object(items) => {
            items.iter().map(|(name, item)| name.len() as u64 + text_bytes(item)).sum()
        }
        _ => 8,
    }
}

/// The end of a message that the model shall continue, marked so that it is found again in the
/// rendered text, whatever the template writes behind it.
pub(super) struct Open;

const MARK: &str = "KRASIS_CONTINUES_HERE";

impl Open {
    /// Marks the end of the last message.
    pub fn mark(messages: &mut [Value]) -> Result<Open, TextError> {
        let refused = || TextError::Message {
            field: "continue_final_message".into(),
            reason: "the last message has no text to continue".into(),
        };
        let content = messages.last_mut().and_then(|last| last.get_mut("content"));
        let text = match content.ok_or_else(refused)? {
            content @ Value::String(_) => content,
            Value::Array(parts) => {
                let text = parts.last_mut().and_then(|part| part.get_mut("text"));
                text.ok_or_else(refused)?
            }
            _ => return Err(refused()),
        };
        // The space tells whether the template trims what it prints: if it does, then the text
        // before the mark would have been trimmed too.
        *text = format!("{}{MARK} ", text.as_str().ok_or_else(refused)?).into();
        Ok(Open)
    }

    /// The rendered text up to the mark.
    pub fn cut(self, mut text: String) -> Result<String, TextError> {
        let Some(at) = text.rfind(MARK) else {
            return Err(TextError::Message {
                field: "continue_final_message".into(),
                reason: "this model's template does not print the last message".into(),
            });
        };
        let spaced = text[at + MARK.len()..].starts_with(' ');
        text.truncate(at);
        if !spaced {
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }
}
