//! What is refused, and how: status, code and field.

mod common;

use common::{Fault, Script, Server};
use krasis_server::{Others, Unknown};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

#[test]
fn wrong_values_are_400_and_name_their_field() {
    let server = Server::start(Script::saying("x"));
    let user = json!([{"role": "user", "content": "hi"}]);
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let long = "a".repeat(100);
    let chat = |mut extra: Value| {
        if extra.get("messages").is_none() {
            extra["messages"] = user.clone();
        }
        extra
    };
    let part = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]);
    let orphan = json!([{"role": "tool", "tool_call_id": "x", "content": "r"}]);
    for (extra, param, code) in [
        (json!({"temperature": 3}), "temperature", "invalid_value"),
        (json!({"temperature": "hot"}), "temperature", "invalid_value"),
        (json!({"temperature": -0.1}), "temperature", "invalid_value"),
        (json!({"temperature": 1e308}), "temperature", "invalid_value"),
        (json!({"top_p": 1.5}), "top_p", "invalid_value"),
        (json!({"top_k": -7}), "top_k", "invalid_value"),
        (json!({"min_p": 2}), "min_p", "invalid_value"),
        (json!({"presence_penalty": 2.5}), "presence_penalty", "invalid_value"),
        (json!({"repetition_penalty": 0}), "repetition_penalty", "invalid_value"),
        (json!({"seed": 9.5e18}), "seed", "invalid_value"),
        (json!({"n": 0}), "n", "invalid_value"),
        (json!({"n": 1_000_000_000}), "n", "invalid_value"),
        (json!({"max_tokens": 0}), "max_tokens", "invalid_value"),
        (json!({"max_tokens": -1}), "max_tokens", "invalid_value"),
        (json!({"max_tokens": 64}), "max_tokens", "context_length_exceeded"),
        (json!({"top_logprobs": 21, "logprobs": true}), "top_logprobs", "invalid_value"),
        (json!({"top_logprobs": 1}), "top_logprobs", "invalid_value"),
        (json!({"logit_bias": {"300": 1}}), "logit_bias", "invalid_value"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias", "invalid_value"),
        (json!({"stop": 7}), "stop", "invalid_value"),
        (json!({"stop": [""]}), "stop", "invalid_value"),
        (json!({"stop": vec!["s"; 17]}), "stop", "invalid_value"),
        (json!({"min_tokens": 2}), "min_tokens", "unsupported_parameter"),
        (json!({"response_format": {}}), "response_format", "invalid_value"),
        (json!({"response_format": {"type": "xml"}}), "response_format", "unsupported_parameter"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema":
                {"strict": true, "schema": {"type": "object", "not": {}}}}}),
            "response_format",
            "invalid_value",
        ),
        (json!({"guided_regex": "a("}), "guided_regex", "invalid_value"),
        (json!({"guided_regex": 7}), "guided_regex", "invalid_value"),
        (json!({"guided_choice": []}), "guided_choice", "invalid_value"),
        (json!({"guided_choice": [1]}), "guided_choice", "invalid_value"),
        (json!({"guided_json": 7}), "guided_json", "invalid_value"),
        (json!({"guided_json": "{"}), "guided_json", "invalid_value"),
        (json!({"guided_grammar": "begin: \"a\""}), "guided_grammar", "invalid_value"),
        (json!({"guided_grammar": "root ::= [a-z"}), "guided_grammar", "invalid_value"),
        (json!({"grammar": "root ::= nothing"}), "grammar", "invalid_value"),
        (json!({"grammar": 7}), "grammar", "invalid_value"),
        (
            json!({"grammar": "root ::= \"a\"", "grammar_lazy": true}),
            "grammar_lazy",
            "unsupported_parameter",
        ),
        (json!({"ebnf": "root ::= \"a\"", "regex": "a"}), "ebnf", "invalid_value"),
        (json!({"json_schema": "{"}), "json_schema", "invalid_value"),
        (
            json!({"response_format": {"type": "structural_tag"}}),
            "response_format",
            "invalid_value",
        ),
        (
            json!({"response_format": {"type": "structural_tag", "structures": [], "triggers": ["a"]}}),
            "response_format",
            "invalid_value",
        ),
        (
            json!({"response_format": {"type": "structural_tag", "triggers": ["b"],
                "structures": [{"begin": "a", "schema": {}, "end": "c"}]}}),
            "response_format",
            "invalid_value",
        ),
        (
            json!({"response_format": {"type": "structural_tag", "format": {"type": "qwen_xml_parameter"}}}),
            "response_format",
            "unsupported_parameter",
        ),
        (
            json!({"response_format": {"type": "structural_tag",
                "format": {"type": "sequence", "elements": [{"type": "regex"}]}}}),
            "response_format.pattern",
            "invalid_value",
        ),
        (json!({"structured_outputs": {}}), "structured_outputs", "invalid_value"),
        (
            json!({"structured_outputs": {"regex": "["}}),
            "structured_outputs.regex",
            "invalid_value",
        ),
        (
            json!({"structured_outputs": {"structural_tag": "x"}}),
            "structured_outputs.structural_tag",
            "invalid_value",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}),
            "guided_regex",
            "invalid_value",
        ),
        (
            json!({"structured_outputs": {"json": {}, "choice": ["a"]}}),
            "structured_outputs.choice",
            "invalid_value",
        ),
        (json!({"chat_template": "x"}), "chat_template", "unsupported_parameter"),
        (
            json!({"tools": tool, "tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "tool_choice",
            "invalid_value",
        ),
        (json!({"tool_choice": "required"}), "tool_choice", "invalid_value"),
        (json!({"tools": [{}]}), "tools[0]", "invalid_value"),
        (json!({"messages": []}), "messages", "invalid_value"),
        (json!({"messages": "hi"}), "messages", "invalid_value"),
        (json!({"messages": [7]}), "messages[0]", "invalid_value"),
        (
            json!({"messages": [{"role": "robot", "content": "x"}]}),
            "messages[0].role",
            "invalid_value",
        ),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "invalid_value"),
        (json!({"messages": part}), "messages[0].content[0]", "invalid_value"),
        (json!({"messages": orphan}), "messages[0].tool_call_id", "invalid_value"),
        (
            json!({"messages": [{"role": "user", "content": long}]}),
            "messages",
            "context_length_exceeded",
        ),
        (
            json!({"add_generation_prompt": true, "continue_final_message": true}),
            "add_generation_prompt",
            "invalid_value",
        ),
    ] {
        for stream in [false, true] {
            let mut body = chat(extra.clone());
            body["stream"] = stream.into();
            let reply = server.post(CHAT, body);
            let error = &reply.json()["error"];
            let found = (reply.status, error["param"].as_str(), error["code"].as_str());
            assert_eq!(found, (400, Some(param), Some(code)), "{extra}: {error}");
            assert_eq!(error["type"], "invalid_request_error");
        }
    }
    for (body, param, code) in [
        (json!({}), "prompt", "invalid_value"),
        (json!({"prompt": []}), "prompt", "invalid_value"),
        (json!({"prompt": {"a": 1}}), "prompt", "invalid_value"),
        (json!({"prompt": [97, -1]}), "prompt", "invalid_value"),
        (json!({"prompt": [[97], [300]]}), "prompt", "invalid_value"),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs", "invalid_value"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix", "unsupported_parameter"),
        (json!({"prompt": "a", "n": 2, "best_of": 1}), "best_of", "invalid_value"),
        (json!({"prompt": "a", "best_of": 2}), "best_of", "unsupported_parameter"),
        (json!({"prompt": vec!["a"; 200], "n": 8}), "prompt", "invalid_value"),
    ] {
        let reply = server.post(TEXT, body.clone());
        let error = &reply.json()["error"];
        let found = (reply.status, error["param"].as_str(), error["code"].as_str());
        assert_eq!(found, (400, Some(param), Some(code)), "{body}: {error}");
    }
}

