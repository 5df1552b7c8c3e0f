//! Answers under a form, of a model that says whatever it is allowed to.

mod common;

use common::random::Numbers;
use common::{Script, Server};
use jsonschema::Draft;
use krasis_server::Answers;
use krasis_text::{Format, Reasoning, ToolFormat};
use serde_json::{Map, Value, json};

const TEMPLATE: &str = "{% for m in messages %}{{ m.content }};{% endfor %}a:";

fn ask(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// The only choice of a blocking chat.
fn choice(server: &Server, body: Value) -> Value {
    let reply = server.post("/v1/chat/completions", body.clone());
    assert_eq!(reply.status, 200, "{body}: {}", reply.body);
    reply.json()["choices"][0].clone()
}

fn content(server: &Server, extra: Value) -> String {
    let choice = choice(server, ask(extra.clone()));
    assert_eq!(choice["finish_reason"], "stop", "{extra}: {choice}");
    choice["message"]["content"].as_str().unwrap().to_owned()
}

fn check(schema: &Value, answer: &str) {
    let value: Value = serde_json::from_str(answer)
        .unwrap_or_else(|error| panic!("{error}: {answer:?} for {schema}"));
    let judge =
        jsonschema::JSONSchema::options().with_draft(Draft::Draft202012).compile(schema).unwrap();
    assert!(judge.is_valid(&value), "{answer} is not valid under {schema}");
}

fn strict(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}})
}

/// Schemas of all that is kept to. `depth` ends them.
fn schema(random: &mut Numbers, depth: usize) -> Value {
    let bounds = |random: &mut Numbers| {
        let low = random.below(200) as i64 - 100;
        (low, low + random.below(300) as i64)
    };
    match random.below(if depth == 0 { 9 } else { 15 }) {
        0 => json!({"type": "string", "maxLength": 10 + random.below(30)}),
        1 => json!({"type": "string", "enum": ["a", "b\"c", "d\ne", "é", "5", ""]}),
        2 => {
            let patterns = ["^[a-z]{1,5}$", "[0-9]+-x", "^ab", "(cat|dog)s?$", "^\\d{3}-\\w{2}$"];
            // A random text would not come to hold some of them.
            let pattern = patterns[random.below(patterns.len())];
            json!({"type": "string", "pattern": pattern, "maxLength": 14})
        }
        3 => {
            let (low, high) = bounds(random);
            json!({"type": "integer", "minimum": low, "maximum": high})
        }
        4 => {
            let (low, high) = bounds(random);
            json!({"type": "number", "exclusiveMinimum": low, "maximum": high + 1})
        }
        5 => json!({"type": "boolean"}),
        6 => json!({"enum": [null, 1, "one", [1, {"a": 2}], 2.5]}),
        7 => json!({"const": {"k": [1, "two", null]}}),
        8 => json!({"type": ["integer", "null"]}),
        9 | 10 => object(random, depth),
        11 => {
            let low = random.below(3);
            json!({"type": "array", "items": schema(random, depth - 1), "minItems": low,
                   "maxItems": low + random.below(3)})
        }
        12 => json!({"type": "array", "prefixItems":
            [schema(random, depth - 1), schema(random, depth - 1)], "items": false, "minItems": 2}),
        13 => json!({"anyOf": [schema(random, depth - 1), schema(random, depth - 1)]}),
        _ => json!({"oneOf": [{"type": "string", "minLength": 2, "maxLength": 9}, {"type": "null"},
                              object(random, depth - 1)]}),
    }
}

/// An object, some of whose properties must be there.
fn object(random: &mut Numbers, depth: usize) -> Value {
    let names = ["id", "name", "with space", "tags", "é", "a\"b", "nested", "x"];
    let mut properties = Map::new();
    for _ in 0..random.below(5) {
        properties.insert(names[random.below(8)].into(), schema(random, depth.saturating_sub(1)));
    }
    let required: Vec<&String> = properties.keys().filter(|_| random.below(2) == 0).collect();
    json!({"type": "object", "required": required, "properties": properties,
           "additionalProperties": false})
}

