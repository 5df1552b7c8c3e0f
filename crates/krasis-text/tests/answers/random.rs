//! Answers at random, in all formats.
#![allow(dead_code, reason = "each file uses its own part")]

use krasis_text::{Format, Reasoning, Start, ToolFormat};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};

/// All of them.
pub const FORMATS: [ToolFormat; 7] = [
    ToolFormat::Hermes,
    ToolFormat::QwenCoder,
    ToolFormat::Glm,
    ToolFormat::DeepSeekV3,
    ToolFormat::DeepSeekV31,
    ToolFormat::KimiK2,
    ToolFormat::Harmony,
];

/// The format as a model has it.
pub fn format(tools: ToolFormat) -> Format {
    let reasoning = match tools {
        ToolFormat::Harmony => Reasoning::Harmony,
        _ => Reasoning::Think,
    };
    Format { tools: Some(tools), reasoning: Some(reasoning) }
}

/// Where its answers begin.
pub fn prompt(tools: ToolFormat) -> Start<'static> {
    Start::Prompt(if tools == ToolFormat::Harmony { "<|start|>assistant" } else { "" })
}

/// Words that mean something to some format, whole and in parts, and what may stand around them.
const SCRAPS: [&str; 60] = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_",
    "</",
    "<",
    ">",
    "call>",
    "<function=",
    "f>",
    "</function>",
    "<parameter=",
    "text>",
    "number>",
    "</parameter>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "text",
    "number",
    "f",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "function",
    "```json",
    "```",
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "functions.f:0",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
    "<|start|>",
    "assistant",
    "<|channel|>",
    "commentary to=functions.f",
    "analysis",
    "final",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "\n",
    " ",
    "{\"name\": \"f\"",
    ", \"arguments\": {",
    "\"text\": \"",
    "\"",
    "\\",
    "\\ud83d",
    "}",
    "{\"number\": 1",
    "-0.5e3",
    "é\u{1f600}",
    "null",
];

/// Nothing in particular.
pub fn soup() -> impl Strategy<Value = String> {
    prop::collection::vec(select(&SCRAPS[..]), 0..24).prop_map(|scraps| scraps.concat())
}

/// An answer that begins well and in which something is missing or strange.
pub fn mutated() -> impl Strategy<Value = (ToolFormat, String)> {
    let scrap = select(&SCRAPS[..]);
    (written(), any::<Index>(), any::<Index>(), scrap).prop_map(|(written, at, to, scrap)| {
        let (at, to) = (boundary(&written.answer, at), boundary(&written.answer, to));
        // Something is put in or taken out.
        let to = if to < at { at } else { at + (to - at).min(8) };
        let to = (to..).find(|&to| written.answer.is_char_boundary(to)).unwrap_or(at);
        let (before, after) = (&written.answer[..at], &written.answer[to..]);
        (
            written.format,
            if to == at { [before, scrap, after].concat() } else { [before, after].concat() },
        )
    })
}

/// The last place of a character up to this one.
pub fn boundary(text: &str, index: Index) -> usize {
    let mut at = index.index(text.len() + 1);
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Any text that a file or a search might need.
fn words() -> impl Strategy<Value = String> {
    let scraps = select(
        &[
            "<b>",
            "</p>",
            "\n",
            "\"",
            "\\",
            "{",
            "}",
            " ",
            "é",
            "日",
            "🎉",
            "</tool_call>",
            "<|tool_call_end|>",
            "<|end|>",
            "<｜tool▁call▁end｜>",
            "<think>",
            "'",
            "&lt;",
            "\t",
            "0",
            "null",
            "a",
        ][..],
    );
    prop::collection::vec(scraps, 0..8).prop_map(|scraps| scraps.concat())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        3 => words().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => (-1e6..1e6f64).prop_map(|number| json!((number * 8.0).round() / 8.0 + 0.0625)),
        1 => any::<bool>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec(("[a-z]{1,4}", inner), 0..3)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// An answer as a template writes it, and what it says.
#[derive(Clone, Debug)]
pub struct Written {
    pub format: ToolFormat,
    pub tools: Vec<Value>,
    pub answer: String,
    pub thought: String,
    pub text: String,
    pub calls: Vec<(String, Map<String, Value>)>,
}

pub fn written() -> impl Strategy<Value = Written> {
    let arguments = prop::collection::vec(("[a-z_]{1,8}", value()), 0..4)
        .prop_map(|pairs| pairs.into_iter().collect::<Map<String, Value>>());
    let calls = prop::collection::vec(("[a-z_]{1,12}", arguments), 0..3);
    let prose = "[a-zé.][a-zé<. \n]{0,20}[a-zé.]";
    (select(&FORMATS[..]), calls, prop::option::of(prose), prop::option::of(prose)).prop_map(
        |(format, mut calls, thought, text)| {
            // A name twice has one schema.
            calls.sort_by(|a, b| a.0.cmp(&b.0));
            calls.dedup_by(|a, b| a.0 == b.0);
            let tools = calls.iter().map(|(name, arguments)| {
                let properties: Map<String, Value> = arguments
                    .iter()
                    .map(|(key, value)| (key.clone(), json!({"type": kind(value)})))
                    .collect();
                json!({"type": "function", "function": {"name": name,
                       "parameters": {"type": "object", "properties": properties}}})
            });
            let mut answer = String::new();
            if format == ToolFormat::Harmony {
                let message = |channel: &str, text: &str| {
                    format!("<|channel|>{channel}<|message|>{text}<|end|><|start|>assistant")
                };
                answer += &thought.as_ref().map_or(String::new(), |t| message("analysis", t));
                answer += &text.as_ref().map_or(String::new(), |t| message("commentary", t));
                let calls = super::writing::calls(format, &calls);
                answer += calls.strip_prefix("<|start|>assistant").unwrap_or(&calls);
            } else {
                answer += &thought
                    .as_ref()
                    .map_or(String::new(), |t| format!("<think>\n{t}\n</think>\n\n"));
                answer += text.as_deref().unwrap_or_default();
                answer += &super::writing::calls(format, &calls);
            }
            Written {
                format,
                tools: tools.collect(),
                answer,
                thought: thought.unwrap_or_default(),
                text: text.unwrap_or_default(),
                calls,
            }
        },
    )
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
