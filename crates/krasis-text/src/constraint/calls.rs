//! Calls in the format of a model's family, with arguments under the tools' schemas.

use super::error::GrammarError;
use super::form::Strictness;
use super::lark::Lark;
use super::tagged;
use crate::ToolFormat;
use crate::answer::words::{CLOSE, DEEPSEEK, FUNCTION, KIMI, OPEN};
use serde_json::{Value, json};

/// A function that may be called.
pub(super) struct Tool<'a> {
    /// Among those of the request.
    pub index: usize,
    pub name: &'a str,
    pub arguments: Arguments,
    /// OpenAI's object.
    pub value: &'a Value,
}

/// What arguments must be.
pub(super) enum Arguments {
    /// Any object.
    Free,
    /// An object under a schema.
    Schema(Value, Strictness),
}

/// Which calls there may be.
pub(super) struct Calls<'a> {
    pub format: ToolFormat,
    pub tools: Vec<Tool<'a>>,
    /// Calls of the conversation so far, which some formats count.
    pub number: usize,
    /// Whether one call is all.
    pub single: bool,
}

/// A piece of what stands around arguments.
enum Part {
    Text(String),
    /// A number of a call.
    Number,
    /// A text that some versions leave out.
    Perhaps(&'static str),
}

impl Tool<'_> {
    /// The functions of OpenAI's objects. Where a call is `demanded`, all are held to their schemas,
    /// and otherwise those that say `strict`.
    pub fn all(tools: &[Value], demanded: bool) -> Result<Vec<Tool<'_>>, GrammarError> {
        let mut all = Vec::with_capacity(tools.len());
        for (index, value) in tools.iter().enumerate() {
            let function = &value["function"];
            let under = |strictness| {
                object(index, &function["parameters"])
                    .map(|schema| Arguments::Schema(schema, strictness))
            };
            let arguments = match (function["strict"] == true, demanded) {
                (true, _) => under(Strictness::Strict)?,
                (false, true) => under(Strictness::Lenient)?,
                (false, false) => Arguments::Free,
            };
            let name = function["name"].as_str().unwrap_or_default();
            all.push(Tool { index, name, arguments, value });
        }
        Ok(all)
    }

    fn refused(&self, reason: String) -> GrammarError {
        GrammarError::Tool { index: self.index, reason }
    }
}

/// Arguments are an object, whether the schema says so or not.
fn object(index: usize, parameters: &Value) -> Result<Value, GrammarError> {
    let refused = |reason: &str| Err(GrammarError::Tool { index, reason: reason.into() });
    let mut schema = match parameters {
        Value::Null => json!({"properties": {}, "additionalProperties": false}),
        Value::Object(schema) => Value::Object(schema.clone()),
        _ => return refused("parameters must be a schema"),
    };
    match &schema["type"] {
        Value::Null => {}
        Value::String(kind) if kind == "object" => {}
        Value::Array(kinds) if kinds.iter().any(|kind| kind == "object") => {}
        _ => return refused("parameters must be of type object, as arguments are"),
    }
    schema["type"] = "object".into();
    Ok(schema)
}

impl Calls<'_> {
    /// One call or more, behind a text with which they begin: `before` is what is written already, up
    /// to the end of its first occurrence. `None` if no call of these tools begins so.
    pub fn after(&self, before: &str, lark: &mut Lark) -> Result<Option<String>, GrammarError> {
        let (open, between, close) = around(self.format);
        let mut first = Vec::new();
        let mut further = Vec::new();
        for tool in &self.tools {
            let arguments = self.arguments(tool, lark)?;
            let tail = lark.text(tail(self.format));
            for mut head in heads(self.format, tool.name, Some(self.number)) {
                head.insert(0, Part::Text(open.into()));
                if let Some(rest) = behind(&joined(head), before) {
                    first.push(format!("{} {arguments} {tail}", parts(&rest, lark)));
                }
            }
            for head in heads(self.format, tool.name, None) {
                further.push(format!("{} {arguments} {tail}", parts(&head, lark)));
            }
        }
        if first.is_empty() {
            return Ok(None);
        }
        let first = lark.rule(&first.join("\n | "));
        let close = lark.text(close);
        // gpt-oss ends its turn with each call.
        if self.single || self.format == ToolFormat::Harmony {
            return Ok(Some(format!("{first} {close}")));
        }
        let further = lark.rule(&further.join("\n | "));
        let between = lark.text(between);
        Ok(Some(format!("{first} ({between} {further})* {close}")))
    }

    fn arguments(&self, tool: &Tool, lark: &mut Lark) -> Result<String, GrammarError> {
        if let Some(tags) = tagged::Tags::of(self.format) {
            let found = tagged::arguments(tags, tool, lark);
            return found.map_err(|reason| tool.refused(reason));
        }
        Ok(match &tool.arguments {
            Arguments::Free => lark.json(json!({"type": "object"}), Strictness::Strict),
            Arguments::Schema(schema, strictness) => lark.json(schema.clone(), *strictness),
        })
    }
}

