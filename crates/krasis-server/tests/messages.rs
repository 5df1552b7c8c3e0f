//! `/v1/messages` and `/v1/messages/count_tokens`, blocking and streamed.

mod common;

use common::{Fault, Script, Server, text};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// ChatML in short, with calls as Qwen3 writes them, and thoughts that are asked for.
const QWEN3: &str = "{% for t in tools or [] %}T:{{ t.function.name }}={{ t.function.parameters | tojson }};\
    {% endfor %}{% for m in messages %}{{ m.role[:1] }}:\
    {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
    {{ m.content or '' }}\
    {% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \
    \"arguments\": {{ c.function.arguments | tojson }}}\n</tool_call>#{{ c.id }}{% endfor %}\
    {% if m.tool_call_id %}@{{ m.tool_call_id }}{% endif %};{% endfor %}\
    {% if add_generation_prompt %}a:{% endif %}{{ 'think' if enable_thinking }}";

const WEATHER: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";

fn says(answer: &str) -> Script {
    Script { template: QWEN3, context: 1024, ..Script::saying(answer) }
}

fn ask(extra: Value) -> Value {
    let mut body = json!({
        "model": "tiny", "max_tokens": 500,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "weather", "description": "Of a city", "input_schema":
                   {"type": "object", "properties": {"city": {"type": "string"}}}}],
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn post(server: &Server, body: &Value) -> Value {
    let reply = server.post(MESSAGES, body.clone());
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

/// A stream, added up as Anthropic's client does, after the order of its events was checked.
fn streamed(server: &Server, body: &Value) -> Value {
    let mut body = body.clone();
    body["stream"] = true.into();
    let reply = server.post(MESSAGES, body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let mut events = reply.named_events().into_iter();
    let (name, mut start) = events.next().unwrap();
    assert_eq!(name, "message_start");
    let mut message = start["message"].take();
    assert_eq!(message["content"], json!([]));
    assert_eq!(events.next().unwrap().0, "ping");
    let mut open = false;
    let mut json = String::new();
    let mut last = String::new();
    for (name, event) in events {
        let content = message["content"].as_array_mut().unwrap();
        if name.starts_with("content_block_") {
            let count = content.len() - usize::from(open);
            assert_eq!(event["index"], count, "blocks come one after the other: {event}");
        }
        match name.as_str() {
            "content_block_start" => {
                assert!(!open);
                (open, json) = (true, String::new());
                content.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                let block = content.last_mut().filter(|_| open).unwrap();
                let delta = &event["delta"];
                let (field, more) = match delta["type"].as_str().unwrap() {
                    "text_delta" => ("text", &delta["text"]),
                    "thinking_delta" => ("thinking", &delta["thinking"]),
                    "signature_delta" => ("signature", &delta["signature"]),
                    "input_json_delta" => {
                        json += delta["partial_json"].as_str().unwrap();
                        continue;
                    }
                    other => panic!("{other}"),
                };
                let known = block[field].as_str().unwrap().to_owned();
                block[field] = (known + more.as_str().unwrap()).into();
            }
            "content_block_stop" => {
                assert!(std::mem::take(&mut open));
                let block = content.last_mut().unwrap();
                if block["type"] == "tool_use" {
                    match serde_json::from_str(&json) {
                        Ok(input) => block["input"] = input,
                        Err(_) => drop(content.pop()),
                    }
                }
            }
            "message_delta" => {
                assert!(!open);
                for field in ["stop_reason", "stop_sequence"] {
                    message[field] = event["delta"][field].clone();
                }
                message["usage"] = event["usage"].clone();
            }
            "message_stop" => {}
            other => panic!("{other}"),
        }
        last = name;
    }
    assert_eq!(last, "message_stop");
    message
}

/// The message without its ids, which must be there; the same in both ways.
fn answer(server: &Server, body: Value) -> Value {
    let nameless = |mut message: Value| {
        assert!(message["id"].take().as_str().unwrap().starts_with("msg_"));
        for block in message["content"].as_array_mut().unwrap() {
            if block["type"] == "tool_use" {
                assert!(block["id"].take().as_str().unwrap().starts_with("toolu_"));
            }
        }
        message
    };
    let whole = nameless(post(server, &body));
    assert_eq!(nameless(streamed(server, &body)), whole);
    whole
}

/// The prompt of the last request.
fn prompt(server: &Server) -> String {
    let prompt = server.seen.lock().unwrap().last().unwrap().prompt.clone();
    text::byte_level().decode_all(&prompt)
}

fn rendered(server: &Server, body: Value) -> String {
    post(server, &body);
    prompt(server)
}

#[test]
fn a_message_has_anthropics_form() {
    let server = Server::start(says("hé"));
    let body = ask(json!({"tools": null}));
    assert_eq!(
        answer(&server, body),
        json!({
            "id": null, "type": "message", "role": "assistant", "model": "tiny",
            "content": [{"type": "text", "text": "hé"}],
            "stop_reason": "end_turn", "stop_sequence": null,
            "usage": {"input_tokens": 6, "cache_creation_input_tokens": 0,
                      "cache_read_input_tokens": 1, "output_tokens": 4},
        })
    );
    assert_eq!(prompt(&server), "u:hi;a:");
}

#[test]
fn thoughts_text_and_calls_are_blocks_in_their_order() {
    let all = format!("<think>\nHm.\n</think>\n\nLet me look.\n\n{WEATHER}\n{WEATHER}");
    let server = Server::start(says(&all));
    let message = answer(&server, ask(json!({"thinking": {"type": "adaptive"}})));
    let call =
        json!({"type": "tool_use", "id": null, "name": "weather", "input": {"city": "Oslo"}});
    assert_eq!(
        message["content"],
        json!([{"type": "thinking", "thinking": "Hm.", "signature": "krasis"},
               {"type": "text", "text": "Let me look."}, call, call])
    );
    assert_eq!(message["stop_reason"], "tool_use");
    assert!(prompt(&server).ends_with("u:hi;a:think"), "{}", prompt(&server));
    let one = json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": true}});
    let message = answer(&server, ask(one));
    assert_eq!(message["content"].as_array().unwrap().len(), 3);
    assert_eq!(message["stop_reason"], "tool_use");
}

#[test]
fn reasons_are_anthropics() {
    let server = Server::start(says("one two three"));
    let message = answer(&server, ask(json!({"stop_sequences": ["x", " three"]})));
    assert_eq!(message["content"], json!([{"type": "text", "text": "one two"}]));
    let reasons = [&message["stop_reason"], &message["stop_sequence"]];
    assert_eq!(reasons, ["stop_sequence", " three"]);
    let message = answer(&server, ask(json!({"max_tokens": 3})));
    assert_eq!(
        (&message["stop_reason"], &message["usage"]["output_tokens"]),
        (&json!("max_tokens"), &json!(3))
    );
    // Half a call is none, and is not told as one.
    let server = Server::start(says(WEATHER));
    let message = answer(&server, ask(json!({"max_tokens": 55})));
    assert_eq!((&message["stop_reason"], &message["content"]), (&json!("max_tokens"), &json!([])));
}

#[test]
fn an_answer_may_be_as_long_as_there_is_room() {
    let server = Server::start(says("x"));
    let tokens = |body: Value| {
        post(&server, &body);
        server.seen.lock().unwrap().last().unwrap().tokens_max
    };
    let plain = |tokens: Value| ask(json!({"tools": null, "max_tokens": tokens}));
    assert_eq!(tokens(plain(json!(32_000))), 1024 - 7);
    assert_eq!(tokens(plain(json!(5))), 5);
    assert_eq!(tokens(plain(json!(null))), 1024 - 7);
    let long = json!([{"role": "user", "content": "a".repeat(1100)}]);
    let reply = server.post(MESSAGES, ask(json!({"messages": long})));
    let error = reply.json()["error"].clone();
    assert_eq!((reply.status, &error["type"]), (400, &json!("invalid_request_error")));
    let message = error["message"].as_str().unwrap();
    let (prompt, context) = message
        .strip_prefix("prompt is too long: ")
        .and_then(|rest| rest.strip_suffix(" maximum"))
        .and_then(|rest| rest.split_once(" tokens > "))
        .unwrap_or_else(|| panic!("{message}"));
    assert!(prompt.parse::<u32>().unwrap() >= 1100 && context == "1023", "{message}");
}

#[test]
fn a_demanded_call_is_begun_for_the_model() {
    let server = Server::start(says(" {\"city\": \"Oslo\"}}\n</tool_call>"));
    let named = json!({"type": "tool", "name": "weather"});
    let message = answer(&server, ask(json!({"tool_choice": named})));
    assert_eq!(message["content"][0]["input"], json!({"city": "Oslo"}));
    assert!(prompt(&server).ends_with("<tool_call>\n{\"name\": \"weather\", \"arguments\":"));
    let server = Server::start(says(" \"weather\", \"arguments\": {}}\n</tool_call>"));
    let message = answer(&server, ask(json!({"tool_choice": {"type": "any"}})));
    assert_eq!(
        (&message["stop_reason"], &message["content"][0]["input"]),
        (&json!("tool_use"), &json!({}))
    );
    rendered(&server, ask(json!({"tool_choice": {"type": "none"}})));
    assert_eq!(prompt(&server), "u:hi;a:");
}

#[test]
fn history_is_rendered_as_a_chat_renders_it() {
    let server = Server::start(says("x"));
    let cached = json!({"type": "ephemeral"});
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"},
                                     {"type": "text", "text": "b", "cache_control": cached}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "redacted_thinking", "data": "?"},
            {"type": "text", "text": "Look."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo", "b": 1}},
            {"type": "tool_use", "id": "t2", "name": "weather", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t2", "content": "r2"},
            {"type": "tool_result", "tool_use_id": "t1", "content": [
                {"type": "text", "text": "r1"},
                {"type": "image", "source": {"type": "base64", "data": "x"}}]},
            {"type": "text", "text": "now?"}]},
        {"role": "system", "content": "12 tokens left"},
        {"role": "user", "content": [
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}}]},
    ]);
    let system = json!([{"type": "text", "text": "s"},
                        {"type": "text", "text": "t", "cache_control": cached}]);
    let body = ask(json!({"messages": messages, "system": system, "metadata": {"user_id": "u"},
        "context_management": {"edits": []}, "output_config": {"effort": "high"}, "tools": null,
        "n": 3, "logprobs": true}));
    let calls = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\", \"b\": 1}}\n\
                 </tool_call>#t1<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>#t2";
    assert_eq!(
        rendered(&server, body),
        format!(
            "s:s\nt;u:a\nb;a:<think>Hm.</think>Look.{calls};t:r2@t2;\
                 t:r1\n[image: not readable here]@t1;u:now?;s:12 tokens left;u:d;a:"
        )
    );
    let system = ask(json!({"system": "s", "tools": [{"type": "web_search_20250305", "name": "w"},
        {"type": "custom", "name": "f", "input_schema": {"type": "object"}}]}));
    assert_eq!(rendered(&server, system), "T:f={\"type\": \"object\"};s:s;u:hi;a:");
    // What the assistant has begun is gone on with.
    let begun =
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well"}]);
    assert_eq!(rendered(&server, ask(json!({"messages": begun, "tools": null}))), "u:hi;a:Well");
}