#[test]
fn answers_under_a_thousand_random_schemas_are_valid() {
    let server = Server::start(Script::random(TEMPLATE));
    let mut random = Numbers(1);
    let mut tokens = 0;
    for case in 0..1000 {
        let schema = match case % 10 {
            // Definitions, and one that leads to itself.
            0 => json!({"$ref": "#/$defs/node", "$defs": {
                "leaf": schema(&mut random, 1),
                "node": {"type": "object", "additionalProperties": false, "required": ["leaf"],
                    "properties": {"leaf": {"$ref": "#/$defs/leaf"},
                        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}},
            }}),
            1 => json!({"allOf": [object(&mut random, 1), {"type": "object"}]}),
            _ => schema(&mut random, 3),
        };
        let body = ask(json!({"response_format": strict(&schema)}));
        let reply = server.post("/v1/chat/completions", body);
        assert_eq!(reply.status, 200, "{schema}: {}", reply.body);
        let reply = reply.json();
        assert_eq!(reply["choices"][0]["finish_reason"], "stop", "{schema}: {reply}");
        check(&schema, reply["choices"][0]["message"]["content"].as_str().unwrap());
        tokens += reply["usage"]["completion_tokens"].as_u64().unwrap();
    }
    println!("{tokens} tokens");
    assert!(tokens > 10_000, "answers of {tokens} tokens prove little");
}

