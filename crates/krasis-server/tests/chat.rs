//! `/v1/chat/completions`, blocking and streamed.

mod common;

use common::{Script, Server, text};
use serde_json::{Value, json};

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn content(events: &[Value]) -> String {
    let deltas = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    deltas.collect()
}

#[test]
fn a_whole_answer_has_openais_form() {
    let server = Server::start(Script::saying("hé"));
    let reply = server.post("/v1/chat/completions", chat(json!({})));
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"));
    let mut answer = reply.json();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    answer["id"] = json!(null);
    answer["created"] = json!(null);
    assert_eq!(
        answer,
        json!({
            "id": null, "object": "chat.completion", "created": null, "model": "tiny",
            "system_fingerprint": "test",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hé",
                         "refusal": null}, "logprobs": null, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11,
                      "prompt_tokens_details": {"cached_tokens": 1},
                      "completion_tokens_details": {"reasoning_tokens": 0}},
        })
    );
    // The template's text as it is: no BOS in front.
    let prompt = text::byte_level().encode_rendered("u:hi;a:").unwrap();
    assert_eq!(server.seen.lock().unwrap()[0].prompt, prompt);
}

#[test]
fn priorities_reach_the_engine_from_every_api() {
    let server = Server::start(Script::saying("x"));
    for (path, question) in [
        ("/v1/chat/completions", "messages"),
        ("/v1/completions", "prompt"),
        ("/v1/responses", "input"),
        ("/v1/messages", "messages"),
    ] {
        let status = |priority: Value| {
            let mut body = json!({"max_tokens": 1, "max_output_tokens": 1, "priority": priority});
            body[question] = match question {
                "messages" => json!([{"role": "user", "content": "a"}]),
                _ => json!("a"),
            };
            server.post(path, body).status
        };
        let seen = || server.seen.lock().unwrap().last().unwrap().priority;
        for (given, wanted) in [(json!(-1000), -1000), (json!(7), 7), (Value::Null, 0)] {
            assert_eq!((status(given), seen()), (200, wanted), "{path}");
        }
        for wrong in [json!(1001), json!(-1001), json!(i64::MIN), json!(0.5), json!("high")] {
            assert_eq!(status(wrong.clone()), 400, "{path}: {wrong}");
        }
    }
}

#[test]
fn a_stream_is_a_role_then_content_then_a_reason_then_usage() {
    let server = Server::start(Script::saying("a🎉\u{2028}b"));
    let options = json!({"include_usage": true});
    let reply = server
        .post("/v1/chat/completions", chat(json!({"stream": true, "stream_options": options})));
    assert_eq!(reply.header("cache-control"), "no-cache");
    assert_eq!(reply.header("x-accel-buffering"), "no");
    assert!(!reply.body.contains('\u{2028}'), "clients split lines there");
    let events = reply.events();
    let first = &events[0]["choices"][0];
    assert_eq!(first["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(content(&events), "a🎉\u{2028}b");
    assert!(!reply.body.contains('\u{FFFD}'));
    let (usage, rest) = events.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(9)));
    for (index, event) in rest.iter().enumerate() {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!((&event["id"], &event["created"]), (&usage["id"], &usage["created"]));
        assert_eq!(event.get("usage"), Some(&json!(null)));
        assert!(event["choices"][0]["delta"]["content"].is_string());
        let last = index + 1 == rest.len();
        let reason = if last { json!("stop") } else { json!(null) };
        assert_eq!(event["choices"][0]["finish_reason"], reason);
    }
}

#[test]
fn usage_comes_never_or_always_as_asked() {
    let server = Server::start(Script::saying("ab"));
    let events = server.post("/v1/chat/completions", chat(json!({"stream": true}))).events();
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    let always = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = chat(json!({"stream": true, "stream_options": always}));
    let events = server.post("/v1/chat/completions", body).events();
    let tokens: Vec<u64> =
        events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!(tokens, [0, 1, 2, 3, 3]);
}

