//! Requests of Anthropic's API as chats, field by field: what follows is the same for both.

use crate::error::ApiError;
use crate::fields::Fields;
use crate::noise::quiet;
use crate::tools::FOUND;
use serde_json::{Map, Value, json};

/// Fields that mean something in a chat and nothing in a message: a message is one answer.
const FOREIGN: [&str; 5] =
    ["n", "logprobs", "return_token_ids", "add_generation_prompt", "continue_final_message"];

/// Puts a chat's fields into the place of a message's. What both have, and what Anthropic does not
/// know, stays.
pub(crate) fn into_chat(fields: &mut Fields) -> Result<(), ApiError> {
    FOREIGN.iter().for_each(|name| drop(fields.value(name)));
    let mut messages = Vec::new();
    if let Some(system) = fields.value("system") {
        let texts = texts(system, "system")?;
        let texts: Vec<&str> =
            texts.iter().map(|text| quiet(text)).filter(|text| !text.is_empty()).collect();
        if !texts.is_empty() {
            messages.push(json!({"role": "system", "content": texts.join("\n")}));
        }
    }
    let mut deferred = tools(fields)?;
    let given: Option<Vec<Value>> = fields.take("messages")?;
    let missing = || ApiError::field("messages", "messages is missing");
    let given = given.filter(|given| !given.is_empty()).ok_or_else(missing)?;
    for (index, message) in given.into_iter().enumerate() {
        turn(message, &format!("messages[{index}]"), &mut messages, &mut deferred)?;
    }
    deferred.offer(fields);
    // A conversation that ends with the assistant's words is to be continued there.
    let said = |last: &Value| last["role"] == "assistant" && last["content"].is_string();
    if messages.last().is_some_and(|last| said(last) && last.get("tool_calls").is_none()) {
        fields.put("continue_final_message", true.into());
    }
    fields.put("messages", messages.into());
    if let Some(stops) = fields.take::<Vec<String>>("stop_sequences")? {
        fields.put("stop", stops.into());
    }
    thinking(fields)?;
    form(fields)?;
    fields.check()
}

/// A text, or the texts of a list of blocks.
fn texts(content: Value, field: &str) -> Result<Vec<String>, ApiError> {
    let text = |(index, block): (usize, &Value)| match block["text"].as_str() {
        Some(text) if block["type"] == "text" => Ok(text.to_owned()),
        _ => Err(strange(block, &format!("{field}[{index}]"))),
    };
    match content {
        Value::String(text) => Ok(vec![text]),
        Value::Array(blocks) => blocks.iter().enumerate().map(text).collect(),
        _ => {
            let message = format!("{field} must be a text or a list of blocks");
            Err(ApiError::field(field, message))
        }
    }
}

fn strange(block: &Value, field: &str) -> ApiError {
    let kind = block["type"].as_str().unwrap_or_default();
    let message = format!("{field} is of type '{kind}': this model reads text only");
    ApiError::field(field, message)
}

/// One message, which may be several of a chat: results of tools are messages of their own there.
fn turn(
    mut message: Value,
    field: &str,
    messages: &mut Vec<Value>,
    deferred: &mut Deferred,
) -> Result<(), ApiError> {
    let blocks = match message.get_mut("content").map(Value::take) {
        Some(Value::String(text)) => vec![json!({"type": "text", "text": text})],
        Some(Value::Array(blocks)) => blocks,
        None | Some(Value::Null) => {
            let message = format!("{field}.content is missing");
            return Err(ApiError::field(format!("{field}.content"), message));
        }
        Some(_) => {
            let message = format!("{field}.content must be a text or a list of blocks");
            return Err(ApiError::field(format!("{field}.content"), message));
        }
    };
    match message["role"].as_str().unwrap_or_default() {
        "user" => user(blocks, field, messages, deferred),
        "assistant" => {
            messages.push(assistant(blocks));
            Ok(())
        }
        // In the middle of a conversation: there it stays.
        "system" => {
            let texts = texts(blocks.into(), &format!("{field}.content"))?;
            messages.push(json!({"role": "system", "content": texts.join("\n")}));
            Ok(())
        }
        role => {
            let message = format!("{field}.role is '{role}', but must be user or assistant");
            Err(ApiError::field(format!("{field}.role"), message))
        }
    }
}