/// What an argument may be, in all formats.
fn argument(random: &mut Numbers) -> Value {
    match random.below(12) {
        0 => json!({"type": "string"}),
        1 => json!({"type": "string", "enum": ["celsius", "a \"b\"", "<x>", "5", "null"]}),
        2 => json!({"type": "string", "minLength": 1, "maxLength": 12}),
        3 => json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"}),
        4 => json!({"type": ["string", "null"]}),
        5 => {
            json!({"anyOf": [{"type": "string", "maxLength": 20}, {"type": "integer", "minimum": 3}]})
        }
        6 => json!({"type": ["string", "object"], "description": "both"}),
        7 => json!({"$ref": "#/$defs/point"}),
        8 => json!({"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3}),
        9 => json!({"anyOf": [{"$ref": "#/$defs/point"}, {"type": "null"}]}),
        10 => json!({}),
        _ => schema(random, 0),
    }
}

/// Three functions, whose names begin alike.
fn tools(random: &mut Numbers) -> Value {
    let mut tool = |name: &str| {
        let names = ["city", "unit", "at", "a_b", "café"];
        let mut properties = Map::new();
        for _ in 0..random.below(5) {
            properties.insert(names[random.below(5)].into(), argument(random));
        }
        let required: Vec<&String> = properties.keys().filter(|_| random.below(2) == 0).collect();
        json!({"type": "function", "function": {"name": name, "strict": true, "parameters": {
            "type": "object", "required": required, "properties": properties,
            "additionalProperties": false,
            "$defs": {"point": {"type": "object", "required": ["x"], "additionalProperties": false,
                "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}}}}}})
    };
    ["get", "get_more", "other-one"].map(&mut tool).into_iter().collect()
}

/// All of an answer's calls are to tools that are offered, with arguments that they take.
fn check_calls(choice: &Value, tools: &Value, most: usize) {
    assert_eq!(choice["finish_reason"], "tool_calls", "{choice} of {tools}");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert!((1..=most).contains(&calls.len()), "{choice}");
    for call in calls {
        let name = &call["function"]["name"];
        let tool = tools.as_array().unwrap().iter().find(|tool| tool["function"]["name"] == *name);
        let tool = tool.unwrap_or_else(|| panic!("{name} is none of the tools"));
        check(&tool["function"]["parameters"], call["function"]["arguments"].as_str().unwrap());
    }
}

/// Every format, and what a model writes of its own accord before a call is open.
const FORMATS: [(ToolFormat, &[&str]); 7] = [
    (ToolFormat::Hermes, &["Well.\n<tool_call>"]),
    (ToolFormat::QwenCoder, &["<tool_call>", "I call <function="]),
    (ToolFormat::DeepSeekV3, &["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"]),
    (ToolFormat::DeepSeekV31, &["So: <｜tool▁calls▁begin｜>"]),
    (ToolFormat::KimiK2, &["<|tool_calls_section_begin|>"]),
    (ToolFormat::Glm, &["<think>Hm <tool_call> or not</think>\n<tool_call>"]),
    (
        ToolFormat::Harmony,
        &[
            "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary to=functions.",
            "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant to=functions.",
        ],
    ),
];

fn in_format(tools: ToolFormat, script: Script) -> Script {
    let reasoning = match tools {
        ToolFormat::Harmony => Reasoning::Harmony,
        _ => Reasoning::Think,
    };
    let format = Format { tools: Some(tools), reasoning: Some(reasoning) };
    let template = "{% if tools %}{% endif %}{% for m in messages %}{{ m.content }};{% endfor %}<|start|>assistant";
    Script { template, answers: Some(Answers { format, ..Answers::default() }), ..script }
}

#[test]
fn demanded_calls_have_the_name_of_a_tool_and_valid_arguments() {
    for (format, _) in FORMATS {
        let server = Server::start(in_format(format, Script::random(TEMPLATE)));
        let mut random = Numbers(2);
        let mut named = [0; 3];
        for case in 0..40 {
            let tools = tools(&mut random);
            let asked = ask(json!({"tools": tools, "tool_choice": "required", "seed": case}));
            let required = choice(&server, asked);
            check_calls(&required, &tools, usize::MAX);
            let name = &required["message"]["tool_calls"][0]["function"]["name"];
            let index =
                (0..3usize).find(|index| tools[*index]["function"]["name"] == *name).unwrap();
            named[index] += 1;
            let one = &tools[case % 3]["function"]["name"];
            let function = json!({"type": "function", "function": {"name": one}});
            let asked = ask(json!({"tools": tools, "tool_choice": function}));
            let demanded = choice(&server, asked);
            check_calls(&demanded, &tools, 1);
            assert_eq!(demanded["message"]["tool_calls"][0]["function"]["name"], *one);
        }
        assert!(named.iter().filter(|times| **times > 0).count() > 1, "{format:?}: {named:?}");
    }
}

#[test]
fn calls_of_strict_tools_that_nobody_demanded_are_valid_too() {
    for (format, beginnings) in FORMATS {
        for beginning in beginnings {
            let script = Script::random(TEMPLATE).saying_first(beginning);
            let server = Server::start(in_format(format, script));
            let mut random = Numbers(3);
            for _ in 0..20 {
                let mut tools = tools(&mut random);
                // A tool beside them that takes anything.
                tools[2]["function"]["strict"] = false.into();
                tools[2]["function"]["parameters"] = json!({"type": "object"});
                let asked = ask(json!({"tools": tools, "parallel_tool_calls": false}));
                check_calls(&choice(&server, asked), &tools, 1);
            }
        }
    }
}

/// A stream's text, and the reason that it ended with.
fn streamed(server: &Server, path: &str, mut body: Value) -> (String, Value) {
    body["stream"] = true.into();
    let reply = server.post(path, body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let (mut text, mut reason) = (String::new(), Value::Null);
    for event in reply.events() {
        let choice = &event["choices"][0];
        text += choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or_default();
        reason = choice["finish_reason"].clone();
    }
    (text, reason)
}

#[test]
fn every_field_gives_the_answer_its_form() {
    let server = Server::start(Script::random(TEMPLATE));
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0,
        "maximum": 99}}, "required": ["a"], "additionalProperties": false});
    let is_object = |text: &str| serde_json::from_str::<Map<String, Value>>(text).is_ok();
    let is_small = |text: &str| {
        serde_json::from_str::<Value>(text)
            .is_ok_and(|value| (0..100).contains(&value["a"].as_i64().unwrap()))
    };
    let is_code = |text: &str| {
        let (digits, letters) = text.split_once('-').unwrap();
        digits.len() == 3 && digits.parse::<u32>().is_ok() && ["x", "yy"].contains(&letters)
    };
    let is_choice = |text: &str| ["left", "right \"one\""].contains(&text);
    let is_nested = |text: &str| {
        text.trim_matches(['(', ')']) == "x"
            && text.matches('(').count() == text.matches(')').count()
    };
    let code = "^[0-9]{3}-(x|yy)$";
    let choices = json!(["left", "right \"one\""]);
    let lark = "start: \"x\" | \"(\" start \")\"";
    let gbnf = "# Nested.\nroot ::= \"x\" | \"(\" root \")\"\n";
    let is_pair = |text: &str| is_small(text.strip_prefix("v = ").unwrap());
    let pair = json!({"type": "structural_tag", "format": {"type": "sequence", "elements":
        [{"type": "const_string", "value": "v = "}, {"type": "json_schema", "json_schema": schema}]}});
    let is_tag = |text: &str| {
        let inside = text.strip_prefix("<n>").and_then(|text| text.strip_suffix("</n>")).unwrap();
        !inside.is_empty() && inside.len() < 10
    };
    let tag = json!({"type": "tag", "begin": "<n>", "end": ["</n>"],
        "content": {"type": "regex", "pattern": "[n</>]{1,9}"}});
    let one_of = json!({"format": {"type": "or", "elements": [tag,
        {"type": "tag", "begin": "<n>", "content": {"type": "grammar", "grammar": "root ::= [ab]"}, "end": "</n>"}]}});
    type Holds<'a> = &'a dyn Fn(&str) -> bool;
    let cases: [(Value, Holds); 20] = [
        (json!({"grammar": gbnf}), &is_nested),
        (json!({"ebnf": gbnf, "grammar_lazy": false}), &is_nested),
        (json!({"structured_outputs": {"grammar": gbnf}}), &is_nested),
        (json!({"json_schema": schema, "grammar": ""}), &is_small),
        (json!({"regex": code, "json_schema": ""}), &is_code),
        (json!({"response_format": pair}), &is_pair),
        (json!({"response_format": {"type": "structural_tag", "format": tag}}), &is_tag),
        (json!({"structured_outputs": {"structural_tag": one_of.to_string()}}), &is_tag),
        (json!({"response_format": {"type": "json_object"}}), &is_object),
        (json!({"response_format": {"type": "json_object", "schema": schema}}), &is_small),
        (json!({"response_format": strict(&schema)}), &is_small),
        (json!({"response_format": {"type": "json_schema", "schema": schema}}), &is_small),
        (json!({"guided_json": schema}), &is_small),
        (json!({"guided_json": schema.to_string()}), &is_small),
        (json!({"structured_outputs": {"json": schema, "disable_fallback": true}}), &is_small),
        (json!({"structured_outputs": {"json_object": true, "regex": null}}), &is_object),
        (json!({"guided_regex": code}), &is_code),
        (json!({"structured_outputs": {"choice": choices}}), &is_choice),
        (json!({"guided_choice": choices}), &is_choice),
        (json!({"guided_grammar": lark}), &is_nested),
    ];
    for (extra, holds) in cases {
        let text = content(&server, extra.clone());
        assert!(holds(&text), "{extra}: {text}");
        let (text, reason) = streamed(&server, "/v1/chat/completions", ask(extra.clone()));
        assert!(holds(&text) && reason == "stop", "{extra}: {text}");
        let mut body = extra.clone();
        body["prompt"] = "hi".into();
        body["max_tokens"] = 2000.into();
        let (text, reason) = streamed(&server, "/v1/completions", body);
        assert!(holds(&text) && reason == "stop", "{extra}: {text}");
    }
}

/// Both notations of tags in a text, of which the older has schemas alone.
#[test]
fn what_follows_a_trigger_is_a_tag() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0,
        "maximum": 99}}, "required": ["a"], "additionalProperties": false});
    let (begins, end) = (["<call=one>", "<call=two>"], "</call>");
    let older = json!({"type": "structural_tag", "triggers": ["<call="], "structures":
        begins.map(|begin| json!({"begin": begin, "schema": schema, "end": end}))});
    let tags = begins.map(|begin| {
        json!({"type": "tag", "begin": begin, "end": end,
        "content": {"type": "json_schema", "json_schema": schema}})
    });
    let newer = json!({"type": "structural_tag", "format": {"type": "triggered_tags",
        "triggers": ["<call="], "tags": tags, "at_least_one": true, "stop_after_first": true}});
    for (asked, words) in [(&older, "Hm. <call="), (&newer, "Hm. <call="), (&older, "Hm.")] {
        let server = Server::start(Script::random(TEMPLATE).saying_first(words));
        let mut spoken = 0;
        for seed in 0..10 {
            let body = json!({"response_format": asked, "seed": seed});
            let text = content(&server, body.clone());
            let mut parts = text.split("<call=");
            assert!(parts.next().unwrap().starts_with("Hm."), "{text}");
            assert!(words == "Hm." || text.starts_with(words), "{text}");
            for part in parts {
                let (call, rest) = part.split_once(end).unwrap();
                let (name, arguments) = call.split_once('>').unwrap();
                assert!(["one", "two"].contains(&name), "{text}");
                check(&schema, arguments);
                assert!(asked == &older || rest.is_empty(), "{text}");
                spoken += rest.len();
            }
            let (streamed, reason) = streamed(&server, "/v1/chat/completions", ask(body));
            assert!(streamed.starts_with(words) && reason == "stop", "{streamed}");
        }
        assert_eq!(spoken > 0, asked == &older && words != "Hm.", "{spoken} bytes behind calls");
    }
}

