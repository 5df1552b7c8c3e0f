//! From the open port to the last answer: loading, draining, failing, and the end of single requests.

mod common;

use common::{Fault, Script, Server, eventually, rest};
use krasis_server::{Access, Limits, Over, Progress};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;

const TEXT: &str = "/v1/completions";

/// A server whose answers end after `tokens` steps of 20 ms.
fn slow(tokens: usize, limits: Limits) -> Server {
    let step = Duration::from_millis(20);
    let script = Script { step, context: 100_000, ..Script::saying(&"a".repeat(tokens)) };
    let server = Server::with(script, Access::local(), limits);
    server.ready(true);
    server
}

fn streamed() -> Value {
    json!({"prompt": "a", "stream": true})
}

fn begun(server: &Server) {
    eventually("a token", || server.tokens.load(Ordering::Relaxed) > 1);
}

/// The error in the last event of a stream.
fn error_at_end(stream: &str) -> String {
    assert!(!stream.contains("[DONE]"), "{stream}");
    let data = stream.rsplit("data: ").next().unwrap().lines().next().unwrap();
    let error: Value = serde_json::from_str(data).unwrap_or_else(|_| panic!("{stream}"));
    error["error"]["code"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn probes_tell_how_far_loading_is() {
    let server = Server::loading(Script::saying("x"));
    server.app.loading(Progress::of("quantising", 43, 100));
    for path in ["/health", "/readyz"] {
        let reply = server.get(path);
        let body = json!({"status": "loading", "phase": "quantising", "percent": 43});
        assert_eq!((reply.status, reply.json()), (503, body));
        assert_eq!(reply.header("retry-after"), "5");
    }
    let message = server.post(TEXT, json!({"prompt": "a"})).json()["error"]["message"].to_string();
    assert!(message.contains("quantising, 43 %"), "{message}");
    // Whoever looks at the server sees it at any time.
    for path in ["/v1/status", "/metrics", "/docs", "/openapi.json", "/version"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    assert_eq!(server.get("/v1/status").json()["server"]["percent"], 43);
    server.ready(true);
    assert_eq!(server.get("/readyz").json(), json!({"status": "ok"}));
    // A late report does not turn it back.
    server.app.loading(Progress::of("loading", 1, 2));
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn a_server_that_drains_finishes_and_takes_nothing_new() {
    let mut server = slow(40, Limits::default());
    let running = server.ask(TEXT, &streamed());
    begun(&server);
    server.stop.take().unwrap().send(()).unwrap();
    eventually("draining", || server.get("/readyz").status == 503);
    assert_eq!(server.get("/readyz").json(), json!({"status": "draining"}));
    let reply = server.post(TEXT, json!({"prompt": "a"}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("shutting_down")));
    assert_eq!(reply.header("retry-after"), "5");
    assert!(rest(running).contains("[DONE]"));
    eventually("nobody listens", || std::net::TcpStream::connect(server.address).is_err());
}

#[test]
fn whoever_cannot_be_finished_is_told() {
    let mut server = slow(50_000, Limits { drain_seconds: 0, ..Limits::default() });
    let stream = server.ask(TEXT, &streamed());
    let blocking = server.ask(TEXT, &json!({"prompt": "a"}));
    begun(&server);
    eventually("both are there", || {
        server.get("/v1/status").json()["requests"]["http"] == json!(2)
    });
    server.stop.take().unwrap().send(()).unwrap();
    assert_eq!(error_at_end(&rest(stream)), "shutting_down");
    let blocking = rest(blocking);
    assert!(blocking.starts_with("HTTP/1.1 503") && blocking.contains("shutting_down"));
    eventually("a cancellation", || server.cancelled.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_failed_engine_ends_readiness_streams_and_server() {
    let server = slow(50_000, Limits::default());
    let stream = server.ask(TEXT, &streamed());
    let blocking = server.ask(TEXT, &json!({"prompt": "a"}));
    begun(&server);
    eventually("both are there", || {
        server.get("/v1/status").json()["requests"]["http"] == json!(2)
    });
    // A connection from before, whose probe comes after.
    let mut probe = std::net::TcpStream::connect(server.address).unwrap();
    server.app.over(Over::Failed);
    std::io::Write::write_all(&mut probe, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let probe = rest(probe);
    assert!(probe.is_empty() || probe.starts_with("HTTP/1.1 503"), "{probe}");
    assert_eq!(error_at_end(&rest(stream)), "engine_failed");
    assert!(rest(blocking).starts_with("HTTP/1.1 503"));
    eventually("nobody listens", || std::net::TcpStream::connect(server.address).is_err());
}

#[test]
fn an_engine_that_dies_is_told_to_its_clients() {
    for stream in [true, false] {
        let script = Script { fault: Some(Fault::Death), ..Script::saying("abc") };
        let server = Server::start(script);
        let reply = rest(server.ask(TEXT, &json!({"prompt": "a", "stream": stream})));
        match stream {
            true => assert_eq!(error_at_end(&reply), "engine_stopped"),
            false => assert!(reply.starts_with("HTTP/1.1 503"), "{reply}"),
        }
        assert_eq!(server.post(TEXT, json!({"prompt": "a"})).status, 503);
    }
}

#[test]
fn no_request_goes_on_for_ever() {
    let server = slow(50_000, Limits { request_seconds: 1, ..Limits::default() });
    let stream = server.ask(TEXT, &streamed());
    assert_eq!(error_at_end(&rest(stream)), "timeout");
    assert_eq!(server.post(TEXT, json!({"prompt": "a"})).status, 408);
    eventually("cancellations", || server.cancelled.load(Ordering::Relaxed) == 2);
}
