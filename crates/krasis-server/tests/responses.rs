//! `/v1/responses`, blocking and streamed, and what is kept of it.

mod common;

use common::{Fault, Reply, Script, Server, text};
use krasis_server::{Access, Limits};
use serde_json::{Value, json};

const RESPONSES: &str = "/v1/responses";

/// ChatML in short, with calls as Qwen3 writes them, and thoughts unless they are switched off.
const QWEN3: &str = "{% for t in tools or [] %}T:{{ t.function.name }};{% endfor %}\
    {% for m in messages %}{{ m.role[:1] }}:\
    {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
    {{ m.content or '' }}\
    {% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \
    \"arguments\": {{ c.function.arguments | tojson }}}\n</tool_call>#{{ c.id }}{% endfor %}\
    {% if m.tool_call_id %}@{{ m.tool_call_id }}{% endif %};{% endfor %}\
    {% if add_generation_prompt %}a:{% endif %}{{ reasoning_effort or '' }}\
    {{ 'plain' if enable_thinking is defined and not enable_thinking }}";

const WEATHER: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";

fn says(answer: &str) -> Script {
    Script { template: QWEN3, context: 1024, ..Script::saying(answer) }
}

fn ask(extra: Value) -> Value {
    let mut body = json!({
        "model": "tiny", "input": "hi",
        "tools": [{"type": "function", "name": "weather", "parameters":
                   {"type": "object", "properties": {"city": {"type": "string"}}}},
                  {"type": "web_search"},
                  {"type": "namespace", "name": "n", "tools": []},
                  {"type": "custom", "name": "apply_patch"}],
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn ok(reply: Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

/// The response that a stream ends with, after its events were held against each other.
fn streamed(server: &Server, body: &Value) -> Value {
    let mut body = body.clone();
    body["stream"] = true.into();
    let reply = server.post(RESPONSES, body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let events = reply.named_events();
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..2], ["response.created", "response.in_progress"]);
    let mut items: Vec<Value> = Vec::new();
    let mut grown: Vec<String> = Vec::new();
    for (number, (name, event)) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
        let index = event["output_index"].as_u64().map(|index| index as usize);
        if let Some(index) = index.filter(|_| event.get("item_id").is_some()) {
            assert_eq!(event["item_id"], items[index]["id"], "{event}");
        }
        let done = |field: &str| event[field].as_str().unwrap().to_owned();
        match name.strip_prefix("response.").unwrap() {
            "output_item.added" => {
                assert_eq!(index, Some(items.len()), "items come one after the other");
                assert_eq!(event["item"]["status"], "in_progress");
                items.push(event["item"].clone());
                grown.push(String::new());
            }
            "output_text.delta" | "reasoning_text.delta" | "function_call_arguments.delta" => {
                grown[index.unwrap()] += event["delta"].as_str().unwrap();
            }
            "output_text.done" | "reasoning_text.done" => {
                assert_eq!(done("text"), grown[index.unwrap()]);
            }
            "function_call_arguments.done" => {
                assert_eq!(done("arguments"), grown[index.unwrap()]);
            }
            "content_part.done" => {
                assert_eq!(event["part"]["text"], grown[index.unwrap()].as_str())
            }
            "output_item.done" => items[index.unwrap()] = event["item"].clone(),
            "content_part.added" => assert_eq!(event["part"]["text"], ""),
            "created" | "in_progress" => assert_eq!(event["response"]["status"], "in_progress"),
            "completed" | "incomplete" => assert_eq!(number + 1, events.len()),
            other => panic!("{other}"),
        }
    }
    let (name, last) = events.last().unwrap();
    let response = &last["response"];
    assert_eq!(response["output"], json!(items));
    assert_eq!(name.strip_prefix("response.").unwrap(), response["status"]);
    response.clone()
}

/// The response without ids and times, which must be there; the same in both ways.
fn answer(server: &Server, body: Value) -> Value {
    let nameless = |mut response: Value| {
        assert!(response["id"].take().as_str().unwrap().starts_with("resp_"));
        for time in ["created_at", "completed_at"] {
            assert!(response[time].take().as_u64().unwrap() > 1_700_000_000);
        }
        for item in response["output"].as_array_mut().unwrap() {
            let prefix = match item["type"].as_str().unwrap() {
                "message" => "msg_",
                "reasoning" => "rs_",
                "function_call" => "fc_",
                other => panic!("{other}"),
            };
            assert!(item["id"].take().as_str().unwrap().starts_with(prefix));
            if item["call_id"].is_string() {
                assert!(item["call_id"].take().as_str().unwrap().starts_with("call_"));
            }
        }
        response
    };
    let whole = nameless(ok(server.post(RESPONSES, body.clone())));
    assert_eq!(nameless(streamed(server, &body)), whole);
    whole
}

/// The prompt of the last request.
fn prompt(server: &Server) -> String {
    let prompt = server.seen.lock().unwrap().last().unwrap().prompt.clone();
    text::byte_level().decode_all(&prompt)
}

fn rendered(server: &Server, body: Value) -> String {
    ok(server.post(RESPONSES, body));
    prompt(server)
}

fn message(text: &str) -> Value {
    json!({"id": null, "type": "message", "status": "completed", "role": "assistant", "content":
        [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]})
}

fn call(arguments: &str, status: &str) -> Value {
    json!({"id": null, "type": "function_call", "status": status, "call_id": null,
           "name": "weather", "arguments": arguments})
}

#[test]
fn a_response_has_openais_form() {
    let server = Server::start(says("hé"));
    let body = json!({"input": "hi", "instructions": "s", "max_output_tokens": 100,
                      "metadata": {"a": "b"}, "temperature": 0.5, "store": false});
    assert_eq!(
        answer(&server, body),
        json!({
            "id": null, "object": "response", "created_at": null, "completed_at": null,
            "status": "completed", "background": false, "error": null, "incomplete_details": null,
            "instructions": "s", "max_output_tokens": 100, "max_tool_calls": null,
            "metadata": {"a": "b"}, "model": "tiny", "output": [message("hé")],
            "parallel_tool_calls": true, "previous_response_id": null, "prompt_cache_key": null,
            "reasoning": {"effort": null, "summary": null}, "safety_identifier": null,
            "service_tier": "default", "store": false, "text": {"format": {"type": "text"}},
            "tool_choice": "auto", "tools": [], "top_logprobs": 0, "truncation": "disabled",
            "usage": {"input_tokens": 11, "input_tokens_details": {"cached_tokens": 1},
                      "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 0},
                      "total_tokens": 15},
            "user": null, "temperature": 0.5, "top_p": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        })
    );
    assert_eq!(prompt(&server), "s:s;u:hi;a:");
}

#[test]
fn thoughts_text_and_calls_are_items_in_their_order() {
    let all = format!("<think>\nHm.\n</think>\n\nLet me look.\n\n{WEATHER}\n{WEATHER}");
    let server = Server::start(says(&all));
    let thoughts = json!({"id": null, "type": "reasoning", "status": "completed", "summary": [],
                          "content": [{"type": "reasoning_text", "text": "Hm."}]});
    let weather = call("{\"city\": \"Oslo\"}", "completed");
    let response = answer(&server, ask(json!({})));
    let expected = json!([thoughts, message("Let me look."), weather, weather]);
    assert_eq!((&response["output"], &response["status"]), (&expected, &json!("completed")));
    assert_eq!(prompt(&server), "T:weather;u:hi;a:", "what only servers can run is left out");
    let response = answer(&server, ask(json!({"parallel_tool_calls": false})));
    assert_eq!(response["output"].as_array().unwrap().len(), 3);
    // Thoughts come back to us in the form in which clients keep them.
    let kept = json!({"include": ["reasoning.encrypted_content"], "store": false});
    let response = ok(server.post(RESPONSES, ask(kept)));
    let mut output = response["output"].clone();
    output[0]["content"].take();
    output[2]["call_id"] = "c1".into();
    output.as_array_mut().unwrap().truncate(3);
    let result = json!({"type": "function_call_output", "call_id": "c1", "output": "r"});
    output.as_array_mut().unwrap().push(result);
    let begun = "<think>Hm.</think>Let me look.<tool_call>\n{\"name\": \"weather\", \
                 \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>#c1";
    let again = rendered(&server, ask(json!({"input": output})));
    assert_eq!(again, format!("T:weather;a:{begun};t:r@c1;a:"));
}

#[test]
fn what_is_cut_off_is_incomplete() {
    let server = Server::start(says(&format!("Well.\n{WEATHER}")));
    let response = answer(&server, ask(json!({"max_output_tokens": 60})));
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    let expected = json!([message("Well."), call("{\"city\": \"Os", "incomplete")]);
    assert_eq!(response["output"], expected);
    let response = answer(&server, ask(json!({"max_output_tokens": 3})));
    assert_eq!(response["output"][0]["status"], "incomplete");
    // More than there is room for is a bound like another.
    let body = json!({"input": "hi", "max_output_tokens": 100_000});
    ok(server.post(RESPONSES, body));
    assert_eq!(server.seen.lock().unwrap().last().unwrap().tokens_max, 1024 - 7);
}

#[test]
fn items_are_rendered_as_a_chat_renders_messages() {
    let server = Server::start(says("x"));
    let input = json!([
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "d"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"},
                                     {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}],
         "content": null, "encrypted_content": "from elsewhere"},
        {"type": "web_search_call", "id": "w", "status": "completed"},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "Look.", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\": 1}"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "text"},
        {"type": "function_call_output", "call_id": "c1", "output": "r1"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [
            {"type": "input_text", "text": "r2"}, {"type": "input_image", "image_url": "x"}]},
        {"role": "developer", "content": "e"},
        {"role": "user", "content": "now?"},
    ]);
    let call = |name: &str, arguments: &str, id: &str| {
        format!(
            "<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>#{id}"
        )
    };
    let calls = call("f", "{\"a\": 1}", "c1") + &call("g", "{\"input\": \"text\"}", "c2");
    let body = ask(json!({"input": input, "instructions": "s", "tool_choice": "none",
        "reasoning": {"effort": "high", "summary": "auto"}, "text": {"verbosity": "low"},
        "include": [], "prompt_cache_key": "k", "client_metadata": {"x": 1}, "n": 2}));
    assert_eq!(
        rendered(&server, body),
        format!(
            "s:s\n\nd;u:a\nb;a:<think>Hm.</think>Look.{calls};t:r1@c1;\
                 t:r2\n[input_image: not readable here]@c2;s:e;u:now?;a:high"
        )
    );
    let none = ask(json!({"reasoning": {"effort": "none"}, "tools": null}));
    assert_eq!(rendered(&server, none), "u:hi;a:plain");
    // Codex asks whether anybody is there.
    let probe = json!({"input": [], "max_output_tokens": 1, "stream": true});
    let reply = server.post(RESPONSES, probe);
    assert_eq!((reply.status, prompt(&server).as_str()), (200, "u:;a:"));
}

