//! What it costs to keep an answer to a grammar: compiling it, and finding out the next tokens.
//!
//! `cargo bench -p krasis-text --bench grammar -- 150000` has a vocabulary of so many tokens, made up of
//! syllables, numbers, spaces and the marks that JSON is made of; a folder in the number's place has
//! the tokenizer in it. Answers are written in the longest tokens. A token's time goes from its
//! acceptance until the next ones are known, threads included; the engine has a forward pass to spend.

#[path = "../tests/common/mod.rs"]
mod common;

use krasis_text::{Demand, Form, Format, Grammars, Rules, Strictness, Tokenizer, ToolFormat};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() {
    let given = std::env::args().skip(1).find(|given| !given.starts_with("--"));
    let given = given.unwrap_or_else(|| "150000".into());
    let tokenizer = match given.parse() {
        Ok(tokens) => made_up(tokens),
        Err(_) => Tokenizer::load(Path::new(&given)).expect("a tokenizer"),
    };
    let tokenizer = Arc::new(tokenizer);
    let mut ids: HashMap<Vec<u8>, u32> = HashMap::new();
    for id in (0..tokenizer.size()).filter(|&id| !tokenizer.is_added(id)) {
        ids.entry(tokenizer.token_bytes(id)).or_insert(id);
    }
    let size = tokenizer.size();
    let first = |what: &str, grammars: &Grammars| {
        let (began, before) = (Instant::now(), resident());
        grammars.compile(&formed(&Form::Object)).expect("a grammar");
        let (time, memory) = (began.elapsed(), resident().saturating_sub(before) >> 20);
        println!("{size} tokens: the first grammar waits {time:.1?}, {memory} MiB {what}");
    };
    first("more", &Grammars::new(tokenizer.clone()));
    let grammars = Grammars::new(tokenizer);
    grammars.prepare();
    // What a model takes to load, or more.
    std::thread::sleep(Duration::from_secs(5));
    first("more behind 5 s in the background", &grammars);
    println!(
        "{:28} {:>10} {:>6} {:>9} {:>9} {:>9}",
        "", "compiled", "tokens", "median", "99 %", "longest"
    );

    let text = record(40);
    for (name, form, answer) in [
        ("any JSON object", Form::Object, text.to_string()),
        ("a schema of records", schema(records()), text.to_string()),
        (
            "a schema, free properties",
            schema(json!({"type": "object", "required": ["records"]})),
            text.to_string(),
        ),
        ("a schema of 100 choices", schema(choices(100)), json!({"choice": "word-77"}).to_string()),
        (
            "a long text in a schema",
            schema(json!({"type": "object", "properties": {"text": {"type": "string"}}})),
            json!({"text": "some words of a text, and some more. ".repeat(50)}).to_string(),
        ),
        ("JSON as characters (GBNF)", Form::Grammar(GBNF.into()), text.to_string()),
        (
            "a regular expression",
            Form::Regex("[a-z ,]+( [0-9]{1,4})*".into()),
            "some words, and numbers 1 22 333 4444".into(),
        ),
    ] {
        measure(name, &grammars, &formed(&form), &ids, &answer);
    }
    let tools = tools(50);
    let opening = "<tool_call>\n{\"name\":";
    let rules = Rules {
        format: Format { tools: Some(ToolFormat::Hermes), reasoning: None },
        tools: &tools,
        demand: Demand::Call { opening, number: 0 },
        single: true,
        ..Rules::FREE
    };
    let call = r#" "tool_33", "arguments": {"path": "src/main.rs", "lines": [1, 2], "edit": {"old": "a", "new": "b c"}}}"#;
    measure("a call of one of 50 tools", &grammars, &rules, &ids, call);
}

/// JSON in the notation that speaks of characters only.
const GBNF: &str = "root ::= map\nmap ::= \"{\" ws (pair (\",\" ws pair)*)? \"}\" ws\n\
    pair ::= text \":\" ws value\nlist ::= \"[\" ws (value (\",\" ws value)*)? \"]\" ws\n\
    value ::= map | list | text | number | (\"true\" | \"false\" | \"null\") ws\n\
    text ::= \"\\\"\" ([^\"\\\\\\x00-\\x1F\\x7F] | \"\\\\\" [\"\\\\/bfnrt])* \"\\\"\" ws\n\
    number ::= \"-\"? [0-9]+ (\".\" [0-9]+)? ws\nws ::= ([ \\n] ws)?\n";

/// Bytes of memory that are in use.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|pages| pages.split(' ').nth(1)?.parse::<usize>().ok());
    pages.map_or(0, |pages| pages * 4096)
}

fn formed(form: &Form) -> Rules<'_> {
    Rules { form: Some(form), ..Rules::FREE }
}

fn schema(schema: Value) -> Form {
    Form::Schema(schema, Strictness::Strict)
}

