//! Answers at random: what holds for every format and every way to cut a stream.

mod answers {
    pub mod writing;
}

use answers::writing::{self, events, told};
use krasis_text::{End, Event, Format, Reasoning, Start, ToolFormat};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};

const FORMATS: [ToolFormat; 7] = [
    ToolFormat::Hermes,
    ToolFormat::QwenCoder,
    ToolFormat::Glm,
    ToolFormat::DeepSeekV3,
    ToolFormat::DeepSeekV31,
    ToolFormat::KimiK2,
    ToolFormat::Harmony,
];

fn format(tools: ToolFormat) -> Format {
    let reasoning = match tools {
        ToolFormat::Harmony => Reasoning::Harmony,
        _ => Reasoning::Think,
    };
    Format { tools: Some(tools), reasoning: Some(reasoning) }
}

fn prompt(tools: ToolFormat) -> Start<'static> {
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

fn soup() -> impl Strategy<Value = String> {
    prop::collection::vec(select(&SCRAPS[..]), 0..24).prop_map(|scraps| scraps.concat())
}

/// An answer that begins well and in which something is missing or strange.
fn mutated() -> impl Strategy<Value = (ToolFormat, String)> {
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

fn boundary(text: &str, index: Index) -> usize {
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
struct Written {
    format: ToolFormat,
    tools: Vec<Value>,
    answer: String,
    thought: String,
    text: String,
    calls: Vec<(String, Map<String, Value>)>,
}

fn written() -> impl Strategy<Value = Written> {
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
                let calls = writing::calls(format, &calls);
                answer += calls.strip_prefix("<|start|>assistant").unwrap_or(&calls);
            } else {
                answer += &thought
                    .as_ref()
                    .map_or(String::new(), |t| format!("<think>\n{t}\n</think>\n\n"));
                answer += text.as_deref().unwrap_or_default();
                answer += &writing::calls(format, &calls);
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

fn cut<'a>(text: &'a str, cuts: &[Index]) -> Vec<&'a str> {
    let mut places: Vec<usize> = cuts.iter().map(|&cut| boundary(text, cut)).collect();
    places.sort_unstable();
    let mut pieces = Vec::new();
    let mut last = 0;
    for place in places {
        pieces.push(&text[last..place]);
        last = place;
    }
    pieces.push(&text[last..]);
    pieces
}

/// What holds for any answer at all; returns its events.
fn anything(
    tools_format: ToolFormat,
    tools: &[Value],
    answer: &str,
    cuts: &[Index],
    end: End,
) -> Result<Vec<Event>, TestCaseError> {
    let (format, start) = (format(tools_format), prompt(tools_format));
    let whole = events(format, tools, start, &[answer], end);
    let pieces = events(format, tools, start, &cut(answer, cuts), end);
    prop_assert_eq!(&whole, &pieces);
    let said = told(format, tools, start, &[answer], end);
    for call in &said.calls {
        if call.complete {
            let arguments: Value = serde_json::from_str(&call.arguments)
                .map_err(|error| TestCaseError::fail(format!("{error}: {call:?}")))?;
            prop_assert!(arguments.is_object());
        }
    }
    Ok(whole)
}

fn end() -> impl Strategy<Value = End> {
    select(&[End::Stop, End::Length][..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8_000))]

    #[test]
    fn every_cut_of_any_soup_is_the_same(
        format in select(&FORMATS[..]),
        answer in soup(),
        cuts in prop::collection::vec(any::<Index>(), 0..40),
        end in end(),
    ) {
        let tools = [json!({"type": "function", "function": {"name": "f", "parameters":
            {"properties": {"text": {"type": "string"}, "number": {"type": "number"}}}}})];
        anything(format, &tools, &answer, &cuts, end)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// Written, then read: the same thoughts, text and calls, and no marker beside them.
    #[test]
    fn what_a_template_writes_is_read_again(
        written in written(),
        cuts in prop::collection::vec(any::<Index>(), 0..40),
    ) {
        let Written { format, tools, answer, thought, text, calls } = written;
        anything(format, &tools, &answer, &cuts, End::Stop)?;
        let said = told(self::format(format), &tools, prompt(format), &[&answer], End::Stop);
        prop_assert_eq!(said.text, text);
        prop_assert_eq!(said.reasoning, thought);
        prop_assert_eq!(said.calls.len(), calls.len());
        for (said, (name, arguments)) in said.calls.into_iter().zip(calls) {
            prop_assert!(said.complete);
            prop_assert_eq!(said.name, name);
            let read: Value = serde_json::from_str(&said.arguments).unwrap();
            prop_assert_eq!(read, Value::Object(arguments));
        }
    }

    /// Cut off anywhere: no marker in any text, and arguments that begin those of the whole.
    #[test]
    fn what_is_cut_off_leaks_nothing(
        written in written(),
        at in any::<Index>(),
        cuts in prop::collection::vec(any::<Index>(), 0..20),
    ) {
        let Written { format, tools, answer, .. } = written;
        let start = &answer[..boundary(&answer, at)];
        anything(format, &tools, start, &cuts, End::Length)?;
        let whole = told(self::format(format), &tools, prompt(format), &[&answer], End::Stop);
        let part = told(self::format(format), &tools, prompt(format), &[start], End::Length);
        for marker in self::format(format).markers() {
            prop_assert!(!part.text.contains(marker), "{} in {}", marker, part.text);
        }
        for (part, whole) in part.calls.iter().zip(&whole.calls) {
            prop_assert_eq!(&part.name, &whole.name);
            prop_assert!(whole.arguments.starts_with(&part.arguments));
        }
        prop_assert!(part.calls.len() <= whole.calls.len());
    }

    #[test]
    fn every_cut_of_what_is_nearly_right_is_the_same(
        (format, answer) in mutated(),
        cuts in prop::collection::vec(any::<Index>(), 0..40),
        end in end(),
    ) {
        anything(format, &[], &answer, &cuts, end)?;
    }
}