#[test]
fn stop_strings_end_the_answer_and_the_work() {
    let server = Server::start(Script {
        step: std::time::Duration::from_millis(10),
        ..Script::saying(&"ab--END--cd".repeat(3))
    });
    let body = |stream| chat(json!({"stop": ["--END", "x"], "stream": stream, "max_tokens": 40}));
    let answer = server.post("/v1/chat/completions", body(false)).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "ab");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 7);
    let events = server.post("/v1/chat/completions", body(true)).events();
    assert_eq!(content(&events), "ab");
    common::eventually("both are cancelled", || {
        server.cancelled.load(std::sync::atomic::Ordering::Relaxed) == 2
    });
    let body = chat(json!({"stop": "--END", "include_stop_str_in_output": true}));
    let answer = server.post("/v1/chat/completions", body).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "ab--END");
}

#[test]
fn length_is_a_reason_and_max_completion_tokens_wins() {
    let server = Server::start(Script::saying("abcdef"));
    let body = chat(json!({"max_tokens": 5, "max_completion_tokens": 2}));
    let answer = server.post("/v1/chat/completions", body).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "ab");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    // Without a limit: the rest of the context.
    server.post("/v1/chat/completions", chat(json!({"max_tokens": null})));
    assert_eq!(server.seen.lock().unwrap()[1].tokens_max, common::CONTEXT - 7);
}

