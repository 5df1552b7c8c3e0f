//! Calls as each family's template writes them, and events as a client adds them up.
#![allow(dead_code, reason = "each test file uses its own part")]

use krasis_text::{End, Event, Format, Parser, Start, ToolFormat};
use serde_json::{Map, Value};
use std::fmt::Write;

/// An answer, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub text: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
}

/// A call, added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub id: Option<String>,
    pub name: String,
    pub arguments: String,
    pub complete: bool,
}

/// All events of an answer that comes in pieces, neighbours of a kind as one.
pub fn events(
    format: Format,
    tools: &[Value],
    start: Start,
    pieces: &[&str],
    end: End,
) -> Vec<Event> {
    let mut parser = Parser::new(format, tools, start);
    let mut events: Vec<Event> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish(end));
    let mut merged: Vec<Event> = Vec::new();
    for event in events {
        match (merged.last_mut(), event) {
            (Some(Event::Text(text)), Event::Text(more)) => text.push_str(&more),
            (Some(Event::Reasoning(text)), Event::Reasoning(more)) => text.push_str(&more),
            (Some(Event::Arguments { json, .. }), Event::Arguments { json: more, .. }) => {
                json.push_str(&more);
            }
            (_, event) => merged.push(event),
        }
    }
    merged
}

/// Adds them up, and checks that calls come one after the other.
pub fn told(format: Format, tools: &[Value], start: Start, pieces: &[&str], end: End) -> Told {
    let mut told = Told::default();
    for event in events(format, tools, start, pieces, end) {
        match event {
            Event::Text(text) => told.text += &text,
            Event::Reasoning(text) => told.reasoning += &text,
            Event::Call { index, id, name } => {
                assert_eq!(index, told.calls.len());
                told.calls.push(Call { id, name, arguments: String::new(), complete: false });
            }
            Event::Arguments { index, json } => {
                assert_eq!(index + 1, told.calls.len());
                assert!(!told.calls[index].complete);
                told.calls[index].arguments += &json;
            }
            Event::End { index } => {
                assert_eq!(index + 1, told.calls.len());
                told.calls[index].complete = true;
            }
        }
    }
    told
}

/// Calls in a row, as a template writes them.
pub fn calls(format: ToolFormat, calls: &[(String, Map<String, Value>)]) -> String {
    let mut text = String::new();
    for (index, (name, arguments)) in calls.iter().enumerate() {
        let json = serde_json::to_string(arguments).unwrap();
        let _ = match format {
            ToolFormat::Hermes => {
                write!(
                    text,
                    "\n<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {json}}}\n</tool_call>"
                )
            }
            ToolFormat::QwenCoder => {
                let parameters: String = arguments
                    .iter()
                    .map(|(key, value)| {
                        format!("<parameter={key}>\n{}\n</parameter>\n", plain(value))
                    })
                    .collect();
                write!(
                    text,
                    "\n<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"
                )
            }
            ToolFormat::Glm => {
                let pairs: String = arguments
                    .iter()
                    .map(|(key, value)| {
                        let value = plain(value);
                        format!("<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n")
                    })
                    .collect();
                write!(text, "\n<tool_call>{name}\n{pairs}</tool_call>")
            }
            ToolFormat::DeepSeekV3 => write!(
                text,
                "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json}\n```<｜tool▁call▁end｜>\n"
            ),
            ToolFormat::DeepSeekV31 => {
                write!(text, "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json}<｜tool▁call▁end｜>")
            }
            ToolFormat::KimiK2 => write!(
                text,
                "<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{json}<|tool_call_end|>"
            ),
            ToolFormat::Harmony => write!(
                text,
                "<|start|>assistant<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{json}<|call|>"
            ),
        };
    }
    match format {
        _ if calls.is_empty() => text,
        ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => {
            format!("<｜tool▁calls▁begin｜>{text}<｜tool▁calls▁end｜>")
        }
        ToolFormat::KimiK2 => {
            format!("<|tool_calls_section_begin|>{text}<|tool_calls_section_end|>")
        }
        _ => text,
    }
}

/// Texts as they are, all else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