fn measure(
    name: &str,
    grammars: &Grammars,
    rules: &Rules,
    ids: &HashMap<Vec<u8>, u32>,
    answer: &str,
) {
    let began = Instant::now();
    let grammar = grammars.compile(rules).expect("a grammar").expect("rules to keep to");
    let compiled = began.elapsed();
    let mut guide = grammar.begin();
    guide.allowed().expect("something");
    let mut times: Vec<Duration> = Vec::new();
    let mut left = answer.as_bytes();
    while !left.is_empty() {
        let longest = (1..=left.len().min(40))
            .rev()
            .find_map(|length| ids.get(&left[..length]).map(|id| (length, *id)));
        let (length, id) = longest.expect("bytes are tokens");
        let began = Instant::now();
        guide.accept(id);
        left = &left[length..];
        if guide.is_finished() {
            break;
        }
        let allowed = guide.allowed().unwrap_or_else(|error| panic!("{name}: {error}"));
        times.push(began.elapsed());
        let next = left.first().and_then(|byte| ids.get(&vec![*byte]));
        if let (Some(words), Some(&next)) = (allowed.tokens, next) {
            let known = words[next as usize / 32] >> (next % 32) & 1 == 1;
            assert!(known, "{name}: {:?} is refused", String::from_utf8_lossy(left));
        }
    }
    times.sort_unstable();
    let part = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{name:28} {compiled:>10.1?} {:>6} {:>9.1?} {:>9.1?} {:>9.1?}",
        times.len(),
        part(0.5),
        part(0.99),
        part(1.0)
    );
}

fn record(count: usize) -> Value {
    let one = |n: usize| json!({"id": n, "name": format!("name {n}"), "tags": ["first", "second"], "share": 0.25 + n as f64, "open": n.is_multiple_of(2)});
    json!({"records": (0..count).map(one).collect::<Vec<_>>()})
}

fn records() -> Value {
    json!({"type": "object", "additionalProperties": false, "required": ["records"], "properties": {
        "records": {"type": "array", "items": {"type": "object", "additionalProperties": false,
            "required": ["id", "name", "tags", "share", "open"], "properties": {
                "id": {"type": "integer"}, "name": {"type": "string"},
                "tags": {"type": "array", "items": {"enum": ["first", "second", "third"]}},
                "share": {"type": "number"}, "open": {"type": "boolean"}}}}}})
}

fn choices(count: usize) -> Value {
    let words: Vec<String> = (0..count).map(|n| format!("word-{n}")).collect();
    json!({"type": "object", "properties": {"choice": {"enum": words}}, "required": ["choice"]})
}

fn tools(count: usize) -> Vec<Value> {
    let tool = |n| {
        json!({"type": "function", "function": {"name": format!("tool_{n}"), "strict": true,
        "parameters": {"type": "object", "additionalProperties": false, "required": ["path", "lines", "edit"], "properties": {
            "path": {"type": "string"}, "lines": {"type": "array", "items": {"type": "integer"}},
            "edit": {"type": "object", "additionalProperties": false, "required": ["old", "new"],
                     "properties": {"old": {"type": "string"}, "new": {"type": "string"}}}}}}})
    };
    (0..count).map(tool).collect()
}

/// A vocabulary like those of large models: mostly words and parts of words, with and without the
/// space before them.
fn made_up(tokens: usize) -> Tokenizer {
    let mut state = 1u64;
    let mut below = move |most: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % most
    };
    let mut texts: BTreeSet<String> = BTreeSet::new();
    texts.extend((0..1000).map(|number| number.to_string()));
    texts.extend((2..64).map(|spaces| " ".repeat(spaces)));
    texts.extend((0..32).map(|spaces| format!("\n{}", " ".repeat(spaces))));
    let marks = ["\"", ":", ",", "{", "}", "[", "]", " ", "\n", "(", ")", ".", ";", "'", "/", "\\"];
    for first in marks {
        for second in marks {
            texts.insert(format!("{first}{second}"));
            texts.extend(marks.iter().map(|third| format!("{first}{second}{third}")));
        }
    }
    let known = 264;
    while texts.len() + known < tokens {
        let mut word = String::new();
        for _ in 0..1 + below(4) {
            word.push("bcdfghjklmnprstvwz".as_bytes()[below(18)] as char);
            word.push(
                ["a", "e", "i", "o", "u", "ou", "ea", "er", "an", "st", "é", "日", "ж"][below(13)]
                    .chars()
                    .next()
                    .unwrap(),
            );
            if below(3) == 0 {
                word.push("nrstld".as_bytes()[below(6)] as char);
            }
        }
        let word = match below(8) {
            0 => word[..1].to_uppercase() + &word[1..],
            1 => format!(" {}{}", word[..1].to_uppercase(), &word[1..]),
            2 => format!("\"{word}"),
            3 | 4 => word,
            _ => format!(" {word}"),
        };
        texts.insert(word);
    }
    let mut tokenizer = common::byte_level_json();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().expect("a vocabulary");
    for (number, text) in texts.into_iter().enumerate() {
        let spelled: String = text.bytes().map(common::spelled).collect();
        let id = known + number;
        vocab.entry(spelled).or_insert(id.into());
    }
    Tokenizer::from_json(&tokenizer.to_string(), common::specials()).expect("a tokenizer")
}
