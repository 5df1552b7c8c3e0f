//! Tool calls and reasoning through the router, blocking and streamed.

mod common;

use common::{Script, Server, text};
use krasis_server::{Answers, ReasoningField};
use krasis_text::{Format, Reasoning, ToolFormat};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::atomic::Ordering;

/// ChatML in short, with calls as Qwen3 writes them, and thoughts unless they are switched off.
const QWEN3: &str = "{% for t in tools or [] %}T:{{ t.function.name }};{% endfor %}\
    {% for m in messages %}{{ m.role[:1] }}:{{ m.content or '' }}\
    {% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \
    \"arguments\": {{ c.function.arguments | tojson }}}\n</tool_call>#{{ c.id }}{% endfor %}\
    {% if m.tool_call_id %}@{{ m.tool_call_id }}{% endif %};{% endfor %}\
    {% if add_generation_prompt %}a:{% endif %}\
    {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n\
    {% elif opened %}<think>\n{% endif %}";

fn says(answer: &str) -> Script {
    Script { template: QWEN3, context: 1024, ..Script::saying(answer) }
}

const WEATHER: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";

fn ask(extra: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [
            {"type": "function", "function": {"name": "weather", "parameters":
                {"type": "object", "properties": {"city": {"type": "string"}}}}},
            {"type": "function", "function": {"name": "now"}},
        ],
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn post(server: &Server, body: Value) -> Value {
    let reply = server.post("/v1/chat/completions", body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

/// A stream, added up as clients do, and the reason that it ended with.
fn streamed(server: &Server, mut body: Value) -> (Value, Value) {
    body["stream"] = true.into();
    let reply = server.post("/v1/chat/completions", body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let (mut content, mut thoughts) = (String::new(), String::new());
    let mut calls: Vec<Value> = Vec::new();
    let mut reason = Value::Null;
    for event in reply.events() {
        let choice = &event["choices"][0];
        let delta = &choice["delta"];
        assert!(reason.is_null(), "nothing follows the reason: {event}");
        assert!(delta.get("content").is_some(), "clients fail without the key: {event}");
        content += delta["content"].as_str().unwrap_or_default();
        thoughts += delta["reasoning_content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert_eq!(call["type"], "function");
                assert_eq!(call["function"]["arguments"], "");
                let mut call = call.clone();
                call.as_object_mut().unwrap().remove("index");
                calls.push(call);
            } else {
                let more = call["function"]["arguments"].as_str().unwrap();
                let keys: Vec<&String> = call.as_object().unwrap().keys().collect();
                assert_eq!(keys, ["index", "function"], "name and id come once");
                let known = calls[index]["function"]["arguments"].as_str().unwrap().to_owned();
                calls[index]["function"]["arguments"] = (known + more).into();
            }
            assert!(choice["finish_reason"].is_null(), "{event}");
        }
        reason = choice["finish_reason"].clone();
    }
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if content.is_empty() && !calls.is_empty() {
        message["content"] = Value::Null;
    }
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    (message, reason)
}

/// The answer without its ids, which must be there, and its reason; the same in both ways.
fn answer(server: &Server, body: Value) -> (Value, String) {
    let whole = post(server, body.clone());
    let choice = &whole["choices"][0];
    let (message, reason) = streamed(server, body);
    assert_eq!(reason, choice["finish_reason"]);
    let nameless = |mut message: Value| {
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            let id = call["id"].take();
            assert!(id.as_str().unwrap().starts_with("call_"), "{id}");
        }
        message
    };
    let whole = nameless(choice["message"].clone());
    assert_eq!(nameless(message), whole);
    (whole, reason.as_str().unwrap().to_owned())
}

fn call(name: &str, arguments: &str) -> Value {
    json!({"id": null, "type": "function", "function": {"name": name, "arguments": arguments}})
}

fn message(content: Value, calls: &[Value]) -> Value {
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

/// The prompt of the last request.
fn prompt(server: &Server) -> String {
    let prompt = server.seen.lock().unwrap().last().unwrap().prompt.clone();
    text::byte_level().decode_all(&prompt)
}

#[test]
fn a_call_is_no_text() {
    let oslo = call("weather", "{\"city\": \"Oslo\"}");
    let server = Server::start(says(WEATHER));
    let expected = (message(json!(null), std::slice::from_ref(&oslo)), "tool_calls".into());
    assert_eq!(answer(&server, ask(json!({}))), expected);
    let two = format!("Let me look.\n\n{WEATHER}\n<tool_call>{{\"name\": \"now\"}}</tool_call>");
    let server = Server::start(says(&two));
    let expected = message(json!("Let me look."), &[oslo, call("now", "{}")]);
    assert_eq!(answer(&server, ask(json!({}))), (expected, "tool_calls".into()));
    // Ids differ, also between answers.
    let both = post(&server, ask(json!({"n": 2})));
    let calls = |choice: &Value| choice["message"]["tool_calls"].as_array().unwrap().clone();
    let calls = both["choices"].as_array().unwrap().iter().flat_map(calls);
    let ids: HashSet<String> = calls.map(|call| call["id"].to_string()).collect();
    assert_eq!(ids.len(), 4);
}

#[test]
fn long_arguments_stream_before_their_call_is_complete() {
    let long = "x".repeat(1500);
    let call = format!(
        "<tool_call>{{\"name\": \"weather\", \"arguments\": {{\"city\": \"{long}\"}}}}</tool_call>"
    );
    let server = Server::start(Script { context: 4096, ..says(&call) });
    let events = server.post("/v1/chat/completions", ask(json!({"stream": true}))).events();
    assert!(events.len() > 300, "{}", events.len());
    let (told, reason) = streamed(&server, ask(json!({})));
    let arguments = told["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(arguments).unwrap(), json!({"city": long}));
    assert_eq!(reason, "tool_calls");
}

#[test]
fn without_tools_or_with_none_a_call_is_text() {
    let server = Server::start(says(WEATHER));
    for extra in [json!({"tools": null}), json!({"tools": []}), json!({"tool_choice": "none"})] {
        let expected = (message(json!(WEATHER), &[]), "stop".into());
        assert_eq!(answer(&server, ask(extra)), expected);
        assert_eq!(prompt(&server), "u:hi;a:");
    }
    // The same if the one who serves wants it so.
    let answers = Some(Answers::default());
    let server = Server::start(Script { answers, ..says(WEATHER) });
    assert_eq!(answer(&server, ask(json!({}))), (message(json!(WEATHER), &[]), "stop".into()));
}

#[test]
fn a_malformed_call_is_text() {
    let broken = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {city: Oslo}}\n</tool_call>";
    let server = Server::start(says(broken));
    assert_eq!(answer(&server, ask(json!({}))), (message(json!(broken), &[]), "stop".into()));
}

#[test]
fn what_is_cut_off_says_so() {
    let server = Server::start(says(WEATHER));
    let cut = |tokens: u32| answer(&server, ask(json!({"max_tokens": tokens})));
    let half = call("weather", "{\"city\": \"Os");
    assert_eq!(cut(55), (message(json!(null), &[half]), "length".into()));
    assert_eq!(cut(20), (message(json!(""), &[]), "length".into()));
}

#[test]
fn one_call_is_enough_when_they_must_not_be_parallel() {
    let two = format!("{WEATHER}\n{WEATHER}");
    let server = Server::start(Script { step: std::time::Duration::from_millis(1), ..says(&two) });
    let body = ask(json!({"parallel_tool_calls": false}));
    let oslo = call("weather", "{\"city\": \"Oslo\"}");
    assert_eq!(
        answer(&server, body),
        (message(json!(null), std::slice::from_ref(&oslo)), "tool_calls".into())
    );
    common::eventually("the engine stops", || server.cancelled.load(Ordering::Relaxed) == 2);
    let body = ask(json!({"parallel_tool_calls": true}));
    assert_eq!(answer(&server, body).0["tool_calls"], json!([oslo, oslo]));
}

#[test]
fn reasoning_has_its_own_field() {
    let server = Server::start(says("<think>\nHm,\n\nwell.\n</think>\n\nYes."));
    let thinking = |field: &str| json!({"role": "assistant", "content": "Yes.", "refusal": null, field: "Hm,\n\nwell."});
    let (told, reason) = answer(&server, ask(json!({})));
    assert_eq!((told, reason.as_str()), (thinking("reasoning_content"), "stop"));
    let usage = &post(&server, ask(json!({})))["usage"];
    assert_eq!(usage["completion_tokens"], 33);
    // From the tag that opens it (its last byte) to the one that closes it.
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 20);

    let format = Format { tools: Some(ToolFormat::Hermes), reasoning: Some(Reasoning::Think) };
    let named = |reasoning_field| {
        let answers = Some(Answers { format, reasoning_field });
        let server =
            Server::start(Script { answers, ..says("<think>\nHm,\n\nwell.\n</think>\n\nYes.") });
        let events = server.post("/v1/chat/completions", ask(json!({"stream": true}))).body;
        let whole = post(&server, ask(json!({})))["choices"][0]["message"].clone();
        (whole, events.contains("\"reasoning\""), events.contains("\"reasoning_content\""))
    };
    assert_eq!(named(ReasoningField::Reasoning), (thinking("reasoning"), true, false));
    let (both, short, long) = named(ReasoningField::Both);
    assert_eq!((&both["reasoning"], short, long), (&both["reasoning_content"], true, true));
    let text = Format { reasoning: None, ..format };
    let answers = Some(Answers { format: text, ..Answers::default() });
    let server = Server::start(Script { answers, ..says("<think>a</think>b") });
    assert_eq!(answer(&server, ask(json!({}))).0["content"], "<think>a</think>b");
}

#[test]
fn the_prompts_end_says_whether_an_answer_begins_with_thoughts() {
    let server = Server::start(says("Hm.</think>Yes."));
    let kwargs = |kwargs: Value| ask(json!({"chat_template_kwargs": kwargs}));
    let (told, _) = answer(&server, kwargs(json!({"opened": true})));
    assert_eq!((&told["reasoning_content"], &told["content"]), (&json!("Hm."), &json!("Yes.")));
    let (told, _) = answer(&server, kwargs(json!({"enable_thinking": false})));
    assert_eq!((told.get("reasoning_content"), &told["content"]), (None, &json!("Hm.Yes.")));
    let mut body = ask(json!({"continue_final_message": true}));
    let begun = json!({"role": "assistant", "content": "<think>Well, h"});
    body["messages"].as_array_mut().unwrap().push(begun);
    let (told, _) = answer(&server, body);
    assert_eq!(told["reasoning_content"], "Hm.");
}

#[test]
fn a_demanded_call_is_begun_for_the_model() {
    let rest = " \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call> And on.";
    let server = Server::start(says(rest));
    let oslo = call("weather", "{\"city\": \"Oslo\"}");
    for demand in [
        json!("required"),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools":
            [{"type": "function", "function": {"name": "weather"}}]}}),
    ] {
        let (told, reason) = answer(&server, ask(json!({"tool_choice": demand})));
        assert_eq!((&told["tool_calls"], reason.as_str()), (&json!([oslo]), "tool_calls"));
        let end = "u:hi;a:<think>\n\n</think>\n\n<tool_call>\n{\"name\":";
        assert!(prompt(&server).ends_with(end), "{}", prompt(&server));
    }
    // Whoever wants thoughts beside has none: they are closed.
    let opened = json!({"tool_choice": "required", "chat_template_kwargs":
        {"enable_thinking": true, "opened": true}});
    let (told, _) = answer(&server, ask(opened));
    assert_eq!((told.get("reasoning_content"), &told["tool_calls"]), (None, &json!([oslo])));
    assert!(prompt(&server).ends_with("a:<think>\n\n</think>\n\n<tool_call>\n{\"name\":"));

    let server = Server::start(says(" {\"city\": \"Oslo\"}}\n</tool_call>\n<tool_call>"));
    let named = json!({"type": "function", "function": {"name": "weather"}});
    let (told, reason) = answer(&server, ask(json!({"tool_choice": named})));
    assert_eq!((&told["tool_calls"], reason.as_str()), (&json!([oslo]), "tool_calls"));
    assert!(prompt(&server).ends_with("{\"name\": \"weather\", \"arguments\":"));
}