fn user(
    blocks: Vec<Value>,
    field: &str,
    messages: &mut Vec<Value>,
    deferred: &mut Deferred,
) -> Result<(), ApiError> {
    let mut said: Vec<String> = Vec::new();
    let before = messages.len();
    for (index, mut block) in blocks.into_iter().enumerate() {
        let field = format!("{field}.content[{index}]");
        match block["type"].as_str().unwrap_or_default() {
            "text" => said.extend(texts(json!([block]), &field)?),
            "document" if block["source"]["data"].is_string() && is_text(&block["source"]) => {
                said.push(block["source"]["data"].as_str().unwrap_or_default().to_owned());
            }
            "tool_result" => {
                if !said.is_empty() {
                    messages.push(json!({"role": "user", "content": said.join("\n")}));
                    said.clear();
                }
                let content = block.get_mut("content").map(Value::take);
                let content = result(content, &block, deferred);
                let id = &block["tool_use_id"];
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
            }
            _ => return Err(strange(&block, &field)),
        }
    }
    if !said.is_empty() || messages.len() == before {
        messages.push(json!({"role": "user", "content": said.join("\n")}));
    }
    Ok(())
}

fn is_text(source: &Value) -> bool {
    source["type"] == "text"
}

/// What a tool said. A picture among it must not end the conversation that it is part of: the model
/// is told that it cannot see it.
fn result(content: Option<Value>, block: &Value, deferred: &mut Deferred) -> String {
    let mut text = |block: &Value| match (block["text"].as_str(), block["type"].as_str()) {
        (Some(text), _) => text.to_owned(),
        (None, Some("tool_reference")) => deferred.found(&block["tool_name"]),
        (None, kind) => format!("[{}: not readable here]", kind.unwrap_or("something")),
    };
    match content {
        Some(Value::String(text)) => text,
        Some(Value::Array(blocks)) => blocks.iter().map(&mut text).collect::<Vec<_>>().join("\n"),
        _ if block["is_error"] == true => "the tool failed".into(),
        _ => String::new(),
    }
}

