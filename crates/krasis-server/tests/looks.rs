//! What the server tells about itself: metrics, status, descriptions, tokens.

mod common;

use common::{CONTEXT, EOS, Script, Server};
use krasis_engine::{DecodeStrategy, ExpertCensus, PrefillStrategy};
use krasis_server::{Access, Keys, Limits, ROUTES};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

const TEXT: &str = "/v1/completions";

#[test]
fn metrics_have_the_names_that_boards_know() {
    let server = Server::start(Script::saying("abc"));
    // Each prompt begins with a token that the text has not.
    assert_eq!(server.post(TEXT, json!({"prompt": "a", "max_tokens": 4})).status, 200);
    assert_eq!(server.post(TEXT, json!({"prompt": "ab", "max_tokens": 2})).status, 200);
    assert_eq!(server.post(TEXT, json!({"prompt": 7})).status, 400);
    let metrics = server.get("/metrics");
    assert!(metrics.header("content-type").starts_with("text/plain"));
    let value = |series: &str| -> f64 {
        let line = metrics.body.lines().find(|line| line.starts_with(series));
        let line = line.unwrap_or_else(|| panic!("no {series} in {}", metrics.body));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    for (series, expected) in [
        ("krasis:prompt_tokens_total", 5.0),
        ("krasis:prompt_tokens_cached_total", 2.0),
        ("krasis:generation_tokens_total", 6.0),
        ("krasis:request_success_total{finished_reason=\"stop\"", 1.0),
        ("krasis:request_success_total{finished_reason=\"length\"", 1.0),
        ("krasis:request_success_total{finished_reason=\"abort\"", 0.0),
        ("krasis:time_to_first_token_seconds_count", 2.0),
        ("krasis:time_to_first_token_seconds_bucket{model_name=\"tiny\",le=\"2560\"", 2.0),
        ("krasis:inter_token_latency_seconds_count", 4.0),
        ("krasis:e2e_request_latency_seconds_count", 2.0),
        ("krasis:request_queue_time_seconds_count", 2.0),
        ("krasis:request_prompt_tokens_sum", 5.0),
        ("krasis:request_generation_tokens_bucket{model_name=\"tiny\",le=\"2\"", 1.0),
        ("krasis:num_requests_running", 0.0),
        ("krasis:num_requests_waiting", 0.0),
        ("krasis:kv_cache_usage_perc", 0.0),
        ("krasis:prefix_cache_queries_total", 0.0),
        ("http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"2xx\"}", 2.0),
        ("http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"4xx\"}", 1.0),
    ] {
        assert_eq!(value(series), expected, "{series}");
    }
}

#[test]
fn paths_and_methods_that_clients_invent_make_no_series() {
    let server = Server::start(Script::saying("x"));
    for path in ["/a", "/b?c=d", "/v1/models/x/y/z"] {
        server.get(path);
        server.send("BREW", path, &[], b"");
    }
    let metrics = server.get("/metrics").body;
    let handlers: Vec<&str> =
        metrics.lines().filter(|line| line.starts_with("http_requests_total")).collect();
    assert_eq!(handlers.len(), 4, "{handlers:?}");
}

#[test]
fn the_status_has_model_memory_queue_and_limits() {
    let server = Server::start(Script { queue_max: 5, ..Script::saying("x") });
    let status = server.get("/v1/status").json();
    assert_eq!(status, {
        let mut again = server.get("/status").json();
        again["uptime_seconds"] = status["uptime_seconds"].clone();
        again
    });
    for (pointer, expected) in [
        ("/version", json!(env!("CARGO_PKG_VERSION"))),
        ("/server/status", json!("ok")),
        ("/model/names/1", json!("org/alias")),
        ("/model/device", json!("a script")),
        ("/model/context_max", json!(CONTEXT)),
        ("/model/region_bytes/weights", json!(7)),
        ("/requests/queue_max", json!(5)),
        ("/requests/http", json!(0)),
        ("/kv_pages/available", json!(8)),
        ("/kv_pages/total", json!(8)),
        ("/keys", json!(false)),
        ("/limits/body_bytes", json!(32 << 20)),
        ("/limits/drain_seconds", json!(30)),
    ] {
        assert_eq!(status.pointer(pointer), Some(&expected), "{pointer} of {status}");
    }
}

#[test]
fn the_description_has_every_route() {
    let server = Server::loading(Script::saying("x"));
    let document = server.get("/openapi.json").json();
    let page = server.get("/docs");
    let described = document["paths"].as_object().unwrap();
    let operations = described.values().map(|path| path.as_object().unwrap().len());
    assert_eq!(operations.sum::<usize>(), ROUTES.len());
    for route in &ROUTES {
        let path = route.path.replace("{*", "{");
        let operation = &described[&path][route.method.to_lowercase()];
        assert!(operation["responses"]["200"].is_object(), "{path}: {operation}");
        let secured = route.entry == krasis_server::Entry::Keyed;
        assert_eq!(operation["security"].is_array(), secured, "{path}");
        assert!(page.body.contains(&format!("{} {path}</code>", route.method)), "{path}");
    }
    // It loads nothing from elsewhere, and runs nothing.
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
    for remote in ["http:", "https:", "<script", "src=", "style=", "<style"] {
        assert!(!page.body.contains(remote), "{remote}");
    }
}

/// With keys too: a browser that comes by itself has none.
#[test]
fn the_page_and_its_files_are_served_with_their_types_and_policy() {
    let keys = Keys::read(None, Some("a-key")).unwrap();
    let access = Access { keys, ..Access::local() };
    let server = Server::with(Script::saying("x"), access, Limits::default());
    let page = server.get("/");
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let scripts = ["api", "chat", "dom", "draw", "main", "markdown", "settings", "status"];
    let files = scripts.map(|name| (format!("/page/{name}.js"), "text/javascript; charset=utf-8"));
    for (path, kind) in files.into_iter().chain([
        ("/".into(), "text/html; charset=utf-8"),
        ("/docs".into(), "text/html; charset=utf-8"),
        ("/page/page.css".into(), "text/css; charset=utf-8"),
        ("/page/icon.svg".into(), "image/svg+xml"),
    ]) {
        let file = server.get(&path);
        assert_eq!((file.status, file.header("content-type")), (200, kind), "{path}");
        let policy = file.header("content-security-policy");
        for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.split("; ").any(|part| part == rule), "{rule} of {path}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{path}: {policy}");
        assert_eq!(file.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(file.header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(file.header("x-frame-options"), "DENY", "{path}");
        assert!(!file.body.contains("a-key") && !file.body.contains("tiny"), "{path}");
    }
    for path in
        ["/page/index.html", "/page/", "/page/../chat.js", "/page/%2e%2e/main.js", "/page/x"]
    {
        assert_ne!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn experts_are_told_as_the_engine_counts_them() {
    let server = Server::start(Script::saying("x"));
    assert_eq!(server.get("/v1/status").json()["experts"], Value::Null);
    assert_eq!(server.get("/v1/status/experts").json(), json!({"layers": []}));
    let census = &server.app.loaded().unwrap().handle.census;
    let (prefill, decode) = (PrefillStrategy::LayerGrouped(4), DecodeStrategy::HcsHybrid);
    let experts = ExpertCensus::new(Some((prefill, decode, 9)), 5, [0, 2].into_iter());
    experts.on_the_cpu.store(7, Ordering::Relaxed);
    census.experts.set(experts.into()).unwrap();
    census.decodes.tokens.store(6, Ordering::Relaxed);
    census.decodes.nanoseconds.store(1_500_000_000, Ordering::Relaxed);
    let status = server.get("/v1/status").json();
    assert_eq!(status["pace"]["decodes"], json!({"tokens": 6, "seconds": 1.5}));
    assert_eq!(
        status["experts"],
        json!({
            "strategies": {"prefill": "layer_grouped_4", "decode": "hcs_hybrid",
                           "gpu_prefill_threshold": 9},
            "slots": 5,
            "brought": 0,
            "computed_on_the_device": 0,
            "computed_on_the_cpu": 7,
            "counted": true,
        })
    );
    census.remarks.lock().unwrap().push("it is slow".into());
    assert_eq!(server.get("/v1/status").json()["remarks"], json!(["it is slow"]));
    let layers = json!({"layers": [{"layer": 1, "asked": [0, 0]}]});
    assert_eq!(server.get("/v1/status/experts").json(), layers);
}

/// What is described is read: a value of a wrong type is refused in the field's name.
#[test]
fn every_described_field_is_read() {
    let server = Server::start(Script::saying("x"));
    let document = server.get("/openapi.json").json();
    let mut refused = 0;
    for route in ROUTES.iter().filter(|route| route.method == "POST") {
        let content = &document["paths"][route.path]["post"]["requestBody"]["content"];
        let schema = &content["application/json"]["schema"];
        for (field, described) in schema["properties"].as_object().unwrap() {
            let about = described["description"].as_str().unwrap();
            if about == "Ignored" || about == "A variable of the template" {
                continue;
            }
            let kinds = described["type"].to_string();
            let wrong = if kinds.contains("object") { json!(7) } else { json!({"a": [1]}) };
            let tokenize = route.path == "/tokenize";
            let mut body = if tokenize { json!({"prompt": "a"}) } else { json!({}) };
            for needed in schema["required"].as_array().into_iter().flatten() {
                body[needed.as_str().unwrap()] = match needed.as_str().unwrap() {
                    "messages" => json!([{"role": "user", "content": "a"}]),
                    "tokens" => json!([97]),
                    _ => json!("a"),
                };
            }
            body[field] = wrong;
            let reply = server.post(route.path, body);
            let error = &reply.json()["error"];
            // Anthropic's errors name the field in their words alone.
            let named = match route.path.starts_with("/v1/messages") {
                true => error["message"].as_str().unwrap().contains(field.as_str()),
                false => error["param"] == field.as_str(),
            };
            assert!(reply.status == 400 && named, "{} {field}: {reply:?}", route.path);
            refused += 1;
        }
    }
    assert!(refused > 90, "{refused}");
}

#[test]
fn texts_become_tokens_and_tokens_texts() {
    let server = Server::start(Script::saying("x"));
    let reply = server.post("/tokenize", json!({"prompt": "añb", "return_token_strs": true}));
    let json = reply.json();
    let ids: Vec<u32> = serde_json::from_value(json["tokens"].clone()).unwrap();
    assert_eq!((reply.status, &json["count"]), (200, &json!(ids.len())));
    assert_eq!(json["max_model_len"], CONTEXT);
    assert_eq!(json["token_strs"].as_array().unwrap().len(), ids.len());
    let plain = json!({"prompt": "añb", "add_special_tokens": false});
    let plain: Value = server.post("/tokenize", plain).json();
    assert_eq!(plain["token_strs"], Value::Null);
    assert_eq!(
        server.post("/detokenize", json!({"tokens": plain["tokens"]})).json()["prompt"],
        "añb"
    );
    // A conversation as chats see it.
    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat = server.post("/tokenize", json!({"messages": messages})).json();
    let text = server.post("/detokenize", json!({"tokens": chat["tokens"]})).json();
    assert_eq!(text["prompt"], "u:hi;a:");
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": 7}), "prompt"),
        ("/tokenize", json!({"messages": []}), "messages"),
        ("/detokenize", json!({"tokens": [300]}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({}), "tokens"),
    ] {
        let reply = server.post(path, body);
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{path}");
    }
    let info = server.get("/tokenizer_info").json();
    let eos = server.post("/detokenize", json!({"tokens": [EOS]})).json();
    assert_eq!(info["eos_token"], eos["prompt"]);
    assert!(info["chat_template"].as_str().unwrap().contains("m.content"));
}
