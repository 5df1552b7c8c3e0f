//! Grammars of answers: what they allow, where they begin, and what they refuse.

mod common;

use krasis_text::{
    Allowed, Demand, Form, Format, GrammarError, Grammars, Guide, Reasoning, Rules, Strictness,
    Tag, Tags, Tokenizer, ToolFormat,
};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn demo() -> Arc<Tokenizer> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/model");
    Arc::new(Tokenizer::load(&folder).unwrap())
}

fn of_form(form: &Form) -> Rules<'_> {
    Rules { form: Some(form), ..Rules::FREE }
}

fn allows(guide: &mut Guide, token: u32) -> bool {
    let Allowed { tokens, .. } = guide.allowed().unwrap();
    tokens.is_none_or(|words| {
        words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    })
}

fn may_end(guide: &mut Guide) -> bool {
    guide.is_finished() || guide.allowed().unwrap().may_end
}

/// Whether the text, in these tokens, may be written; and if so, whether it may end there.
fn fate(tokenizer: &Tokenizer, guide: &mut Guide, text: &str) -> Option<bool> {
    for token in tokenizer.encode_rendered(text).unwrap() {
        if guide.is_finished() || !allows(guide, token) {
            return None;
        }
        guide.accept(token);
    }
    Some(may_end(guide))
}

#[test]
fn texts_keep_to_their_form() {
    let schema = |schema: Value| Form::Schema(schema, Strictness::Strict);
    let color = json!({"type": "object", "properties": {"color": {"enum": ["red", "blue"]}},
                       "required": ["color"], "additionalProperties": false});
    for tokenizer in [demo(), common::byte_level()] {
        let grammars = Grammars::new(tokenizer.clone());
        for (form, text, expected) in [
            (Form::Object, "{}", Some(true)),
            (Form::Object, "{\"a\": [1, {\"b\": null}],\n    \"ü\": \"\\n\"}", Some(true)),
            (Form::Object, "{\"a\": ", Some(false)),
            (Form::Object, "[]", None),
            (Form::Object, "{\"a\": 01}", None),
            (Form::Object, "{\"a\":                         1}", None),
            (schema(color.clone()), "{\"color\": \"red\"}", Some(true)),
            (schema(color.clone()), "{\"color\": \"green\"}", None),
            (schema(color.clone()), "{}", None),
            (schema(json!(true)), "[1]", Some(true)),
            (Form::Regex("[0-9]{3}-x?".into()), "123-", Some(true)),
            (Form::Regex("^[0-9]{3}-x?$".into()), "123-x", Some(true)),
            (Form::Regex("[0-9]{3}-x?".into()), "12-", None),
            (Form::Regex("a|b\\$".into()), "b$", Some(true)),
            (Form::Choice(vec!["yes".into(), "no \"é\"".into()]), "no \"é\"", Some(true)),
            (Form::Choice(vec!["yes".into(), "yes!".into()]), "yes", Some(true)),
            (Form::Choice(vec!["yes".into(), "no".into()]), "maybe", None),
            (
                Form::Grammar(
                    "start: item (\",\" item)*\nitem: /[a-z]+/ | \"(\" start \")\"".into(),
                ),
                "a,(b,c)",
                Some(true),
            ),
            (
                Form::Grammar(
                    "start: item (\",\" item)*\nitem: /[a-z]+/ | \"(\" start \")\"".into(),
                ),
                "a,(b",
                Some(false),
            ),
        ] {
            let mut guide = grammars.compile(&of_form(&form)).unwrap().unwrap().begin();
            assert_eq!(fate(&tokenizer, &mut guide, text), expected, "{text} as {form:?}");
        }
    }
}

