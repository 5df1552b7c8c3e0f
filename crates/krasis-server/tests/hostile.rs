//! Bodies that want to break the server: no answer is its fault.

mod common;

use common::{Script, Server};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// Numbers as only a text can write them, and things that are none.
const EXTREMES: [&str; 28] = [
    "1e308",
    "-1e308",
    "1e999",
    "-1e999",
    "-0",
    "-0.0",
    "0",
    "1e-320",
    "-1",
    "-2147483649",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551616",
    "1000000000",
    "0.5",
    "3.4e38",
    "\"NaN\"",
    "\"Infinity\"",
    "\"1\"",
    "true",
    "[]",
    "{}",
    "[[[[]]]]",
    "{\"300\": 1}",
    "\"\\u0000\"",
];

const FIELDS: [&str; 38] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "logprobs",
    "top_logprobs",
    "stream_options",
    "tools",
    "tool_choice",
    "chat_template_kwargs",
    "best_of",
    "input",
    "instructions",
    "previous_response_id",
    "store",
    "include",
    "text",
    "reasoning",
    "max_output_tokens",
    "background",
    "system",
    "messages",
    "stop_sequences",
    "thinking",
    "output_config",
    "output_format",
    "stream",
];

#[test]
fn extreme_values_are_refused_or_answered() {
    let server = Server::start(Script::saying("x"));
    let headers = [("Content-Type", "application/json")];
    let mut answers = [0; 2];
    for field in FIELDS {
        for value in EXTREMES {
            for (path, rest) in [
                (CHAT, "\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]"),
                (TEXT, "\"prompt\": \"a\""),
                (RESPONSES, "\"input\": \"a\""),
                (MESSAGES, "\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]"),
            ] {
                let body = format!("{{{rest}, \"{field}\": {value}}}");
                let status = server.send("POST", path, &headers, body.as_bytes()).status;
                assert!(matches!(status, 200 | 400), "{body}: {status}");
                answers[usize::from(status == 400)] += 1;
            }
        }
    }
    // Both happen often, or the bodies do not say what they mean.
    assert!(answers.iter().all(|&count| count > 200), "{answers:?}");
    assert_eq!(server.post(TEXT, json!({"prompt": "a"})).status, 200);
}

#[test]
fn hostile_json_is_400() {
    let server = Server::start(Script::saying("x"));
    let headers = [("Content-Type", "application/json")];
    let nested = |open: &str, close: &str| {
        format!("{{\"prompt\": {}{}}}", open.repeat(100_000), close.repeat(100_000))
    };
    let long = format!("{{\"{}\": 1, \"prompt\": 1}}", "k".repeat(1 << 20));
    for body in [
        b"".as_slice(),
        b"{",
        b"nul",
        b"{\"prompt\": \"\xff\xfe\"}",
        b"{\"prompt\": \"\\ud800\"}",
        b"{\"prompt\": \"a\"} {}",
        b"{\"prompt\": \"a\", \"prompt\": [}",
        b"{\"prompt\": 1e999999999}",
        b"{'prompt': 'a'}",
        b"{\"prompt\": [[[[97]]]]}",
        b"{\"prompt\": [4294967296]}",
        b"{\"prompt\": {\"a\": {\"b\": {}}}}",
        nested("[", "]").as_bytes(),
        nested("{\"a\":", "}").as_bytes(),
        long.as_bytes(),
    ] {
        let reply = server.send("POST", TEXT, &headers, body);
        let start = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        assert_eq!(reply.status, 400, "{start}: {reply:?}");
        assert!(reply.json()["error"]["message"].is_string(), "{start}");
    }
    // Many keys are no fault of their own.
    let keys: serde_json::Map<String, Value> =
        (0..100_000).map(|key| (key.to_string(), Value::Null)).collect();
    let mut body = Value::Object(keys);
    body["prompt"] = json!("a");
    assert_eq!(server.post(TEXT, body).status, 200);
}