#[test]
fn odd_history_is_read_as_it_was_meant() {
    let server = Server::start(says("x"));
    let rendered = |messages: Value| {
        post(&server, json!({"messages": messages}));
        prompt(&server).strip_suffix("a:").unwrap().to_owned()
    };
    let function = |arguments: Value| json!({"name": "f", "arguments": arguments});
    let printed = |arguments: &str, id: &str| {
        format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>#{id}")
    };
    // No ids at all, arguments that were cut off, missing or no string, no content, no envelope.
    let messages = json!([
        {"role": "developer", "content": [{"type": "text", "text": "d"}]},
        {"role": "assistant", "tool_calls": [
            {"function": function(json!("{\"a\": "))},
            {"id": null, "function": {"name": "f"}},
            {"name": "f", "arguments": {"b": 1}},
        ]},
        {"role": "tool", "content": "r"},
        {"role": "tool", "content": null},
        {"role": "tool", "tool_call_id": "unheard", "content": [{"type": "text", "text": "s"}]},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "assistant", "content": null, "function_call": function(json!("{}"))},
        {"role": "function", "name": "f", "content": "r"},
    ]);
    let calls = [
        printed("{\"arguments\": \"{\\\"a\\\": \"}", "call_0"),
        printed("{}", "call_1"),
        printed("{\"b\": 1}", "call_2"),
    ];
    assert_eq!(
        rendered(messages),
        format!(
            "s:d;a:{};t:r@call_0;t:@call_1;t:s@call_2;a:;a:{};t:r@call_3;",
            calls.concat(),
            printed("{}", "call_3"),
        )
    );
    // Results in another order, and one in two parts.
    let messages = json!([
        {"role": "assistant", "tool_calls": [{"id": "x", "function": function(json!("{}"))},
                                             {"id": "y", "function": function(json!("{}"))}]},
        {"role": "tool", "tool_call_id": "y", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "tool", "tool_call_id": "y", "content": "3"},
    ]);
    let calls = printed("{}", "x") + &printed("{}", "y");
    assert_eq!(rendered(messages), format!("a:{calls};t:1@y;t:2@x;t:3@y;"));
}