#[test]
fn what_changes_with_every_request_is_no_part_of_the_prompt() {
    let server = Server::start(says("x"));
    let system = |hash: &str, apart: bool| {
        let header = format!("x-anthropic-billing-header: cc_version=2.1.0; cch={hash};");
        match apart {
            true => json!([{"type": "text", "text": header}, {"type": "text", "text": "You are"}]),
            false => json!([{"type": "text", "text": format!("{header}\nYou are")}]),
        }
    };
    for apart in [true, false] {
        for hash in ["eb6c6", "00f1a"] {
            let body = ask(json!({"system": system(hash, apart), "tools": null}));
            assert_eq!(rendered(&server, body), "s:You are;u:hi;a:");
        }
        // The same where a proxy has made a chat of it.
        let messages = json!([{"role": "system", "content": system("eb6c6", apart)},
                              {"role": "user", "content": "hi"}]);
        let reply = server.post("/v1/chat/completions", json!({"messages": messages}));
        assert_eq!((reply.status, prompt(&server).as_str()), (200, "s:You are;u:hi;a:"));
    }
    let messages = json!([{"role": "system", "content": "x-anthropic-a: b=c;"},
                          {"role": "user", "content": "x-anthropic-a: b=c;"}]);
    server.post("/v1/chat/completions", json!({"messages": messages}));
    assert_eq!(prompt(&server), "u:x-anthropic-a: b=c;;a:");
}