#[test]
fn a_response_can_be_continued_until_it_is_forgotten() {
    let server = Server::start(says(&format!("Look.{WEATHER}")));
    let first = ok(server.post(RESPONSES, ask(json!({"instructions": "s"}))));
    let call_id = first["output"][1]["call_id"].as_str().unwrap();
    let result = json!([{"type": "function_call_output", "call_id": call_id, "output": "r"}]);
    let next = json!({"input": result, "previous_response_id": first["id"], "tools": null});
    let expected = format!("u:hi;a:Look.{WEATHER}#{call_id};t:r@{call_id};a:");
    assert_eq!(rendered(&server, ask(next.clone())), expected, "instructions hold for one answer");
    // Streamed, and a third one behind it.
    let second = streamed(&server, &ask(next.clone()));
    let third = ask(json!({"input": "so?", "previous_response_id": second["id"], "tools": null}));
    let told = rendered(&server, third);
    assert!(told.starts_with(&expected) && told.ends_with("u:so?;a:"), "{told}");

    let path = format!("{RESPONSES}/{}", first["id"].as_str().unwrap());
    assert_eq!(ok(server.get(&path)), first);
    let deleted = ok(server.send("DELETE", &path, &[], b""));
    assert_eq!(deleted, json!({"id": first["id"], "object": "response", "deleted": true}));
    for reply in [server.get(&path), server.send("DELETE", &path, &[], b"")] {
        let code = reply.json()["error"]["code"].clone();
        assert_eq!((reply.status, code), (404, json!("previous_response_not_found")));
    }
    let reply = server.post(RESPONSES, ask(next));
    let error = reply.json()["error"].clone();
    assert_eq!((reply.status, &error["param"]), (400, &json!("previous_response_id")));
    let unkept = ok(server.post(RESPONSES, ask(json!({"store": false}))));
    let path = format!("{RESPONSES}/{}", unkept["id"].as_str().unwrap());
    assert_eq!(server.get(&path).status, 404);
}