#[test]
fn what_cannot_be_is_refused() {
    let server = Server::start(says("x"));
    let plain = Server::start(Script { context: 1024, ..Script::saying("x") });
    let toolless = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let toolless = Server::start(Script { template: toolless, ..Script::saying("x") });
    let orphan = json!([{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]},
                        {"role": "tool", "tool_call_id": "b", "content": "r"}]);
    let odd = |calls: Value| json!({"messages": [{"role": "assistant", "tool_calls": calls}]});
    for (server, extra, param, code) in [
        (&plain, json!({"tool_choice": "required"}), "tool_choice", "unsupported_parameter"),
        (&toolless, json!({}), "tools", "unsupported_parameter"),
        (&server, json!({"tools": [], "tool_choice": "required"}), "tool_choice", "invalid_value"),
        (&server, json!({"tool_choice": "maybe"}), "tool_choice", "invalid_value"),
        (
            &server,
            json!({"tool_choice": "required", "add_generation_prompt": false}),
            "tool_choice",
            "invalid_value",
        ),
        (&server, json!({"parallel_tool_calls": "no"}), "parallel_tool_calls", "invalid_value"),
        (&server, json!({"messages": orphan}), "messages[1].tool_call_id", "invalid_value"),
        (&server, odd(json!("f")), "messages[0].tool_calls", "invalid_value"),
        (&server, odd(json!([{"id": "a"}])), "messages[0].tool_calls[0]", "invalid_value"),
        (&server, odd(json!([7])), "messages[0].tool_calls[0]", "invalid_value"),
    ] {
        let reply = server.post("/v1/chat/completions", ask(extra.clone()));
        let error = &reply.json()["error"];
        let found = (reply.status, error["param"].as_str(), error["code"].as_str());
        assert_eq!(found, (400, Some(param), Some(code)), "{extra}: {error}");
    }
}