#[test]
fn half_a_character_is_withheld_and_shown_only_at_the_end() {
    let server = Server::start(Script::saying("a🎉"));
    let body = chat(json!({"max_tokens": 3, "stream": true}));
    let events = server.post("/v1/chat/completions", body).events();
    let pieces: Vec<&str> =
        events.iter().map(|e| e["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
    assert_eq!(pieces, ["", "a", "\u{FFFD}"]);
}

#[test]
fn n_answers_have_n_indices_and_seeds_and_one_prompt() {
    let server = Server::start(Script::saying("ab"));
    let body = chat(json!({"n": 3, "seed": 7}));
    let answer = server.post("/v1/chat/completions", body).json();
    let indices: Vec<u64> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(answer["usage"]["prompt_tokens"], 7);
    assert_eq!(answer["usage"]["completion_tokens"], 9);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
    let seeds: Vec<_> =
        server.seen.lock().unwrap().iter().map(|request| request.sampling.seed).collect();
    assert_eq!(seeds, [Some(7), Some(8), Some(9)]);

    let events =
        server.post("/v1/chat/completions", chat(json!({"n": 2, "stream": true}))).events();
    let reasons = events.iter().filter(|event| event["choices"][0]["finish_reason"] == "stop");
    assert_eq!(reasons.count(), 2);
}

#[test]
fn logprobs_carry_bytes_and_alternatives() {
    let server = Server::start(Script::saying("é"));
    let body = chat(json!({"logprobs": true, "top_logprobs": 2}));
    let answer = server.post("/v1/chat/completions", body).json();
    let content = &answer["choices"][0]["logprobs"]["content"];
    let top = json!([{"token": "\u{FFFD}", "logprob": -0.1, "bytes": [195]},
                     {"token": "z", "logprob": -2.3, "bytes": [122]}]);
    assert_eq!(
        content[0],
        json!({"token": "\u{FFFD}", "logprob": -0.1, "bytes": [195], "top_logprobs": top})
    );
    assert_eq!(content.as_array().unwrap().len(), 3);
    assert_eq!(content[2]["token"], "</s>");
    // Streamed, every token is in some chunk, also those whose text was withheld.
    let body = chat(json!({"logprobs": true, "stream": true}));
    let events = server.post("/v1/chat/completions", body).events();
    let counts = events
        .iter()
        .map(|e| e["choices"][0]["logprobs"]["content"].as_array().map_or(0, Vec::len));
    assert_eq!(counts.collect::<Vec<_>>(), [0, 2, 1]);
}

#[test]
fn token_ids_are_returned_as_vllm_returns_them() {
    let server = Server::start(Script::saying("ab"));
    let prompt = json!(text::byte_level().encode_rendered("u:hi;a:").unwrap());
    let answer =
        server.post("/v1/chat/completions", chat(json!({"return_token_ids": true}))).json();
    assert_eq!(answer["prompt_token_ids"], prompt);
    assert_eq!(answer["choices"][0]["token_ids"], json!([97, 98, common::EOS]));
    let body = chat(json!({"return_token_ids": true, "stream": true}));
    let events = server.post("/v1/chat/completions", body).events();
    assert_eq!(events[0]["prompt_token_ids"], prompt);
    assert_eq!(events[1]["choices"][0]["token_ids"], json!([97]));
    assert_eq!(events[3]["choices"][0]["token_ids"], json!([common::EOS]));
}

#[test]
fn the_template_sees_tools_history_and_variables() {
    let server = Server::start(Script::saying("x"));
    let tools = json!([{"type": "function", "function": {"name": "f"}},
                       {"type": "function", "function": {"name": "g"}}]);
    let rendered = |body: Value| {
        let reply = server.post("/v1/chat/completions", body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let prompt = server.seen.lock().unwrap().last().unwrap().prompt.clone();
        text::byte_level().decode_all(&prompt)
    };
    assert_eq!(rendered(chat(json!({"tools": tools}))), "T:f;T:g;u:hi;a:");
    assert_eq!(rendered(chat(json!({"tools": tools, "tool_choice": "none"}))), "u:hi;a:");
    let named = json!({"type": "function", "function": {"name": "g"}});
    let flat = json!([{"type": "function", "name": "f"}, {"type": "web_search"}]);
    assert_eq!(rendered(chat(json!({"tools": flat}))), "T:f;u:hi;a:");
    let allowed =
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}});
    assert_eq!(rendered(chat(json!({"tools": tools, "tool_choice": allowed}))), "T:g;u:hi;a:");
    let thinking = json!({"chat_template_kwargs": {"enable_thinking": true}});
    assert_eq!(rendered(chat(thinking)), "u:hi;a:think");
    let history = json!([
        {"role": "developer", "content": [{"type": "text", "text": "d"}], "type": "text"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function",
         "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "r"},
        {"role": "assistant", "content": "Well"},
    ]);
    assert_eq!(
        rendered(json!({"messages": history, "continue_final_message": true, "max_tokens": 1})),
        "s:d;a:<tool>{\"a\": 1};t:r;a:Well"
    );
}

#[test]
fn sampling_is_openais_or_the_requests() {
    let server = Server::start(Script::saying("x"));
    let nothing = json!({"temperature": null, "stop": null, "seed": null, "tools": null, "n": null,
        "stream": null, "logprobs": null, "response_format": null, "user": "u", "store": true,
        "unheard_of": {"deep": []}});
    server.post("/v1/chat/completions", chat(nothing));
    let wanted = json!({"temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "seed": -1,
        "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.1,
        "logit_bias": {"97": 5}, "ignore_eos": true, "stop_token_ids": [99], "max_tokens": 1,
        "response_format": {"type": "text"}});
    let reply = server.post("/v1/chat/completions", chat(wanted));
    assert_eq!(reply.status, 200, "{}", reply.body);
    let seen = server.seen.lock().unwrap();
    let (silent, asked) = (&seen[0], &seen[1]);
    assert_eq!(
        silent.sampling,
        krasis_engine::Sampling { temperature: 1.0, ..krasis_engine::Sampling::GREEDY }
    );
    assert_eq!(silent.stop_tokens, [common::EOS]);
    assert_eq!(
        asked.sampling,
        krasis_engine::Sampling {
            logit_bias: vec![(97, 5.0)],
            repetition_penalty: 1.1,
            presence_penalty: 1.0,
            frequency_penalty: -1.0,
            temperature: 0.5,
            top_k: 0,
            top_p: 0.9,
            min_p: 0.1,
            seed: Some(u64::MAX),
        }
    );
    assert_eq!(asked.stop_tokens, [99]);
}