#[test]
fn tokens_are_counted_with_system_tools_and_template() {
    let server = Server::start(says("x"));
    let body =
        ask(json!({"system": "You are", "thinking": {"type": "enabled", "budget_tokens": 9}}));
    let reply = server.post(COUNT, body.clone());
    assert_eq!((reply.status, server.seen.lock().unwrap().len()), (200, 0));
    let usage = &post(&server, &body)["usage"];
    let total = usage["input_tokens"].as_u64().unwrap() + 1;
    assert_eq!(reply.json(), json!({"input_tokens": total}));
}

#[test]
fn errors_are_anthropics() {
    let server = Server::start(says("x"));
    let image = json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]);
    let orphan = json!([{"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t", "content": "r"}]}]);
    for (extra, words) in [
        (json!({"messages": []}), "messages is missing"),
        (json!({"messages": null}), "messages is missing"),
        (json!({"messages": [7]}), "messages[0].content"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role is 'robot'"),
        (json!({"messages": [{"role": "user", "content": 7}]}), "messages[0].content must be"),
        (json!({"messages": image}), "messages[0].content[0] is of type 'image'"),
        (json!({"messages": orphan}), "which no tool call before it has"),
        (json!({"system": [{"type": "image"}]}), "system[0]"),
        (json!({"max_tokens": 0}), "max_tokens is 0"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"tool_choice": {"type": "tool", "name": "absent"}}), "'absent'"),
        (json!({"tool_choice": "auto"}), "tool_choice must be of type"),
        (json!({"tools": [{}]}), "tools[0]"),
        (json!({"thinking": {"type": "deep"}}), "thinking must be"),
        (json!({"stop_sequences": "x"}), "stop_sequences"),
        (json!({"output_format": {"type": "xml"}}), "json_schema"),
    ] {
        for stream in [false, true] {
            let mut body = ask(extra.clone());
            body["stream"] = stream.into();
            let reply = server.post(MESSAGES, body);
            let body = reply.json();
            let error = &body["error"];
            let found = (reply.status, body["type"].as_str(), error["type"].as_str());
            assert_eq!(
                found,
                (400, Some("error"), Some("invalid_request_error")),
                "{extra}: {body}"
            );
            assert!(error["message"].as_str().unwrap().contains(words), "{extra}: {error}");
        }
    }
    let headers = [("Content-Type", "application/json")];
    for (status, kind, reply) in [
        (404, "not_found_error", server.post(MESSAGES, ask(json!({"model": "claude"})))),
        (404, "not_found_error", server.post("/v1/messages/batches", json!({}))),
        (405, "invalid_request_error", server.get(MESSAGES)),
        (415, "invalid_request_error", server.send("POST", MESSAGES, &[], b"{}")),
        (400, "invalid_request_error", server.send("POST", COUNT, &headers, b"{")),
        (503, "overloaded_error", Server::loading(says("x")).post(MESSAGES, ask(json!({})))),
    ] {
        let body = reply.json();
        let found = (reply.status, &body["type"], &body["error"]["type"]);
        assert_eq!(found, (status, &json!("error"), &json!(kind)), "{body}");
        assert!(body["error"]["message"].is_string() && !reply.header("request-id").is_empty());
    }
    // A stream that breaks off says why.
    let server = Server::start(Script { fault: Some(Fault::Said), ..says("xyz") });
    let events = server.post(MESSAGES, ask(json!({"stream": true}))).named_events();
    let (name, last) = events.last().unwrap();
    assert_eq!((name.as_str(), &last["error"]["type"]), ("error", &json!("api_error")));
    assert_eq!(server.post(MESSAGES, ask(json!({}))).json()["error"]["type"], "api_error");
}

#[test]
fn whoever_leaves_ends_the_work() {
    let step = std::time::Duration::from_millis(5);
    let server = Server::start(Script { step, ..says(&"x".repeat(900)) });
    let socket = server.ask(MESSAGES, &ask(json!({"stream": true})));
    common::eventually("it runs", || server.tokens.load(Ordering::Relaxed) > 1);
    drop(socket);
    common::eventually("it is cancelled", || server.cancelled.load(Ordering::Relaxed) == 1);
}