#[test]
fn what_is_beside_the_form_stays_as_it_is() {
    let server = Server::start(Script::random(TEMPLATE));
    let code = json!({"guided_regex": "[a-c]{40}", "n": 3, "logprobs": true, "top_logprobs": 2});
    let reply = server.post("/v1/chat/completions", ask(code)).json();
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for choice in choices {
        let content = choice["message"]["content"].as_str().unwrap();
        assert!(content.len() == 40 && content.bytes().all(|byte| b"abc".contains(&byte)));
        let logprobs = choice["logprobs"]["content"].as_array().unwrap();
        let tokens = logprobs.iter().map(|entry| entry["token"].as_str().unwrap());
        assert_eq!(tokens.filter(|token| *token != "<|im_end|>").collect::<String>(), content);
    }
    // Cut off is cut off.
    let body = ask(json!({"guided_regex": "[a-c]{40}", "max_tokens": 3}));
    let cut = choice(&server, body);
    assert_eq!(cut["finish_reason"], "length");
    assert!((3..40).contains(&cut["message"]["content"].as_str().unwrap().len()), "{cut}");
    // The model's stop tokens are no way out before the form is complete, and stop strings are one.
    let body = ask(json!({"guided_regex": "[a-c]{9}x[a-c]{9}", "stop": "x"}));
    let stopped = choice(&server, body);
    assert_eq!(
        (stopped["message"]["content"].as_str().unwrap().len(), &stopped["finish_reason"]),
        (9, &json!("stop"))
    );
    let ignored = ask(json!({"guided_regex": "[a-c]{9}", "ignore_eos": true}));
    assert_eq!(choice(&server, ignored)["message"]["content"].as_str().unwrap().len(), 9);
}