/// What the model has said, thought and called. What another model did by means of its own server
/// is left out.
fn assistant(blocks: Vec<Value>) -> Value {
    let (mut said, mut thoughts) = (String::new(), Vec::new());
    let mut calls: Vec<Value> = Vec::new();
    for mut block in blocks {
        match block["type"].as_str().unwrap_or_default() {
            "text" => said += block["text"].as_str().unwrap_or_default(),
            "thinking" => thoughts.extend(block["thinking"].as_str().map(str::to_owned)),
            "tool_use" => {
                let arguments = match block.get_mut("input").map(Value::take) {
                    None | Some(Value::Null) => "{}".into(),
                    Some(input) => input.to_string(),
                };
                let function = json!({"name": block["name"], "arguments": arguments});
                let call = json!({"id": block["id"], "type": "function", "function": function});
                calls.push(call);
            }
            _ => {}
        }
    }
    let mut message = json!({"role": "assistant", "content": null});
    if !said.is_empty() || calls.is_empty() {
        message["content"] = said.into();
    }
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.join("\n").into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

/// Tools and `tool_choice`. Returns the tools that are not offered yet.
fn tools(fields: &mut Fields) -> Result<Deferred, ApiError> {
    let mut deferred = Deferred::default();
    if let Some(tools) = fields.take::<Vec<Value>>("tools")? {
        let (later, now): (Vec<Value>, Vec<Value>) =
            tools.into_iter().partition(|tool| tool["defer_loading"] == true);
        fields.put("tools", now.into_iter().map(tool).collect::<Vec<_>>().into());
        deferred.tools = later.into_iter().map(tool).collect();
    }
    let Some(choice) = fields.value("tool_choice") else { return Ok(deferred) };
    let chosen = match choice["type"].as_str().unwrap_or_default() {
        "auto" => "auto".into(),
        "none" => "none".into(),
        "any" => "required".into(),
        "tool" => json!({"type": "function", "function": {"name": choice["name"]}}),
        _ => {
            let message = "tool_choice must be of type auto, any, tool or none";
            return Err(ApiError::field("tool_choice", message));
        }
    };
    fields.put("tool_choice", chosen);
    if choice["disable_parallel_tool_use"] == true {
        fields.put("parallel_tool_calls", false.into());
    }
    Ok(deferred)
}

/// Tools that the model shall search for before it may call them. Where a result of such a search
/// refers to one, the model reads what it is: were it listed with the others, at the beginning, then
/// the whole conversation would be another one.
#[derive(Default)]
struct Deferred {
    tools: Vec<Value>,
    found: Vec<Value>,
}

impl Deferred {
    /// What the model reads of a tool.
    fn found(&mut self, name: &Value) -> String {
        let named = |tool: &&Value| tool["function"]["name"] == *name;
        match self.tools.iter().find(named) {
            Some(tool) => {
                if !self.found.contains(tool) {
                    self.found.push(tool.clone());
                }
                tool.to_string()
            }
            None => format!("[{} is no tool]", name.as_str().unwrap_or("this")),
        }
    }

    /// The model may call what was found.
    fn offer(self, fields: &mut Fields) {
        if self.found.is_empty() {
            return;
        }
        let mut tools = fields.value("tools").unwrap_or_else(|| json!([]));
        for mut tool in self.found {
            tool[FOUND] = true.into();
            tools.as_array_mut().into_iter().for_each(|tools| tools.push(tool.clone()));
        }
        fields.put("tools", tools);
    }
}

/// A tool of the client's own. Those that have another type have no schema, and run at Anthropic or
/// in clients that its models know.
fn tool(mut tool: Value) -> Value {
    match tool["type"].as_str() {
        None | Some("custom" | "function") => {}
        Some(kind) => return json!({"type": format!("anthropic {kind}")}),
    }
    if tool.get("function").is_some() {
        return tool;
    }
    let mut function = Map::new();
    for (name, given) in
        [("name", "name"), ("description", "description"), ("parameters", "input_schema")]
    {
        if let Some(value) = tool.get_mut(given).map(Value::take).filter(|value| !value.is_null()) {
            function.insert(name.into(), value);
        }
    }
    json!({"type": "function", "function": function})
}

/// Templates have two names for the switch.
fn thinking(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(thinking) = fields.value("thinking") else { return Ok(()) };
    let on = match thinking["type"].as_str().unwrap_or_default() {
        "enabled" | "adaptive" => true,
        "disabled" => false,
        _ => {
            let message = "thinking must be of type enabled, adaptive or disabled";
            return Err(ApiError::field("thinking", message));
        }
    };
    let mut variables: Map<String, Value> =
        fields.take("chat_template_kwargs")?.unwrap_or_default();
    for name in ["enable_thinking", "thinking"] {
        variables.entry(name).or_insert(on.into());
    }
    fields.put("chat_template_kwargs", variables.into());
    Ok(())
}

/// The form of the answer, under both names that it has had.
fn form(fields: &mut Fields) -> Result<(), ApiError> {
    let config = fields.value("output_config").and_then(|mut config| {
        config.get_mut("format").map(Value::take).filter(|format| !format.is_null())
    });
    let (name, format) = match (config, fields.value("output_format")) {
        (Some(format), _) => ("output_config", format),
        (None, Some(format)) => ("output_format", format),
        (None, None) => return Ok(()),
    };
    if format["type"] != "json_schema" {
        let message = format!("{name} must be of type json_schema");
        return Err(ApiError::field(name, message));
    }
    let schema = json!({"name": "answer", "schema": format["schema"], "strict": true});
    fields.put("response_format", json!({"type": "json_schema", "json_schema": schema}));
    Ok(())
}
