//! Requests of OpenAI's Responses API as chats: its items become messages.

use crate::error::ApiError;
use crate::fields::Fields;
use crate::namespaces;
use serde_json::{Map, Value, json};

/// What stands before thoughts that were given to a client to keep: `encrypted_content`, in which
/// OpenAI's clients send back thoughts. Here it hides nothing that the client may not read.
pub(crate) const KEPT: &str = "krasis:";

/// Items of what servers did on their own, which say nothing to a model of text.
const SILENT: [&str; 5] = [
    "web_search_call",
    "file_search_call",
    "image_generation_call",
    "code_interpreter_call",
    "mcp_list_tools",
];

/// Puts a chat's fields into the place of a response's, after an `earlier` conversation. Returns the
/// conversation to which the answer will belong: instructions hold for one answer only.
pub(crate) fn into_chat(fields: &mut Fields, earlier: &[Value]) -> Result<Vec<Value>, ApiError> {
    refuse(fields)?;
    let instructions: Option<String> = fields.take("instructions")?;
    let mut conversation = Conversation { messages: earlier.to_vec(), earlier: earlier.len() };
    match fields.value("input") {
        Some(Value::String(text)) => conversation.say("user", text.into()),
        Some(Value::Array(items)) => {
            for (index, item) in items.into_iter().enumerate() {
                conversation.add(item, &format!("input[{index}]"))?;
            }
        }
        Some(_) => {
            return Err(ApiError::field("input", "input must be a text or a list of items"));
        }
        None => return Err(ApiError::field("input", "input is missing")),
    }
    let mut messages = conversation.messages.clone();
    if let Some(instructions) = instructions.filter(|text| !text.is_empty()) {
        messages.insert(0, json!({"role": "system", "content": instructions}));
    }
    join_systems(&mut messages);
    if messages.is_empty() {
        // Codex asks this way whether anybody is there.
        messages.push(json!({"role": "user", "content": ""}));
    }
    fields.put("messages", messages.into());
    if let Some(tokens) = fields.within("max_output_tokens", 1, u32::MAX)? {
        fields.put("max_tokens", tokens.into());
    }
    form(fields)?;
    reasoning(fields)?;
    fields.check()?;
    Ok(conversation.messages)
}

/// What would change the answer, and is not there.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    if fields.flag("background")? {
        let message = "background is not supported: answers are given while the client waits";
        return Err(ApiError::unsupported("background", message));
    }
    for name in ["conversation", "prompt"] {
        if fields.value(name).is_some() {
            let message = format!(
                "{name} is not supported: send the conversation in input, or name its end \
                         in previous_response_id"
            );
            return Err(ApiError::unsupported(name, message));
        }
    }
    Ok(())
}

/// Templates know a system message at the beginning; clients send instructions and more of the kind
/// behind them.
fn join_systems(messages: &mut Vec<Value>) {
    let system = |message: &&Value| {
        matches!(message["role"].as_str(), Some("system" | "developer"))
            && message["content"].is_string()
    };
    let count = messages.iter().take_while(system).count();
    if count > 1 {
        let rest = messages.split_off(count);
        let texts: Vec<&str> =
            messages.iter().filter_map(|message| message["content"].as_str()).collect();
        *messages = vec![json!({"role": "system", "content": texts.join("\n\n")})];
        messages.extend(rest);
    }
}

/// Messages in the making.
struct Conversation {
    messages: Vec<Value>,
    /// Those that are not to be added to.
    earlier: usize,
}

impl Conversation {
    fn say(&mut self, role: &str, content: Value) {
        self.messages.push(json!({"role": role, "content": content}));
    }

    fn add(&mut self, mut item: Value, field: &str) -> Result<(), ApiError> {
        let message = if item["role"].is_string() { "message" } else { "" };
        let kind = item["type"].as_str().unwrap_or(message).to_owned();
        match kind.as_str() {
            "message" => self.message(&mut item, field),
            "reasoning" => {
                let thoughts = thoughts(&item);
                if !thoughts.is_empty() {
                    append(self.assistant(), "reasoning_content", &thoughts);
                }
                Ok(())
            }
            "function_call" | "custom_tool_call" => {
                let arguments = match item.get_mut("input").map(Value::take) {
                    Some(input) => json!({"input": input}).to_string().into(),
                    None => item["arguments"].take(),
                };
                let function = json!({"name": namespaces::called(&item), "arguments": arguments});
                let call = json!({"id": item["call_id"], "type": "function", "function": function});
                let calls = self.assistant().entry("tool_calls").or_insert(json!([]));
                calls.as_array_mut().into_iter().for_each(|calls| calls.push(call.clone()));
                Ok(())
            }
            "function_call_output" | "custom_tool_call_output" => {
                let content = output(&item["output"]);
                let id = &item["call_id"];
                let result = json!({"role": "tool", "tool_call_id": id, "content": content});
                self.messages.push(result);
                Ok(())
            }
            "item_reference" => {
                let message = format!(
                    "{field} refers to an item: send the item, or name the response that it ends \
                     in previous_response_id"
                );
                Err(ApiError::unsupported(field, message))
            }
            kind if SILENT.contains(&kind) => Ok(()),
            kind => {
                let message = format!("{field} is of type '{kind}', which this model cannot read");
                Err(ApiError::field(field, message))
            }
        }
    }