/// A text with tags, before and behind them and in thoughts.
#[test]
fn tags_are_kept_to_and_the_text_between_them_is_free() {
    let tag = |begin: &str, content| Tag {
        begin: begin.into(),
        content: Box::new(content),
        end: "</f>".into(),
    };
    let color = json!({"type": "object", "properties": {"color": {"enum": ["red"]}},
                       "required": ["color"], "additionalProperties": false});
    let tags = Tags {
        triggers: vec!["<f".into()],
        tags: vec![
            tag("<f>", Form::Schema(color, Strictness::Strict)),
            tag("<f2>", Form::Regex(".{1,20}".into())),
        ],
        demanded: false,
        single: false,
    };
    let demanded = Tags { demanded: true, ..tags.clone() };
    let single = Tags { single: true, ..demanded.clone() };
    let prompts = ["a:", "a:<think>\n"];
    for tokenizer in [demo(), common::byte_level()] {
        let grammars = Grammars::new(tokenizer.clone());
        for (tags, prompt, text, expected) in [
            (&tags, 0, "no tag at all", Some(true)),
            (&tags, 0, "a <f>{\"color\": \"red\"}</f> b", Some(true)),
            (&tags, 0, "<f2>a</b></f> b <f>{\"color\": \"red\"}</f><f2>x</f>", Some(true)),
            (&tags, 0, "<f2>x</f> b <f>{\"color\": \"red\"}", Some(false)),
            (&tags, 0, "<f>{\"color\": \"blue\"", None),
            (&tags, 0, "<f2></f>", Some(false)),
            (&tags, 0, "<f3>", None),
            (&tags, 0, "a <g>", Some(true)),
            (&demanded, 0, "no tag at all", Some(false)),
            (&demanded, 0, "a <f2>b</f>", Some(true)),
            (&demanded, 0, "a <f2>b</f> c", Some(true)),
            (&single, 0, "a <f2>b</f>", Some(true)),
            (&single, 0, "a <f2>b</f> c", None),
            (&tags, 1, "Hm <f> or not</think> a <f2>b</f> c", Some(true)),
            (&demanded, 1, "Hm</think>", Some(false)),
            (&tags, 1, "Hm</think><f>x", None),
        ] {
            let form = Form::Tagged(tags.clone());
            let rules = Rules { format: THINKING, prompt: prompts[prompt], ..of_form(&form) };
            let mut guide = grammars.compile(&rules).unwrap().unwrap().begin();
            assert_eq!(fate(&tokenizer, &mut guide, text), expected, "{text}");
        }
    }
}

#[test]
fn what_is_complete_says_so() {
    let tokenizer = demo();
    let grammars = Grammars::new(tokenizer.clone());
    let mut object = grammars.compile(&of_form(&Form::Object)).unwrap().unwrap().begin();
    assert_eq!(fate(&tokenizer, &mut object, "{\"a\": 1}"), Some(true));
    assert!(object.is_finished());
    // Two answers to one request do not know of each other.
    let form = Form::Choice(vec!["ab".into(), "cd".into()]);
    let grammar = grammars.compile(&of_form(&form)).unwrap().unwrap();
    let (mut one, mut other) = (grammar.begin(), grammar.begin());
    assert_eq!(fate(&tokenizer, &mut one, "ab"), Some(true));
    assert_eq!(fate(&tokenizer, &mut other, "cd"), Some(true));
}

const THINKING: Format = Format { tools: None, reasoning: Some(Reasoning::Think) };

#[test]
fn the_form_begins_behind_the_thoughts() {
    let form = Form::Regex("[0-9]+".into());
    for tokenizer in [demo(), common::byte_level()] {
        let grammars = Grammars::new(tokenizer.clone());
        let begin = |prompt| {
            let rules = Rules { format: THINKING, prompt, ..of_form(&form) };
            grammars.compile(&rules).unwrap().unwrap().begin()
        };
        for (prompt, text, expected) in [
            ("a:<think>\n", "x { 7", Some(false)),
            ("a:<think>\n", "x</think>12", Some(true)),
            ("a:<think>\n", "x<</think></think>\n\n12", None),
            ("a:<think>\n", "x< /think</thin</think>\n\n12", Some(true)),
            ("a:<think>\n", "x</think>", Some(false)),
            ("a:<think>\n", "x</think>a", None),
            ("a:<think>\n\n</think>\n\n", "12", Some(true)),
            ("a:<think>\n\n</think>\n\n", "<think>", None),
            ("a:", "12", Some(true)),
            ("a:", "x", None),
        ] {
            assert_eq!(fate(&tokenizer, &mut begin(prompt), text), expected, "{prompt}{text}");
        }
    }
    // Where the marker is one token, a model may begin to think by itself.
    let tokenizer = demo();
    let rules = Rules { format: THINKING, prompt: "a:", ..of_form(&form) };
    let grammar = Grammars::new(tokenizer.clone()).compile(&rules).unwrap().unwrap();
    assert_eq!(fate(&tokenizer, &mut grammar.begin(), "<think>x</think>\n\n12"), Some(true));
    assert_eq!(fate(&tokenizer, &mut grammar.begin(), "1<think>"), None);
}

