//! Chat messages and tools: what is refused, and the few variants that become one.

use crate::error::ApiError;
use serde_json::{Map, Value, json};

/// Checks a conversation and brings it to the form that templates know.
pub(crate) fn checked(messages: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages is empty: give at least one"));
    }
    let mut calls = Vec::new();
    let mut checked = Vec::with_capacity(messages.len());
    for (index, message) in messages.into_iter().enumerate() {
        let field = format!("messages[{index}]");
        let Value::Object(message) = message else {
            return Err(ApiError::field(&field, format!("{field} is not an object")));
        };
        checked.push(Value::Object(one(message, &field, &mut calls)?));
    }
    Ok(checked)
}

/// One message. `calls` collects the ids of tool calls, which results refer to.
fn one(
    mut message: Map<String, Value>,
    field: &str,
    calls: &mut Vec<String>,
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
        assistant(&mut message);
        for call in message.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            calls.extend(call["id"].as_str().map(str::to_owned));
        }
    }
    if let Some(id) = message.get("tool_call_id").and_then(Value::as_str)
        && !calls.iter().any(|call| call == id)
    {
        let field = format!("{field}.tool_call_id");
        let message = format!("{field} is '{id}', which no tool call before it has as its id");
        return Err(ApiError::field(field, message));
    }
    content(&mut message, field)?;
    Ok(message)
}

fn assistant(message: &mut Map<String, Value>) {
    if let Some(call) = message.shift_remove("function_call") {
        let call = json!([{"type": "function", "function": call}]);
        message.entry("tool_calls").or_insert(call);
    }
    // Both names are in use; templates ask for the first.
    if let Some(reasoning) = message.get("reasoning").cloned() {
        message.entry("reasoning_content").or_insert(reasoning);
    }
}

fn content(message: &mut Map<String, Value>, field: &str) -> Result<(), ApiError> {
    let silent = message.contains_key("tool_calls") || message["role"] == "assistant";
    let field = format!("{field}.content");
    match message.get_mut("content") {
        None if silent => {
            message.insert("content".into(), Value::Null);
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

/// The tools to render: those given, less those that `tool_choice` leaves out. A choice that
/// demands a call is rendered like `auto`, since answers are not constrained yet.
pub(crate) fn tools(
    tools: Option<Vec<Value>>,
    choice: Option<Value>,
) -> Result<Vec<Value>, ApiError> {
    let tools = tools.unwrap_or_default();
    for (index, tool) in tools.iter().enumerate() {
        if !tool["function"]["name"].is_string() {
            let field = format!("tools[{index}]");
            let message = format!("{field} is not a function with a name");
            return Err(ApiError::field(field, message));
        }
    }
    let refused = |message: String| Err(ApiError::field("tool_choice", message));
    let known = |name: &str| tools.iter().any(|tool| tool["function"]["name"] == name);
    let choice = choice.unwrap_or_else(|| "auto".into());
    let mode = choice.as_str().or_else(|| choice["type"].as_str()).unwrap_or_default();
    match mode {
        "auto" => Ok(tools),
        "none" => Ok(Vec::new()),
        "required" if tools.is_empty() => refused("tool_choice is required without tools".into()),
        "required" => Ok(tools),
        "function" => match choice["function"]["name"].as_str() {
            Some(name) if known(name) => Ok(tools),
            name => refused(format!(
                "tool_choice names '{}', which is not among the tools",
                name.unwrap_or_default()
            )),
        },
        "allowed_tools" => {
            let allowed = choice["allowed_tools"]["tools"].as_array().cloned().unwrap_or_default();
            let allowed = |tool: &Value| {
                let name = &tool["function"]["name"];
                allowed.iter().any(|one| one["function"]["name"] == *name || one["name"] == *name)
            };
            Ok(tools.into_iter().filter(allowed).collect())
        }
        _ => refused("tool_choice must be none, auto, required or name a function".into()),
    }
}
