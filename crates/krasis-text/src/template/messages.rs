//! OpenAI messages in the shape that a template takes.

use super::probe::{Arguments, Content, Shape, silence_message};
use crate::TextError;
use serde_json::{Value, json};

/// The messages with content, arguments and roles as the template needs them. Order is kept:
/// a system message in the middle stays there, or every turn would change the prompt's prefix.
pub(super) fn shaped(messages: &[Value], shape: &Shape) -> Result<Vec<Value>, TextError> {
    let shaped = messages.iter().enumerate().map(|(index, message)| {
        let mut message = message.clone();
        if message["role"] == "developer" && !shape.developer {
            message["role"] = json!("system");
        }
        shape_content(&mut message, shape);
        shape_arguments(&mut message, shape, index)?;
        Ok(message)
    });
    shaped.collect()
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

fn shape_arguments(message: &mut Value, shape: &Shape, index: usize) -> Result<(), TextError> {
    let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) else {
        return Ok(());
    };
    for (call, tool_call) in calls.iter_mut().enumerate() {
        // Some clients send the function's fields without the envelope.
        let function = match tool_call.get_mut("function") {
            Some(function) => function,
            None => tool_call,
        };
        let Some(arguments) = function.get_mut("arguments") else { continue };
        let shaped = match (&*arguments, shape.arguments) {
            (Value::String(text), Arguments::Mapping) if text.trim().is_empty() => json!({}),
            (Value::String(text), Arguments::Mapping) => match serde_json::from_str(text) {
                Ok(Value::Object(mapping)) => Value::Object(mapping),
                _ => {
                    let reason = "this model's template needs the arguments of a past tool call \
                                  as a JSON object in a string, such as \"{\\\"city\\\": \
                                  \\\"Oslo\\\"}\"";
                    return Err(TextError::Message {
                        field: format!("messages[{index}].tool_calls[{call}].function.arguments"),
                        reason: reason.into(),
                    });
                }
            },
            (Value::Object(mapping), Arguments::String) => {
                Value::Object(mapping.clone()).to_string().into()
            }
            _ => continue,
        };
        *arguments = shaped;
    }
    Ok(())
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