/// `>` and a line break are one token of some vocabularies, which a marker must not end in.
#[test]
fn a_marker_ends_with_its_token() {
    let mut json = common::byte_level_json();
    let merged = ">Ċ";
    let id = 255 + 6;
    json["model"]["vocab"][merged] = id.into();
    json["model"]["merges"].as_array_mut().unwrap().push("> Ċ".into());
    for token in json["added_tokens"].as_array_mut().unwrap() {
        token["id"] = (token["id"].as_u64().unwrap() + 1).into();
    }
    let tokenizer = Tokenizer::from_json(&json.to_string(), common::specials()).unwrap();
    let tokenizer = Arc::new(tokenizer);
    assert_eq!(tokenizer.token_bytes(id), b">\n");
    let form = Form::Regex("[0-9]+".into());
    let rules = Rules { format: THINKING, prompt: "<think>", ..of_form(&form) };
    let grammar = Grammars::new(tokenizer.clone()).compile(&rules).unwrap().unwrap();
    let mut guide = grammar.begin();
    assert!(fate(&tokenizer, &mut guide, "a > </think").is_some());
    assert!(!allows(&mut guide, id) && allows(&mut guide, u32::from(b'>')));
    let mut guide = grammar.begin();
    assert!(fate(&tokenizer, &mut guide, "a > </thinks").is_some());
    assert!(allows(&mut guide, id));
}

#[test]
fn tokens_that_are_markers_are_no_text() {
    let tokenizer = demo();
    let grammars = Grammars::new(tokenizer.clone());
    let mut guide = grammars.compile(&of_form(&Form::Object)).unwrap().unwrap().begin();
    assert_eq!(fate(&tokenizer, &mut guide, "{\"a\": \"b"), Some(false));
    for marker in ["<|im_end|>", "<tool_call>", "<think>"] {
        assert!(!allows(&mut guide, tokenizer.id(marker).unwrap()), "{marker}");
    }
}

/// Deeper than a trie may be.
#[test]
fn a_token_of_a_thousand_bytes_is_no_way_to_go_on_and_no_hindrance() {
    let mut json = common::byte_level_json();
    let id = 255 + 9;
    json["model"]["vocab"]["a".repeat(3000)] = id.into();
    let tokenizer = Tokenizer::from_json(&json.to_string(), common::specials()).unwrap();
    let tokenizer = Arc::new(tokenizer);
    let grammars = Grammars::new(tokenizer.clone());
    grammars.prepare();
    let form = Form::Regex("a*b".into());
    let mut guide = grammars.compile(&of_form(&form)).unwrap().unwrap().begin();
    assert!(allows(&mut guide, u32::from(b'a')) && !allows(&mut guide, id));
    assert_eq!(fate(&tokenizer, &mut guide, "aaab"), Some(true));
}