    fn message(&mut self, item: &mut Value, field: &str) -> Result<(), ApiError> {
        let text = text(item.get_mut("content").map(Value::take), &format!("{field}.content"))?;
        match item["role"].as_str().unwrap_or_default() {
            "assistant" => append(self.assistant(), "content", &text),
            role @ ("user" | "system" | "developer") => self.say(role, text.into()),
            role => {
                let field = format!("{field}.role");
                let message = format!(
                    "{field} is '{role}', but must be user, assistant, system or developer"
                );
                return Err(ApiError::field(field, message));
            }
        }
        Ok(())
    }

    /// The assistant's message in which thoughts, words and calls of one turn come together.
    fn assistant(&mut self) -> &mut Map<String, Value> {
        let last = self.messages.last().filter(|_| self.messages.len() > self.earlier);
        if last.is_none_or(|last| last["role"] != "assistant") {
            self.say("assistant", Value::Null);
        }
        let last = self.messages.last_mut().and_then(Value::as_object_mut);
        last.expect("messages are objects, and there is one")
    }
}

fn append(message: &mut Map<String, Value>, name: &str, more: &str) {
    let known = message.get(name).and_then(Value::as_str).unwrap_or_default();
    message.insert(name.into(), format!("{known}{more}").into());
}

/// The text of a message's content.
fn text(content: Option<Value>, field: &str) -> Result<String, ApiError> {
    let parts = match content {
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) => parts,
        _ => {
            let message = format!("{field} must be a text or a list of parts");
            return Err(ApiError::field(field, message));
        }
    };
    let text = |(index, part): (usize, &Value)| {
        let kind = part["type"].as_str().unwrap_or_default();
        let name = if kind == "refusal" { "refusal" } else { "text" };
        let known = matches!(kind, "input_text" | "output_text" | "text" | "refusal");
        part[name].as_str().filter(|_| known).map(str::to_owned).ok_or_else(|| {
            let field = format!("{field}[{index}]");
            let message = format!("{field} is of type '{kind}': this model reads text parts only");
            ApiError::field(field, message)
        })
    };
    let texts: Vec<String> = parts.iter().enumerate().map(text).collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

/// Thoughts in the clear, or as they were given to the client to keep.
fn thoughts(item: &Value) -> String {
    let texts = |name: &str| -> String {
        let parts = item[name].as_array().into_iter().flatten();
        parts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
    };
    let kept = || item["encrypted_content"].as_str().and_then(|text| text.strip_prefix(KEPT));
    match texts("content") {
        text if !text.is_empty() => text,
        _ => kept().map_or_else(|| texts("summary"), str::to_owned),
    }
}

/// What a function returned. A picture must not end the conversation: the model is told that it
/// cannot see it.
fn output(output: &Value) -> String {
    let part = |part: &Value| match part["text"].as_str() {
        Some(text) => text.to_owned(),
        None => format!("[{}: not readable here]", part["type"].as_str().unwrap_or("something")),
    };
    match output {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(part).collect::<Vec<_>>().join("\n"),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// `text.format` is what chats call `response_format`.
fn form(fields: &mut Fields) -> Result<(), ApiError> {
    let text: Option<Map<String, Value>> = fields.take("text")?;
    let format = text.and_then(|mut text| text.shift_remove("format"));
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(()) };
    let format = match format["type"].as_str() {
        Some("json_schema") => {
            let mut schema = format;
            if let Some(schema) = schema.as_object_mut() {
                schema.shift_remove("type");
            }
            json!({"type": "json_schema", "json_schema": schema})
        }
        _ => format,
    };
    fields.put("response_format", format);
    Ok(())
}

fn reasoning(fields: &mut Fields) -> Result<(), ApiError> {
    let reasoning: Option<Map<String, Value>> = fields.take("reasoning")?;
    let effort = reasoning.and_then(|mut reasoning| reasoning.shift_remove("effort"));
    match effort.filter(|effort| !effort.is_null()) {
        None => {}
        Some(effort) if effort == "none" => {
            let mut variables: Map<String, Value> =
                fields.take("chat_template_kwargs")?.unwrap_or_default();
            for name in ["enable_thinking", "thinking"] {
                variables.entry(name).or_insert(false.into());
            }
            fields.put("chat_template_kwargs", variables.into());
        }
        Some(effort) => fields.put("reasoning_effort", effort),
    }
    Ok(())
}
