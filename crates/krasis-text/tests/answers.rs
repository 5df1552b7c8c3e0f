//! Answers as models of each family write them, and what becomes of them.

mod answers {
    pub mod writing;
}

use answers::writing::{self, Told, told};
use krasis_text::{End, Format, Reasoning, Start, ToolFormat};
use serde_json::{Value, json};

const PROMPT: Start = Start::Prompt("<|im_start|>assistant\n");

/// Tools that the tables call.
fn tools() -> Vec<Value> {
    let schema = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "share": {"type": "number"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "place": {"$ref": "#/$defs/place"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "unit": {"enum": ["c", "f"]},
        },
        "$defs": {"place": {"type": "object"}},
    });
    let function = |name: &str| json!({"name": name, "parameters": schema});
    ["weather", "write_file", "now"]
        .map(|name| json!({"type": "function", "function": function(name)}))
        .into()
}

fn format(tools: ToolFormat) -> Format {
    match tools {
        ToolFormat::Harmony => Format { tools: Some(tools), reasoning: Some(Reasoning::Harmony) },
        _ => Format { tools: Some(tools), reasoning: Some(Reasoning::Think) },
    }
}

/// Whole, in single characters, and as the model would be told.
fn check(tools_format: ToolFormat, answer: &str, expected: Told) {
    let format = format(tools_format);
    let prompt = match tools_format {
        ToolFormat::Harmony => Start::Prompt("<|start|>user<|message|>Hi<|end|><|start|>assistant"),
        _ => PROMPT,
    };
    assert_eq!(told(format, &tools(), prompt, &[answer], End::Stop), expected, "{answer}");
    let pieces: Vec<String> = answer.chars().map(String::from).collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    assert_eq!(told(format, &tools(), prompt, &pieces, End::Stop), expected, "{answer}");
}

fn say(text: &str, reasoning: &str, calls: &[(&str, &str)]) -> Told {
    Told {
        text: text.into(),
        reasoning: reasoning.into(),
        calls: calls
            .iter()
            .map(|&(name, arguments)| writing::Call {
                id: None,
                name: name.into(),
                arguments: arguments.into(),
                complete: true,
            })
            .collect(),
    }
}

