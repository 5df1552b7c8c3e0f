//! What shape of messages a template can take, found by showing it each one.
//!
//! OpenAI's messages carry the arguments of a tool call as a JSON string. Some templates print
//! them as they come, others iterate over a mapping, and given the wrong one most fail and some
//! write nonsense. The same goes for missing content and for content in parts. So each template
//! is rendered at load with a word that must come out once, unescaped.

use crate::answer::Format;
use serde_json::{Value, json};

const WORD: &str = "krsentinelkr";

/// How messages must look for one template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Of a tool call.
    pub arguments: Arguments,
    /// Of an assistant message that has tool calls and no text.
    pub silence: Silence,
    /// Of text.
    pub content: Content,
    /// Of a system message that is not the first message.
    pub interjection: Interjection,
    /// Whether the role `developer` means something to the template.
    pub developer: bool,
    /// Whether the template has words for thoughts before a call under `thinking` (gpt-oss).
    pub thinking: bool,
    /// Whether tools are written into the prompt.
    pub tools: bool,
    /// How the model writes calls and thoughts.
    pub format: Format,
}

/// Arguments of a tool call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arguments {
    Mapping,
    String,
}

/// Content of a message without text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    Null,
    Empty,
    Absent,
}

/// Content of a message with text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A string; lists of parts come out wrong.
    String,
    /// A list of parts; strings come out wrong.
    Parts,
    /// Whatever the client sent.
    Either,
}

/// Whose words a system message in the middle of a conversation is printed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interjection {
    System,
    /// The template refuses it, or leaves it out (gpt-oss): agents would lose their instructions.
    User,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            arguments: Arguments::Mapping,
            silence: Silence::Null,
            content: Content::String,
            interjection: Interjection::System,
            developer: false,
            thinking: false,
            tools: false,
            format: Format::default(),
        }
    }
}

impl Shape {
    /// Tries the shapes. `render` takes messages and tools and answers `None` on any error.
    pub fn probe(source: &str, render: impl Fn(&[Value], &[Value]) -> Option<String>) -> Shape {
        let content = content(&render);
        let silence = silence(&render, content);
        Shape {
            arguments: arguments(&render, content, silence),
            silence,
            content,
            interjection: interjection(&render, content),
            developer: source.contains("developer"),
            thinking: source.contains("message.thinking"),
            tools: source.contains("tools"),
            format: Format::of_template(source),
        }
    }
}

fn content(render: &impl Fn(&[Value], &[Value]) -> Option<String>) -> Content {
    let comes_out = |content: Value| {
        let text = render(&[json!({"role": "user", "content": content})], &[]);
        text.is_some_and(|text| text.matches(WORD).count() == 1 && !text.contains("'type'"))
    };
    let string = comes_out(json!(WORD));
    let parts = || {
        let text =
            render(&[json!({"role": "user", "content": [{"type": "text", "text": WORD}]})], &[]);
        // A template that prints the list itself shows its keys.
        text.is_some_and(|text| text.matches(WORD).count() == 1 && !quotes_key(&text, "type"))
    };
    match (string, parts()) {
        (true, true) => Content::Either,
        (false, true) => Content::Parts,
        _ => Content::String,
    }
}

fn silence(render: &impl Fn(&[Value], &[Value]) -> Option<String>, content: Content) -> Silence {
    // What the template says when it prints the call, as counts of words that mean nothing.
    let says = |silence, arguments: Value| {
        let mut assistant = json!({"role": "assistant"});
        silence_message(&mut assistant, silence);
        assistant["tool_calls"] = json!([{"id": "call00001", "type": "function",
            "function": {"name": WORD, "arguments": arguments}}]);
        let text = render(&[user("x", content), assistant], &[tool()])?;
        text.contains(WORD).then(|| ["None", "none", "null"].map(|no| text.matches(no).count()))
    };
    let says = |silence| {
        let mapping = json!({"key": WORD});
        let string = mapping.to_string();
        says(silence, mapping).or_else(|| says(silence, json!(string)))
    };
    match (says(Silence::Null), says(Silence::Empty)) {
        (Some(null), Some(empty)) if null == empty => Silence::Null,
        (Some(_), None) => Silence::Null,
        (_, Some(_)) => Silence::Empty,
        (None, None) if says(Silence::Absent).is_some() => Silence::Absent,
        // The template knows no tool calls: nothing was learnt, and Python's users send None.
        (None, None) => Silence::Null,
    }
}

fn arguments(
    render: &impl Fn(&[Value], &[Value]) -> Option<String>,
    content: Content,
    silence: Silence,
) -> Arguments {
    let comes_out = |arguments: Value| {
        let mut assistant = json!({"role": "assistant"});
        silence_message(&mut assistant, silence);
        assistant["tool_calls"] = json!([{"id": "call00001", "type": "function",
            "function": {"name": "lookup", "arguments": arguments}}]);
        let text = render(&[user("x", content), assistant], &[tool()]);
        text.is_some_and(|text| {
            let escaped = text.contains("\\\"key") || text.contains("'key'");
            text.matches(WORD).count() == 1 && !escaped
        })
    };
    let string = json!({"key": WORD}).to_string();
    match comes_out(json!({"key": WORD})) || !comes_out(json!(string)) {
        true => Arguments::Mapping,
        false => Arguments::String,
    }
}

fn interjection(
    render: &impl Fn(&[Value], &[Value]) -> Option<String>,
    content: Content,
) -> Interjection {
    let comes_out = |role: &str| {
        let mut middle = user(WORD, content);
        middle["role"] = role.into();
        let text = render(&[user("x", content), middle], &[]);
        text.is_some_and(|text| text.matches(WORD).count() == 1)
    };
    match comes_out("system") || !comes_out("user") {
        true => Interjection::System,
        false => Interjection::User,
    }
}

/// Gives a message without text the content that the template needs.
pub(super) fn silence_message(message: &mut Value, silence: Silence) {
    let Some(message) = message.as_object_mut() else { return };
    match silence {
        Silence::Null => drop(message.insert("content".into(), Value::Null)),
        Silence::Empty => drop(message.insert("content".into(), "".into())),
        Silence::Absent => drop(message.shift_remove("content")),
    }
}

fn user(text: &str, content: Content) -> Value {
    match content {
        Content::Parts => {
            json!({"role": "user", "content": [{"type": "text", "text": text}]})
        }
        _ => json!({"role": "user", "content": text}),
    }
}

fn tool() -> Value {
    json!({"type": "function", "function": {"name": "lookup", "description": "x",
           "parameters": {"type": "object", "properties": {"key": {"type": "string"}}}}})
}

fn quotes_key(text: &str, key: &str) -> bool {
    text.contains(&format!("'{key}'")) || text.contains(&format!("\"{key}\""))
}