#[test]
fn only_the_newest_are_kept() {
    let limits = Limits { stored_responses: 2, ..Limits::default() };
    let server = Server::with(says("x"), Access::local(), limits);
    server.ready(true);
    let paths: Vec<String> = (0..3)
        .map(|_| ok(server.post(RESPONSES, json!({"input": "a"})))["id"].clone())
        .map(|id| format!("{RESPONSES}/{}", id.as_str().unwrap()))
        .collect();
    let statuses: Vec<u16> = paths.iter().map(|path| server.get(path).status).collect();
    assert_eq!(statuses, [404, 200, 200]);
}

#[test]
fn logprobs_are_with_their_text() {
    let server = Server::start(says("cd"));
    let wanted = json!({"input": "hi", "include": ["message.output_text.logprobs"],
                        "top_logprobs": 2});
    let response = answer(&server, wanted);
    let logprobs = response["output"][0]["content"][0]["logprobs"].as_array().unwrap();
    let tokens: Vec<&str> = logprobs.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, ["c", "d"]);
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
}

#[test]
fn cursor_gets_a_chat_for_a_response() {
    let server = Server::start(says("x"));
    let options = json!({"include_usage": true});
    let body = ask(json!({"stream": true, "stream_options": options, "instructions": "s"}));
    let events = server.post("/v1/chat/completions", body).events();
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 2);
    assert_eq!(prompt(&server), "T:weather;s:s;u:hi;a:");
}