#[test]
fn qwen3_and_hermes() {
    let check = |answer: &str, expected| check(ToolFormat::Hermes, answer, expected);
    let oslo = r#"{"city": "Oslo"}"#;
    check("Plain text.\n", say("Plain text.\n", "", &[]));
    check(
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>",
        say("", "", &[("weather", oslo)]),
    );
    check(
        "<think>\nOslo, then.\n\nYes.\n</think>\n\nLet me look.\n<tool_call>\n\
         {\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>\n<tool_call>\n\
         {\"name\": \"now\", \"arguments\": {}}\n</tool_call>\nDone.",
        say("Let me look.\nDone.", "Oslo, then.\n\nYes.", &[("weather", oslo), ("now", "{}")]),
    );
    // Keys in the other order, arguments in a string or missing, a name for them from elsewhere.
    check(
        "<tool_call>{\"arguments\": {\"city\": \"Oslo\"}, \"id\": 7, \"name\": \"weather\"}</tool_call>",
        say("", "", &[("weather", oslo)]),
    );
    check(
        r#"<tool_call>{"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}</tool_call>"#,
        say("", "", &[("weather", oslo)]),
    );
    check(r#"<tool_call>{"name": "now"}</tool_call>"#, say("", "", &[("now", "{}")]));
    check(
        r#"<tool_call>{"name": "now", "arguments": null}</tool_call>"#,
        say("", "", &[("now", "{}")]),
    );
    check(
        r#"<tool_call>{"name": "weather", "parameters": {"city": "Oslo"}}</tool_call>"#,
        say("", "", &[("weather", oslo)]),
    );
    // Markers inside of strings are letters.
    check(
        r#"<tool_call>{"name": "weather", "arguments": {"city": "</tool_call> \"<tool_call>"}}</tool_call>"#,
        say("", "", &[("weather", r#"{"city": "</tool_call> \"<tool_call>"}"#)]),
    );
    // What models forget: the end of the block, a brace, escapes.
    check(
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n",
        say("", "", &[("weather", oslo)]),
    );
    check(
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}\n</tool_call>",
        say("", "", &[("weather", "{\"city\": \"Oslo\"}")]),
    );
    check(
        "<tool_call>{\"name\": \"weather\", \"arguments\": {\"days\": 3</tool_call>",
        say("", "", &[("weather", "{\"days\": 3}")]),
    );
    check(
        "<tool_call>{\"name\": \"now\", \"arguments\": {}}{\"name\": \"now\"}\n<tool_call>{\"name\": \"now\"}</tool_call>",
        say("", "", &[("now", "{}"), ("now", "{}"), ("now", "{}")]),
    );
    check(
        "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"a\nb\tc\\d\\'\\ud800x\\u00\"}}</tool_call>",
        say("", "", &[("weather", r#"{"city": "a\nb\tc\\d'\ufffdx\\u00"}"#)]),
    );
    // A call inside of thoughts is none.
    check(
        "<think>I could <tool_call>{\"name\": \"now\"}</tool_call>, but no.</think>No.",
        say("No.", "I could <tool_call>{\"name\": \"now\"}</tool_call>, but no.", &[]),
    );
    check("a</think>b</tool_call>c<think>d</think>e", say("abce", "d", &[]));
}

#[test]
fn malformed_calls_are_text_word_for_word() {
    for answer in [
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {city: 1}}\n</tool_call>",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": 5}</tool_call>",
        "<tool_call>{\"name\": \"a\", \"name\": \"b\"}</tool_call>",
        "<tool_call>{\"name\": \"a b\"}</tool_call>",
        "<tool_call>{\"name\": \"a\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"a\", \"arguments\": \"{\"}</tool_call>",
        "<tool_call>{\"name\": \"a\", \"arguments\": {}, \"arguments\": {}}</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>weather(city='Oslo')</tool_call> and on",
        "Write <tool_call> in front, then JSON.",
        "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Os",
        "<tool_call>{\"name\": \"weather\", \"arg",
        "a < b <tool",
    ] {
        check(ToolFormat::Hermes, answer, say(answer, "", &[]));
    }
    for answer in [
        "<tool_call>\n<function=weather>\nOslo</function></tool_call>",
        "<tool_call>\n<function=a b></function>\n</tool_call>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nOslo",
        "see <function=",
        "<tool_call>no</tool_call>",
    ] {
        check(ToolFormat::QwenCoder, answer, say(answer, "", &[]));
    }
    for answer in [
        "<tool_call>{\"name\": \"weather\"}</tool_call>",
        "<tool_call>weather\nOslo</tool_call>",
        "<tool_call>weather\n<arg_key>city</arg_key>Oslo</tool_call>",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo",
    ] {
        check(ToolFormat::Glm, answer, say(answer, "", &[]));
    }
    for answer in [
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>f<|tool_call_end|>",
        "<|tool_calls_section_begin|>nothing",
        "<|tool_call_begin|>functions.weather:0",
    ] {
        check(ToolFormat::KimiK2, answer, say(answer, "", &[]));
    }
    // The next call is one again.
    check(
        ToolFormat::Hermes,
        "<tool_call>{no}</tool_call>\n<tool_call>{\"name\": \"now\"}</tool_call>",
        say("<tool_call>{no}</tool_call>", "", &[("now", "{}")]),
    );
}

#[test]
fn what_is_wrong_late_in_a_long_call_is_text_from_there() {
    let long = "x".repeat(2000);
    let answer = format!(
        "<tool_call>{{\"name\": \"weather\", \"arguments\": {{\"city\": \"{long}\", oh}}}}</tool_call>Hm."
    );
    let format = format(ToolFormat::Hermes);
    let told = told(format, &tools(), PROMPT, &[&answer], End::Stop);
    assert_eq!(told.text, "oh}}Hm.");
    assert_eq!(told.calls[0].arguments, format!("{{\"city\": \"{long}\", "));
    assert!(!told.calls[0].complete);
}

#[test]
fn qwen3_coder() {
    let check = |answer: &str, expected| check(ToolFormat::QwenCoder, answer, expected);
    check(
        "I will look.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n\
         <parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        say("I will look.", "", &[("weather", r#"{"city": "Oslo", "days": 3}"#)]),
    );
    // Types by the schema; what has none, or does not fit, is text.
    for (key, value, json) in [
        ("city", "5", "\"5\""),
        ("city", "null", "\"null\""),
        ("city", "", "\"\""),
        ("city", "\n a \n", "\"\\n a \\n\""),
        ("city", "&lt;b> \"q\" \\ é\u{1}", "\"&lt;b> \\\"q\\\" \\\\ é\\u0001\""),
        ("city", "<parameter=x>", "\"<parameter=x>\""),
        ("city", "a\n</parameter>\nb", "\"a\\n</parameter>\\nb\""),
        ("city", "</parameter></parameter>", "\"</parameter></parameter>\""),
        ("days", " 3 ", "3"),
        ("days", "3.0", "3"),
        ("days", "3.5", "\"3.5\""),
        ("days", "12345678901234567890123", "12345678901234567890123"),
        ("share", "0.10", "0.10"),
        ("exact", "True", "true"),
        ("exact", "false", "false"),
        ("exact", "maybe", "\"maybe\""),
        ("tags", "[\"a\", 1]", "[\"a\", 1]"),
        ("tags", "a, b", "\"a, b\""),
        ("place", "{\"x\": {\"y\": null}}", "{\"x\": {\"y\": null}}"),
        ("note", "null", "null"),
        ("note", "nullify", "\"nullify\""),
        ("unit", "c", "\"c\""),
        ("unknown", "{\"a\": 1}", "\"{\\\"a\\\": 1}\""),
    ] {
        let answer = format!(
            "<tool_call>\n<function=weather>\n<parameter={key}>\n{value}\n</parameter>\n</function>\n</tool_call>"
        );
        let arguments = format!("{{\"{key}\": {json}}}");
        check(&answer, say("", "", &[("weather", &arguments)]));
    }
    check(
        "<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        say("", "", &[("now", "{}"), ("now", "{}")]),
    );
    // Without the opening tag, or closing ones.
    check(
        "<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>",
        say("", "", &[("weather", r#"{"city": "Oslo"}"#)]),
    );
    check(
        "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</tool_call>ok",
        say("ok", "", &[("weather", r#"{"city": "Oslo"}"#)]),
    );
    check(
        "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</function>\n</tool_call>",
        say("", "", &[("weather", r#"{"city": "Oslo"}"#)]),
    );
    check(
        "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n",
        say("", "", &[("weather", r#"{"city": "Oslo"}"#)]),
    );
}

#[test]
fn glm() {
    let check = |answer: &str, expected| check(ToolFormat::Glm, answer, expected);
    check(
        "\n<think>Look it up.</think>\nI look.\n<tool_call>weather\n<arg_key>city</arg_key>\n\
         <arg_value>Oslo</arg_value>\n<arg_key>tags</arg_key>\n<arg_value>[\"a\"]</arg_value>\n</tool_call>",
        say("I look.", "Look it up.", &[("weather", r#"{"city": "Oslo", "tags": ["a"]}"#)]),
    );
    // 4.7 has no line breaks.
    check(
        "<tool_call>weather<arg_key>city</arg_key><arg_value> Oslo\n</arg_value></tool_call><tool_call>now</tool_call>",
        say("", "", &[("weather", r#"{"city": " Oslo\n"}"#), ("now", "{}")]),
    );
    check(
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value></arg_value> <arg_value></arg_value>\n</tool_call>",
        say("", "", &[("weather", r#"{"city": "</arg_value> <arg_value>"}"#)]),
    );
    check(
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value></arg_value></arg_value>\n</tool_call>",
        say("", "", &[("weather", r#"{"city": "</arg_value>"}"#)]),
    );
    check("<tool_call>now\n</tool_call>", say("", "", &[("now", "{}")]));
}

#[test]
fn deepseek() {
    let v3 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n\
              {\"city\": \"Oslo\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>\
              now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let v31 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Oslo\"}\
               <｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let calls = [("weather", r#"{"city": "Oslo"}"#), ("now", "{}")];
    for format in [ToolFormat::DeepSeekV3, ToolFormat::DeepSeekV31] {
        for answer in [v3, v31] {
            check(format, answer, say("", "", &calls));
            let spoken = format!("<think>Hm.</think>I look.\n\n{answer}");
            check(format, &spoken, say("I look.", "Hm.", &calls));
        }
        // A tool of that very name, a brace too few, no arguments, no section.
        check(
            format,
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{\"a\": [1<｜tool▁call▁end｜>",
            say("", "", &[("function", "{\"a\": [1]}")]),
        );
        check(
            format,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜><｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            say("", "", &[("now", "{}")]),
        );
    }
}

#[test]
fn kimi_keeps_its_ids() {
    let answer = "Both.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0\
                  <|tool_call_argument_begin|>{\"city\": \"<|tool_call_end|>\"}<|tool_call_end|>\
                  <|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|>\
                  <|tool_calls_section_end|>";
    let mut expected =
        say("Both.", "", &[("weather", "{\"city\": \"<|tool_call_end|>\"}"), ("now", "{}")]);
    expected.calls[0].id = Some("functions.weather:0".into());
    expected.calls[1].id = Some("functions.now:1".into());
    check(ToolFormat::KimiK2, answer, expected);
}

#[test]
fn harmony() {
    let check = |answer: &str, expected| check(ToolFormat::Harmony, answer, expected);
    check(
        "<|channel|>analysis<|message|>Sum: 4.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.",
        say("It is 4.", "Sum: 4.", &[]),
    );
    check(
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary \
         to=functions.weather <|constrain|>json<|message|>{\"city\": \"Oslo <|end|>\"}<|call|>",
        say("", "Look.", &[("weather", r#"{"city": "Oslo <|end|>"}"#)]),
    );
    // The recipient in front, a preamble, several thoughts, a stop token that was swallowed.
    check(
        "<|channel|>analysis<|message|>A.<|end|><|start|>assistant<|channel|>analysis<|message|>B.<|end|>\
         <|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant \
         to=functions.now<|channel|>commentary json<|message|>",
        say("I look.", "A.\nB.", &[("now", "{}")]),
    );
    check(
        "<|channel|>commentary to=functions.weather<|message|>{\"days\": 3",
        say("", "", &[("weather", "{\"days\": 3}")]),
    );
    check("It is 4.", say("It is 4.", "", &[]));
    let no = "<|channel|>commentary to=functions.weather<|message|>Oslo";
    check(no, say(no, "", &[]));
}

#[test]
fn reasoning_begins_where_the_prompt_says() {
    let think = Format { tools: None, reasoning: Some(Reasoning::Think) };
    let check = |start, answer: &str, text: &str, reasoning: &str| {
        let expected = say(text, reasoning, &[]);
        assert_eq!(told(think, &[], start, &[answer], End::Stop), expected, "{start:?} {answer}");
    };
    let inside = Start::Prompt("<|Assistant|><think>\n");
    check(inside, "So.\n</think>\n\nYes.", "Yes.", "So.");
    check(inside, "<think>So.\n</think>\n\nYes.", "Yes.", "So.");
    check(inside, "cut off", "", "cut off");
    for outside in ["<think>\n\n</think>\n\n", "</think>", "assistant\n", "<think> is a tag:"] {
        check(Start::Prompt(outside), "Yes.", "Yes.", "");
        check(Start::Prompt(outside), "<think>So.</think>\n\nYes.\n", "Yes.\n", "So.");
    }
    check(Start::Continued("<think>So"), " it is.</think>Yes.", "Yes.", "it is.");
    check(Start::Continued("<think>So</think>Ye"), "s.", "s.", "");

    let harmony = Format { tools: None, reasoning: Some(Reasoning::Harmony) };
    let start = Start::Prompt("<|start|>assistant<|channel|>final<|message|>It");
    assert_eq!(told(harmony, &[], start, &[" is."], End::Stop), say(" is.", "", &[]));
    let start = Start::Prompt("<|start|>assistant");
    let call = ["<|channel|>commentary to=functions.f<|message|>{}"];
    assert_eq!(told(harmony, &[], start, &call, End::Stop), say("{}", "", &[]));
}

#[test]
fn a_call_that_is_cut_off_keeps_its_arguments_and_has_no_end() {
    for (format, answer, arguments) in [
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Os",
            Some("{\"city\": \"Os"),
        ),
        (ToolFormat::Hermes, "<tool_call>{\"name\": \"weather\", \"arg", Some("")),
        (ToolFormat::Hermes, "<tool_call>{\"name\": \"wea", None),
        (ToolFormat::Hermes, "<tool_call>{\"name\": \"now\", \"arguments\": {}</tool_", Some("{}")),
        (
            ToolFormat::QwenCoder,
            "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n1",
            Some("{\"city\": \"Oslo\""),
        ),
        (
            ToolFormat::QwenCoder,
            "<tool_call>\n<function=weather>\n<parameter=city>\nOs</par",
            Some("{\"city\": \"Os"),
        ),
        (
            ToolFormat::Glm,
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Os",
            Some("{\"city\": \"Os"),
        ),
        (
            ToolFormat::DeepSeekV31,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city",
            Some("{\"city"),
        ),
        (
            ToolFormat::Harmony,
            "<|channel|>commentary to=functions.weather<|message|>{\"days\": 3",
            Some("{\"days\": 3"),
        ),
    ] {
        let start = Start::Prompt("<|start|>assistant");
        let told = told(self::format(format), &tools(), start, &[answer], End::Length);
        assert_eq!(told.text, "", "{answer}");
        let calls: Vec<(&str, bool)> =
            told.calls.iter().map(|call| (call.arguments.as_str(), call.complete)).collect();
        assert_eq!(calls, arguments.map(|arguments| (arguments, false)).as_slice(), "{answer}");
    }
}

#[test]
fn an_opening_leads_into_a_call() {
    let function = json!({"name": "weather", "parameters": tools()[0]["function"]["parameters"]});
    let none = json!({"name": "now", "parameters": {"type": "object", "properties": {}}});
    for (format, free, named, empty) in [
        (
            ToolFormat::Hermes,
            " \"weather\", \"arguments\": {\"city\": \"Oslo\"}}",
            " {\"city\": \"Oslo\"}}",
            " {}}\n</tool_call>",
        ),
        (
            ToolFormat::QwenCoder,
            "=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>",
            "<parameter=city>\nOslo\n</parameter>\n</function>",
            "</function>",
        ),
        (
            ToolFormat::DeepSeekV3,
            "weather\n```json\n{\"city\": \"Oslo\"}",
            "{\"city\": \"Oslo\"}",
            "{}",
        ),
        (
            ToolFormat::DeepSeekV31,
            "weather<｜tool▁sep｜>{\"city\": \"Oslo\"}",
            "{\"city\": \"Oslo\"}",
            "{}",
        ),
        (
            ToolFormat::KimiK2,
            ".weather:4<|tool_call_argument_begin|>{\"city\": \"Oslo\"}",
            "{\"city\": \"Oslo\"}",
            "{}",
        ),
        (
            ToolFormat::Glm,
            "weather\n<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call>",
            "\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value></tool_call>",
            "\n</tool_call>",
        ),
        (
            ToolFormat::Harmony,
            ".weather <|constrain|>json<|message|>{\"city\": \"Oslo\"}",
            "{\"city\": \"Oslo\"}",
            "{}",
        ),
    ] {
        for (wanted, rest, name) in [
            (None, free, "weather"),
            (Some(&function), named, "weather"),
            (Some(&none), empty, "now"),
        ] {
            for prompt in ["<|start|>assistant", "<|start|>assistant<think>\n"] {
                let opening = format.opening(prompt, wanted, 4);
                let start = Start::Prompt(prompt);
                let told =
                    told(self::format(format), &tools(), start, &[&opening, rest], End::Stop);
                assert_eq!((told.text, told.reasoning), (String::new(), String::new()));
                let call = &told.calls[0];
                let arguments = if name == "now" { "{}" } else { "{\"city\": \"Oslo\"}" };
                assert_eq!(
                    (call.name.as_str(), call.arguments.as_str()),
                    (name, arguments),
                    "{opening}{rest}"
                );
                assert!(call.complete);
                let numbered = format == ToolFormat::KimiK2;
                assert_eq!(call.id, numbered.then(|| format!("functions.{name}:4")));
            }
        }
    }
}

#[test]
fn templates_tell_their_format() {
    use ToolFormat::{DeepSeekV3, DeepSeekV31, Glm, Harmony, Hermes, KimiK2, QwenCoder};
    let think = Some(Reasoning::Think);
    for (source, tools, reasoning) in [
        ("{{ messages }}", None, None),
        ("{{ '<tool_call>\\n{\"name\": \"' }}", Some(Hermes), None),
        ("{{ '<tool_call>\\n<function=' }}</think>", Some(QwenCoder), think),
        ("<tool_call>{{ name }}<arg_key><think>", Some(Glm), think),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ '```json' }}", Some(DeepSeekV3), None),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜></think>", Some(DeepSeekV31), think),
        ("<|tool_calls_section_begin|><|tool_call_begin|>", Some(KimiK2), None),
        (
            "<|start|>assistant<|channel|>analysis<|message|>",
            Some(Harmony),
            Some(Reasoning::Harmony),
        ),
    ] {
        let template = krasis_text::Template::new(source, &Default::default()).unwrap();
        assert_eq!(template.format(), Format { tools, reasoning }, "{source}");
    }
    for name in ToolFormat::names() {
        assert!(ToolFormat::named(name).is_some());
    }
    for name in Reasoning::names() {
        assert!(Reasoning::named(name).is_some());
    }
}