#[test]
fn nothing_to_keep_to_is_free() {
    let grammars = Grammars::new(demo());
    let format = Format { tools: Some(ToolFormat::Hermes), reasoning: None };
    let loose = [json!({"function": {"name": "f", "parameters": {"type": "object"}}})];
    assert!(grammars.compile(&Rules::FREE).unwrap().is_none());
    assert!(grammars.compile(&Rules { format, tools: &loose, ..Rules::FREE }).unwrap().is_none());
    let strict =
        [json!({"function": {"name": "f", "strict": true, "parameters": {"type": "object"}}})];
    assert!(grammars.compile(&Rules { format, tools: &strict, ..Rules::FREE }).unwrap().is_some());
    assert!(grammars.compile(&Rules { tools: &strict, ..Rules::FREE }).unwrap().is_none());
}

#[test]
fn a_refusal_says_which_tool() {
    let grammars = Grammars::new(demo());
    let tools = [
        json!({"function": {"name": "f", "parameters": {"type": "object"}}}),
        json!({"function": {"name": "g", "strict": true, "parameters": {"properties": {"a": {"not": {}}}}}}),
    ];
    let demand = Demand::Call { opening: "", number: 0 };
    for format in [ToolFormat::Hermes, ToolFormat::Glm, ToolFormat::KimiK2] {
        let format = Format { tools: Some(format), reasoning: None };
        let rules = Rules { format, tools: &tools, demand, ..Rules::FREE };
        match grammars.compile(&rules) {
            Err(GrammarError::Tool { index: 1, reason }) => {
                assert!(reason.contains("not"), "{reason}")
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Rules that are wrong, senseless or made to take long. Each is refused or kept to, in time.
#[test]
fn hostile_rules_neither_hang_nor_crash() {
    let tokenizer = demo();
    let grammars = Grammars::new(tokenizer.clone());
    let nested = |open: &str, inner: &str, close: &str, times: usize| {
        open.repeat(times) + inner + &close.repeat(times)
    };
    let chain: String = (0..2500).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    let mut deep = json!({"type": "string"});
    for _ in 0..100 {
        deep = json!({"type": "object", "properties": {"a": deep}, "required": ["a"]});
    }
    let either = || json!({"anyOf": [{"minimum": 1}, {"maximum": 2}, {"multipleOf": 3}]});
    let properties = |count: usize| -> Value {
        let property = |i| (format!("p{i}"), json!({"type": "string", "maxLength": 9}));
        (0..count).map(property).collect::<serde_json::Map<_, _>>().into()
    };
    let schemas = [
        json!(7),
        json!(false),
        json!({"type": "integer", "minimum": 2, "maximum": 1}),
        json!({"type": "strung"}),
        json!({"$ref": "#"}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"$ref": "https://example.com/x.json"}),
        json!({"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}),
        json!({"type": "string", "maxLength": 524_288}),
        json!({"type": "string", "minLength": 500_000}),
        json!({"type": "string", "maxLength": u64::MAX}),
        json!({"type": "array", "minItems": 1_000_000_000u64}),
        json!({"type": "array", "items": {"type": "array", "maxItems": 9999}, "maxItems": 9999}),
        json!({"type": "string", "pattern": "(((a{1,500}){1,500}){1,500})"}),
        json!({"type": "string", "pattern": "(a|"}),
        json!({"type": "string", "pattern": nested("(", "a", ")*", 2000)}),
        json!({"type": "number", "multipleOf": 0}),
        json!({"type": "number", "multipleOf": 1e-300}),
        json!({"type": "integer", "minimum": -1e300, "maximum": 1e300}),
        json!({"enum": (0..20_000).map(|i| format!("value {i}")).collect::<Vec<_>>()}),
        json!({"enum": []}),
        json!({"type": "object", "properties": properties(3000)}),
        json!({"type": "object", "properties": properties(300), "minProperties": 200}),
        json!({"allOf": vec![either(); 20]}),
        json!({"type": "object", "patternProperties": {"^a.*b.*c.*d$": {}, "^.*x{50}.*$": {}}}),
        json!({"x-guidance": {"lenient": true, "nonsense": 1}, "not": {}}),
        json!({"const": "é".repeat(70)}),
        json!({"not": "é".repeat(120)}),
        deep,
    ];
    let regexes = [
        "".to_owned(),
        "(".to_owned(),
        "(?<=a)b".to_owned(),
        "a{2000000000}".to_owned(),
        "((a{0,999}){0,999}){0,999}".to_owned(),
        "[a-z]*x[a-z]{2000}".to_owned(),
        "(a?){3000}a{3000}".to_owned(),
        nested("(", "a", ")?", 10_000),
        nested("(a|", "a", ")", 6_000),
        "(.*a.*b.*c.*d){50}".to_owned(),
        "\\p{L}{1,3000}é".to_owned(),
        "a".repeat(100_000),
    ];
    let larks = [
        "".to_owned(),
        "start: start".to_owned(),
        "start: start start | \"\"".to_owned(),
        "start: start \"a\" | start \"b\" start | \"\"".to_owned(),
        "start: @g0".to_owned(),
        "start: @nowhere".to_owned(),
        "start: <|im_start|> <[99999]>".to_owned(),
        "start: %json {\"type\": \"object\"".to_owned(),
        "start: \"a\"{1000}{1000}".to_owned(),
        format!("start: {}", "\"a\"? ".repeat(6000)),
        format!("start: {}", nested("(", "\"a\"", ")", 15_000)),
        format!("start: {}", nested("[", "\"a\"", "]", 15_000)),
        format!("start: T\nT: {}", nested("~(", "\"a\"", ")", 9_000)),
        format!("start: {}", nested("%lark {\nstart: ", "\"a\"", "\n}", 1000)),
        format!("start: r0\n{chain}r2500: \"a\""),
        "start: A{900}\nA: /[a-z]*x[a-z]{300}/".to_owned(),
        "start: /(?s:.*)/ & /b/".to_owned(),
    ];
    let forms = schemas.into_iter().map(|schema| Form::Schema(schema, Strictness::Strict));
    let chain: String = (0..1500).map(|i| format!("r{i} ::= \"a\" r{} | \"b\"\n", i + 1)).collect();
    let loops: String = (0..600)
        .map(|i| format!("r{i} ::= r{}? \"{i}\" r{}\n", i * 7 % 600, i * 13 % 600))
        .collect();
    let doubles: String = (0..900).map(|i| format!("r{i} ::= r{} r{}\n", i + 1, i + 1)).collect();
    let alike: String = (0..900).map(|i| format!(" | [a-z]+ \"{i}\" root")).collect();
    let gbnfs = [
        "root ::= root".to_owned(),
        "root ::= root root | \"\"".to_owned(),
        "root ::= root* root+ root? \"a\"{2}".to_owned(),
        "root ::= (\"a\"{0,100000}){0,100000} root | \"b\"".to_owned(),
        "root ::= ((([a-z]{1,500}){1,500}){1,500})".to_owned(),
        "root ::= (\"a\"*)*{0,99} root?".to_owned(),
        format!("root ::= {} root | \"a\"", "\"a\"? ".repeat(4000)),
        format!("root ::= {}", "(".repeat(30_000)),
        format!("root ::= {}\"a\" root{}", "(".repeat(90), ")?".repeat(90)),
        format!("root ::= {}\"a\"{} root | \"b\"", "(".repeat(90), ")*".repeat(90)),
        format!("root ::= r0\n{chain}r1500 ::= root"),
        format!("root ::= r0\n{loops}"),
        format!("root ::= r0 root?\n{doubles}r900 ::= \"a\" | \"b\""),
        format!("root ::= \"a\"{alike}"),
        format!(
            "root ::= [{}] root?",
            (0..3000).map(|i| format!("\\U{:08x}", 0x4e00 + 2 * i)).collect::<String>()
        ),
        "root ::= \u{0} ::= \u{0}".to_owned(),
    ];
    let tags = |triggers: Vec<String>, begin: String| {
        let tag = Tag { begin, content: Box::new(Form::Object), end: String::new() };
        Form::Tagged(Tags { triggers, tags: vec![tag; 256], demanded: true, single: false })
    };
    let tagged = [
        tags(vec!["<".into(); 16], "<".repeat(20_000)),
        tags(Vec::new(), "a".into()),
        tags(vec!["e".into(), " ".into(), "t".into()], "e t".into()),
        tags(vec!["x".repeat(1 << 20)], "x".repeat(1 << 20)),
        Form::Sequence(vec![]),
        Form::Either(vec![Form::Sequence(vec![Form::Object; 500]); 20]),
        Form::Either(vec![Form::Sequence(vec![Form::Object; 16]); 16]),
        Form::Sequence(vec![tags(vec!["a".into()], "a".into())]),
    ];
    let forms = forms.chain(gbnfs.into_iter().map(Form::Grammar)).chain(tagged);
    let forms = forms
        .chain(regexes.into_iter().map(Form::Regex))
        .chain(larks.into_iter().map(Form::Grammar));
    let (mut kept, mut refused) = (0, 0);
    for form in forms {
        let told: String = format!("{form:?}").chars().take(120).collect();
        let start = Instant::now();
        let compiled = grammars.compile(&of_form(&form));
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "{told} took {took:?}");
        match compiled {
            Err(error) => {
                let error = error.to_string();
                assert!(!error.contains('\n') && !error.is_empty() && error.len() < 700, "{error}");
                refused += 1;
            }
            Ok(grammar) => {
                kept += 1;
                let (mut guide, mut seed) = (grammar.unwrap().begin(), 1u64);
                for _ in 0..40 {
                    if guide.is_finished() {
                        break;
                    }
                    let Ok(Allowed { tokens: Some(words), .. }) = guide.allowed() else { break };
                    let all: Vec<u32> = (0..32 * words.len() as u32)
                        .filter(|token| words[*token as usize / 32] >> (token % 32) & 1 == 1)
                        .collect();
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let Some(&token) = all.get((seed >> 33) as usize % all.len().max(1)) else {
                        break;
                    };
                    guide.accept(token);
                }
                let took = start.elapsed();
                assert!(took < Duration::from_secs(40), "{told} took {took:?}");
            }
        }
        if start.elapsed() > Duration::from_millis(300) {
            println!("{took:?} and {:?}: {told}", start.elapsed());
        }
    }
    assert!(kept > 15 && refused > 15, "{kept} kept, {refused} refused");
}

/// As many tools as coding agents send, with what their schemas hold: 100 KB of them.
#[test]
fn an_agents_whole_tool_box_can_be_demanded() {
    let grammars = Grammars::new(demo());
    let tool = |index: usize| {
        let kinds = [
            json!({"type": "string", "description": "x".repeat(1500)}),
            json!({"type": "string", "maxLength": 524_288}),
            json!({"type": "array", "items": {"type": "string", "format": "uri"}, "uniqueItems": true}),
            json!({"type": "integer", "default": 0, "exclusiveMinimum": 0, "maximum": 9_007_199_254_740_991u64}),
            json!({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}}),
            json!({"anyOf": [{"type": "string", "enum": ["a", "b"]}, {"type": "null"}]}),
            json!({"description": "x".repeat(900)}),
        ];
        let properties =
            kinds.into_iter().enumerate().map(|(n, kind)| (format!("property_{n}"), kind));
        let properties: serde_json::Map<String, Value> = properties.take(index % 8).collect();
        let required: Vec<&String> = properties.keys().take(2).collect();
        json!({"type": "function", "function": {"name": format!("mcp__server__tool_{index}"), "parameters": {
            "$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
            "required": required, "properties": properties, "additionalProperties": false}}})
    };
    let tools: Vec<Value> = (0..58).map(tool).collect();
    assert!(Value::from(tools.clone()).to_string().len() > 100_000);
    for name in ToolFormat::names() {
        let format = Format { tools: ToolFormat::named(name), reasoning: None };
        let demand = Demand::Call { opening: "", number: 0 };
        let rules = Rules { format, tools: &tools, demand, ..Rules::FREE };
        let grammar = grammars.compile(&rules).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!may_end(&mut grammar.unwrap().begin()));
    }
}