#[test]
fn what_cannot_be_is_refused() {
    let server = Server::start(says("x"));
    let long = "a".repeat(1100);
    let schema = json!({"format": {"type": "json_schema", "name": "n", "strict": true,
                                   "schema": {"type": "strung"}}});
    for (extra, param, code) in [
        (json!({"input": null}), "input", "invalid_value"),
        (json!({"input": 7}), "input", "invalid_value"),
        (json!({"input": [7]}), "input[0]", "invalid_value"),
        (json!({"input": [{"type": "hologram"}]}), "input[0]", "invalid_value"),
        (
            json!({"input": [{"type": "item_reference", "id": "x"}]}),
            "input[0]",
            "unsupported_parameter",
        ),
        (json!({"input": [{"role": "robot", "content": "x"}]}), "input[0].role", "invalid_value"),
        (json!({"input": [{"role": "user", "content": 7}]}), "input[0].content", "invalid_value"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0]",
            "invalid_value",
        ),
        (json!({"input": long}), "input", "context_length_exceeded"),
        (json!({"background": true}), "background", "unsupported_parameter"),
        (json!({"conversation": "conv_1"}), "conversation", "unsupported_parameter"),
        (json!({"prompt": {"id": "p"}}), "prompt", "unsupported_parameter"),
        (json!({"max_output_tokens": 0}), "max_output_tokens", "invalid_value"),
        (json!({"temperature": 3}), "temperature", "invalid_value"),
        (json!({"top_logprobs": 21}), "top_logprobs", "invalid_value"),
        (json!({"text": schema}), "text", "invalid_value"),
        (json!({"text": {"format": {}}}), "text", "invalid_value"),
        (json!({"tool_choice": {"type": "function", "name": "g"}}), "tool_choice", "invalid_value"),
        (
            json!({"previous_response_id": "resp_x"}),
            "previous_response_id",
            "previous_response_not_found",
        ),
    ] {
        for stream in [false, true] {
            let mut body = ask(extra.clone());
            body["stream"] = stream.into();
            let reply = server.post(RESPONSES, body);
            let error = &reply.json()["error"];
            let found = (reply.status, error["param"].as_str(), error["code"].as_str());
            assert_eq!(found, (400, Some(param), Some(code)), "{extra}: {error}");
        }
    }
    let many = Limits { messages: 3, ..Limits::default() };
    let server = Server::with(says("x"), Access::local(), many);
    server.ready(true);
    let items = vec![json!({"role": "user", "content": "a"}); 4];
    let reply = server.post(RESPONSES, json!({"input": items}));
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("input")));
}

#[test]
fn a_stream_that_breaks_off_has_failed() {
    let server = Server::start(Script { fault: Some(Fault::Said), ..says("xyz") });
    let events = server.post(RESPONSES, ask(json!({"stream": true}))).named_events();
    let (name, last) = events.last().unwrap();
    assert_eq!(name, "response.failed");
    assert_eq!(last["response"]["status"], "failed");
    assert_eq!(last["response"]["error"]["code"], "server_error");
    assert_eq!(server.post(RESPONSES, ask(json!({}))).status, 500);
}