/// Opens thoughts for the model, or lets it begin them.
const THINKS: &str = "{% for m in messages %}{{ m.content }};{% endfor %}a:{% if opened %}<think>\n{% endif %}{{ '</think>' if false }}";

#[test]
fn thoughts_come_before_the_form() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 40}},
                        "required": ["a"], "additionalProperties": false});
    for (opened, words) in
        [(true, "Hm: {\"b\":\n</think>\n\n"), (false, "<think>\nHm: {\"b\":</think>")]
    {
        let script = Script::random(THINKS).saying_first(words);
        let server = Server::start(Script { template: THINKS, ..script });
        let kwargs = json!({"opened": opened});
        let body = ask(json!({"response_format": strict(&schema), "chat_template_kwargs": kwargs}));
        let message = choice(&server, body.clone())["message"].clone();
        assert_eq!(message["reasoning_content"], "Hm: {\"b\":");
        check(&schema, message["content"].as_str().unwrap());
        check(&schema, &streamed(&server, "/v1/chat/completions", body).0);
    }
    // gpt-oss thinks in a channel of its own.
    let words =
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>";
    let script = in_format(ToolFormat::Harmony, Script::random(TEMPLATE).saying_first(words));
    let server = Server::start(script);
    let message =
        choice(&server, ask(json!({"response_format": strict(&schema)})))["message"].clone();
    assert_eq!(message["reasoning_content"], "Hm.");
    check(&schema, message["content"].as_str().unwrap());
}

#[test]
fn what_looks_like_a_marker_within_a_form_is_text() {
    let form = json!({"guided_regex": "a<think>b</think>c<tool_call>[0-9]"});
    let server = Server::start(Script { template: THINKS, ..Script::random(THINKS) });
    let text = content(&server, form);
    assert_eq!(&text[..text.len() - 1], "a<think>b</think>c<tool_call>");
}

/// With tools, an answer in a form may be a call instead.
#[test]
fn a_form_leaves_calls_possible() {
    let mut random = Numbers(4);
    let schema = json!({"enum": ["yes", "no"]});
    for (format, words) in [
        (ToolFormat::Hermes, "<tool_call>"),
        (ToolFormat::Hermes, "\""),
        (ToolFormat::Glm, "<tool_call>"),
        (ToolFormat::QwenCoder, "\""),
    ] {
        let script = Script::random(TEMPLATE).saying_first(words);
        let server = Server::start(in_format(format, script));
        let tools = tools(&mut random);
        let body = json!({"tools": tools, "response_format": strict(&schema), "parallel_tool_calls": false});
        let choice = choice(&server, ask(body));
        match words {
            "\"" => check(&schema, choice["message"]["content"].as_str().unwrap()),
            _ => check_calls(&choice, &tools, 1),
        }
    }
}