/// What stands before the first call, between two, and behind the last.
fn around(format: ToolFormat) -> (&'static str, &'static str, &'static str) {
    match format {
        ToolFormat::Hermes | ToolFormat::QwenCoder | ToolFormat::Glm => ("", "\n", ""),
        ToolFormat::DeepSeekV3 => (DEEPSEEK.open, "\n", DEEPSEEK.close),
        ToolFormat::DeepSeekV31 => (DEEPSEEK.open, "", DEEPSEEK.close),
        ToolFormat::KimiK2 => (KIMI.open, "", KIMI.close),
        ToolFormat::Harmony => ("", "", ""),
    }
}

/// Ways to begin a call, up to its arguments; the first is usual.
fn heads(format: ToolFormat, name: &str, number: Option<usize>) -> Vec<Vec<Part>> {
    let text = |text: String| vec![vec![Part::Text(text)]];
    match format {
        ToolFormat::Hermes => {
            text(format!("{OPEN}\n{{\"name\": {}, \"arguments\": ", Value::from(name)))
        }
        ToolFormat::QwenCoder => text(format!("{OPEN}\n{FUNCTION}{name}>\n")),
        ToolFormat::DeepSeekV3 => {
            let (open, separator) = (DEEPSEEK.call_open, DEEPSEEK.separator);
            text(format!("{open}function{separator}{name}\n```json\n"))
        }
        ToolFormat::DeepSeekV31 => {
            text(format!("{}{name}{}", DEEPSEEK.call_open, DEEPSEEK.separator))
        }
        ToolFormat::KimiK2 => {
            let number = match number {
                Some(number) => Part::Text(number.to_string()),
                None => Part::Number,
            };
            let head = Part::Text(format!("{}functions.{name}:", KIMI.call_open));
            vec![vec![head, number, Part::Text(KIMI.separator.into())]]
        }
        ToolFormat::Glm => vec![vec![Part::Text(format!("{OPEN}{name}")), Part::Perhaps("\n")]],
        // The recipient stands in front of the channel or behind it, and the word before the
        // type of the arguments may be missing.
        ToolFormat::Harmony => {
            let kinds = [" <|constrain|>json<|message|>", " json<|message|>"];
            let recipients = [
                format!("<|channel|>commentary to=functions.{name}"),
                format!("<|start|>assistant to=functions.{name}<|channel|>commentary"),
            ];
            let head = |recipient: &String| kinds.map(|kind| format!("{recipient}{kind}"));
            recipients.iter().flat_map(head).map(|head| vec![Part::Text(head)]).collect()
        }
    }
}

/// What stands behind the arguments.
fn tail(format: ToolFormat) -> &'static str {
    match format {
        ToolFormat::Hermes => "}\n</tool_call>",
        ToolFormat::QwenCoder => "</function>\n</tool_call>",
        ToolFormat::Glm => CLOSE,
        ToolFormat::DeepSeekV3 => "\n```<｜tool▁call▁end｜>",
        ToolFormat::DeepSeekV31 => DEEPSEEK.call_close,
        ToolFormat::KimiK2 => KIMI.call_close,
        ToolFormat::Harmony => "",
    }
}

/// Neighbouring texts as one.
fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Part::Text(text)), Part::Text(more)) => text.push_str(&more),
            (_, part) => joined.push(part),
        }
    }
    joined
}

/// What follows `before` in a head whose text it lies in.
fn behind(head: &[Part], before: &str) -> Option<Vec<Part>> {
    let Some(Part::Text(text)) = head.first() else { return None };
    let at = text.find(before)?;
    let mut rest = vec![Part::Text(text[at + before.len()..].into())];
    rest.extend(head[1..].iter().map(|part| match part {
        Part::Text(text) => Part::Text(text.clone()),
        Part::Number => Part::Number,
        Part::Perhaps(text) => Part::Perhaps(text),
    }));
    Some(rest)
}

fn parts(parts: &[Part], lark: &mut Lark) -> String {
    let mut part = |part: &Part| match part {
        Part::Text(text) => lark.text(text),
        Part::Number => lark.terminal("/[0-9]{1,4}/"),
        Part::Perhaps(text) => format!("({})?", lark.text(text)),
    };
    parts.iter().map(&mut part).collect::<Vec<_>>().join(" ")
}