#[test]
fn a_prompt_that_is_too_long_is_told_both_numbers() {
    let server = Server::start(Script::saying("x"));
    let reply = server.post(TEXT, json!({"prompt": vec![97; 65]}));
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("65 tokens") && message.contains("64 tokens"), "{message}");
    // Exactly the context can be read, and not continued.
    let reply = server.post(TEXT, json!({"prompt": vec![97; 64], "max_tokens": 0}));
    assert_eq!(reply.status, 200);
    assert_eq!(server.post(TEXT, json!({"prompt": vec![97; 64]})).status, 400);
}

#[test]
fn bodies_that_are_no_json_objects_are_refused() {
    let server = Server::start(Script::saying("x"));
    let json = [("Content-Type", "application/json; charset=utf-8")];
    let reply = server.send("POST", CHAT, &json, b"{\n  \"model\": }");
    let error = &reply.json()["error"];
    assert_eq!((reply.status, &error["code"]), (400, &json!("invalid_json")));
    assert!(error["message"].as_str().unwrap().contains("line 2, column 12"), "{error}");
    assert_eq!(server.send("POST", CHAT, &json, b"[1]").json()["error"]["code"], "invalid_json");
    assert_eq!(server.send("POST", CHAT, &json, b"{\"n\": 1e999}").status, 400);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(server.send("POST", CHAT, &json, deep.as_bytes()).status, 400);
    assert_eq!(server.send("POST", CHAT, &[("Content-Type", "text/plain")], b"{}").status, 415);
    assert_eq!(server.send("POST", CHAT, &[], b"{}").status, 415);
}

#[test]
fn bodies_of_more_than_32_mib_are_refused_unread() {
    let server = Server::start(Script::saying("x"));
    let json = [("Content-Type", "application/json")];
    let reply = server.send("POST", CHAT, &json, &vec![b' '; (32 << 20) + 1]);
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (413, &json!("body_too_large")));
}

#[test]
fn models_are_found_by_any_of_their_names() {
    let server = Server::start(Script::saying("x"));
    for model in [json!("tiny"), json!("org/alias"), json!("default"), json!(""), json!(null)] {
        assert_eq!(
            server.post(TEXT, json!({"model": model, "prompt": "a"})).status,
            200,
            "{model}"
        );
    }
    let reply = server.post(TEXT, json!({"model": "gpt-4", "prompt": "a"}));
    let error = &reply.json()["error"];
    assert_eq!(
        (reply.status, &error["code"], &error["param"]),
        (404, &json!("model_not_found"), &json!("model"))
    );
    let list = server.get("/v1/models").json();
    assert_eq!(list["data"][0]["id"], "tiny");
    assert_eq!(list["data"][1]["root"], "tiny");
    assert_eq!(list["data"][0]["max_model_len"], common::CONTEXT);
    assert_eq!(server.get("/v1/models/org/alias").json()["object"], "model");
    assert_eq!(server.get("/v1/models/other").json()["error"]["code"], "model_not_found");
}

#[test]
fn other_names_and_unknown_fields_are_as_the_server_was_told() {
    let kept = json!({"messages": [{"role": "user", "content": "a"}], "user": "u", "store": false,
        "stop": null, "unknown_too": null, "max_tokens": 2, "tools": [], "tool_choice": "none",
        "stream_options": {}, "response_format": {"type": "text"}, "priority": 0, "ebnf": ""});
    for (others, unknown, statuses) in [
        (Others::Refused, Unknown::Ignored, [200, 404, 200]),
        (Others::Answered, Unknown::Refused, [200, 200, 400]),
    ] {
        let server = Server::told(Script::saying("x"), |app| {
            (app.others, app.unknown) = (others, unknown);
        });
        server.ready(true);
        for (field, status) in ["seed", "model", "temperatur"].into_iter().zip(statuses) {
            for (path, prompt) in
                [("/v1/chat/completions", Value::Null), ("/v1/completions", "a".into())]
            {
                let mut body = kept.clone();
                if prompt.is_string() {
                    for name in ["messages", "tools", "tool_choice"] {
                        body.as_object_mut().unwrap().remove(name);
                    }
                    body["prompt"] = prompt;
                }
                body[field] = if field == "model" { "gpt-x".into() } else { 1.into() };
                let reply = server.post(path, body);
                assert_eq!(reply.status, status, "{field}: {}", reply.body);
                if status == 400 {
                    assert_eq!(reply.json()["error"]["param"], field);
                }
            }
        }
    }
}

#[test]
fn wrong_paths_and_methods_are_answered_in_json() {
    let server = Server::start(Script::saying("x"));
    let code = |path: &str| {
        let reply = server.get(path);
        (reply.status, reply.json()["error"]["code"].as_str().unwrap().to_owned())
    };
    assert_eq!(code("/nowhere"), (404, "unknown_route".into()));
    assert_eq!(code("/v1/embeddings"), (404, "unsupported_endpoint".into()));
    let hint = server.post("/chat/completions", json!({})).json();
    assert!(hint["error"]["message"].as_str().unwrap().contains("/v1/chat/completions"));
    let reply = server.get(CHAT);
    assert_eq!((reply.status, reply.header("allow")), (405, "POST"));
    assert_eq!(reply.json()["error"]["code"], "method_not_allowed");
    assert_eq!(server.get("/version").json()["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn request_ids_are_echoed_or_made() {
    let server = Server::start(Script::saying("x"));
    let reply = server.send("GET", "/health", &[("X-Request-Id", "mine")], b"");
    assert_eq!(reply.header("x-request-id"), "mine");
    assert!(server.get("/nowhere").header("x-request-id").starts_with("req-"));
}

#[test]
fn a_server_listens_before_its_model_is_there() {
    let server = Server::loading(Script::saying("x"));
    let health = server.get("/health");
    let loading = json!({"status": "loading", "phase": "starting", "percent": 0});
    assert_eq!((health.status, health.json()), (503, loading));
    let reply = server.post(TEXT, json!({"prompt": "a"}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("model_loading")));
    assert_eq!(reply.header("retry-after"), "5");
    assert_eq!(server.get("/v1/models").json()["data"][0]["max_model_len"], json!(null));
    server.ready(true);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.post(TEXT, json!({"prompt": "a"})).status, 200);
}

#[test]
fn a_full_queue_is_429() {
    let server = Server::loading(Script { queue_max: 1, ..Script::saying("x") });
    server.ready(false);
    let headers = [("Content-Type", "application/json")];
    // Blocking requests, which say nothing while they wait; whichever comes second is refused.
    let ask = || server.open("POST", TEXT, &headers, b"{\"prompt\": \"a\"}");
    let refusal = |mut socket: &std::net::TcpStream| {
        let mut head = [0; 12];
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        std::io::Read::read_exact(&mut socket, &mut head).is_ok_and(|()| &head == b"HTTP/1.1 429")
    };
    let (first, second) = (ask(), ask());
    assert!(refusal(&first) != refusal(&second));
    let reply = server.post(TEXT, json!({"prompt": "a", "stream": true}));
    assert_eq!((reply.status, reply.header("retry-after")), (429, "1"));
    assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
}

#[test]
fn a_failure_is_500_or_an_error_in_the_stream() {
    let server = Server::start(Script { fault: Some(Fault::Said), ..Script::saying("abc") });
    let reply = server.post(TEXT, json!({"prompt": "a"}));
    assert_eq!((reply.status, &reply.json()["error"]["message"]), (500, &json!("the GPU is gone")));
    let reply = server.post(TEXT, json!({"prompt": "a", "stream": true}));
    assert_eq!(reply.status, 200);
    let last = reply.body.trim_end().rsplit("\n\n").next().unwrap();
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["message"], "the GPU is gone");
    assert!(!reply.body.contains("[DONE]"));
}

#[test]
fn clients_that_disconnect_cancel_their_requests() {
    for stream in [true, false] {
        let step = Duration::from_millis(20);
        let server = Server::start(Script { step, ..Script::saying(&"a".repeat(60)) });
        let body = json!({"prompt": "a", "stream": stream, "ignore_eos": true}).to_string();
        let headers = [("Content-Type", "application/json")];
        let socket = server.open("POST", TEXT, &headers, body.as_bytes());
        let tokens = || server.tokens.load(Ordering::Relaxed);
        common::eventually("a token", || tokens() > 1);
        drop(socket);
        common::eventually("a cancellation", || server.cancelled.load(Ordering::Relaxed) == 1);
        assert!(tokens() < 50, "generated on: {} (stream: {stream})", tokens());
    }
}

#[test]
fn answers_in_flight_are_finished_when_the_server_stops() {
    let step = Duration::from_millis(20);
    let mut server = Server::start(Script { step, ..Script::saying(&"a".repeat(10)) });
    let headers = [("Content-Type", "application/json")];
    let body = b"{\"prompt\": \"a\", \"stream\": true}";
    let mut socket = server.open("POST", TEXT, &headers, body);
    common::eventually("a token", || server.tokens.load(Ordering::Relaxed) > 1);
    server.stop.take().unwrap().send(()).unwrap();
    let mut reply = String::new();
    std::io::Read::read_to_string(&mut socket, &mut reply).unwrap();
    assert!(reply.contains("[DONE]"), "{reply}");
    common::eventually("nobody listens", || std::net::TcpStream::connect(server.address).is_err());
}

#[test]
fn a_connection_serves_one_request_after_the_other() {
    use std::io::{Read, Write};
    let server = Server::start(Script::saying("x"));
    let mut socket = std::net::TcpStream::connect(server.address).unwrap();
    for _ in 0..3 {
        socket.write_all(b"GET /health HTTP/1.1\r\nHost: [::1]\r\n\r\n").unwrap();
        let mut reply = [0; 1024];
        let bytes = socket.read(&mut reply).unwrap();
        let reply = String::from_utf8_lossy(&reply[..bytes]);
        assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("ok"), "{reply}");
    }
}
