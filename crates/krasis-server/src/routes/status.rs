//! How the server is: for probes, for operators, for people.

use crate::stage::Stage;
use crate::{App, json};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use krasis_engine::census::Pace;
use krasis_engine::{Census, ExpertCensus};
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /health`, `GET /readyz`: whether requests will be answered, and if not yet, how far it is.
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let stage = app.stage();
    if stage == Stage::Ready {
        return json::response(StatusCode::OK, &stage.json());
    }
    let response = json::response(StatusCode::SERVICE_UNAVAILABLE, &stage.json());
    ([(header::RETRY_AFTER, "5")], response).into_response()
}

/// `GET /version`
pub(super) async fn version() -> Response {
    json::response(StatusCode::OK, &json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.render(app.loaded().map(|loaded| &loaded.handle));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// `GET /v1/status`
pub(super) async fn status(State(app): State<Arc<App>>) -> Response {
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": app.started.elapsed().as_secs(),
        "server": app.stage().json(),
        "model": model(&app),
        "requests": requests(&app),
        "kv_pages": pages(&app),
        "pace": app.loaded().map(|loaded| pace(&loaded.handle.census)),
        "experts": counted(&app).map(whereabouts),
        "remarks": app.loaded().map(|loaded| remarks(&loaded.handle.census)),
        "keys": app.access.keys.wanted(),
        "limits": app.limits.listed(),
    });
    json::response(StatusCode::OK, &body)
}

fn model(app: &App) -> Value {
    let Some(loaded) = app.loaded() else { return json!({"names": app.names}) };
    let regions: serde_json::Map<String, Value> = loaded
        .regions
        .iter()
        .map(|(region, bytes)| (region.to_string(), (*bytes).into()))
        .collect();
    json!({
        "names": app.names,
        "device": loaded.device,
        "fingerprint": loaded.fingerprint,
        "context_max": loaded.handle.facts.context_max,
        "vocab": loaded.handle.facts.vocab,
        "region_bytes": regions,
    })
}

fn requests(app: &App) -> Value {
    // This request is one of those in flight.
    let http = app.in_flight.borrow().saturating_sub(1);
    let Some(loaded) = app.loaded() else { return json!({"http": http}) };
    let census = &loaded.handle.census;
    json!({
        "http": http,
        "running": Census::read(&census.running),
        "waiting": Census::read(&census.queued) + Census::read(&census.waiting),
        "queue_max": loaded.handle.queue_max(),
    })
}

fn pages(app: &App) -> Value {
    let Some(loaded) = app.loaded() else { return Value::Null };
    let census = &loaded.handle.census;
    json!({
        "total": Census::read(&census.pages),
        "available": Census::read(&census.pages_available),
        "prefix_tokens_looked_for": Census::read(&census.prefix_queries),
        "prefix_tokens_found": Census::read(&census.prefix_hits),
    })
}

/// What the engine has computed, and what time it took: between two looks, how fast it was.
fn pace(census: &Census) -> Value {
    let of = |Pace { tokens, nanoseconds }: &Pace| json!({"tokens": Census::read(tokens), "seconds": Census::read(nanoseconds) as f64 / 1e9});
    json!({"prompts": of(&census.prompts), "decodes": of(&census.decodes)})
}

/// Where the model is slower than was foretold.
fn remarks(census: &Census) -> Vec<String> {
    census.remarks.lock().map(|remarks| remarks.clone()).unwrap_or_default()
}

fn counted(app: &App) -> Option<&ExpertCensus> {
    app.loaded()?.handle.census.experts.get().map(|experts| &**experts)
}

/// Where routed experts lie, and who computes them.
fn whereabouts(experts: &ExpertCensus) -> Value {
    let strategies = experts.strategies().map(|(prefill, decode)| {
        let threshold = experts.policy().map(|(_, threshold)| threshold);
        json!({"prefill": prefill.to_string(), "decode": decode.to_string(),
               "gpu_prefill_threshold": threshold})
    });
    json!({
        "strategies": strategies,
        "slots": experts.slots,
        "brought": Census::read(&experts.brought),
        "computed_on_the_device": Census::read(&experts.on_the_device),
        "computed_on_the_cpu": Census::read(&experts.on_the_cpu),
        "counted": experts.asked().is_some(),
    })
}

/// `GET /v1/status/experts`: a picture's worth of numbers, so it is apart. No layers where nobody looks.
pub(super) async fn experts(State(app): State<Arc<App>>) -> Response {
    let asked = counted(&app).and_then(ExpertCensus::asked);
    let layers =
        asked.into_iter().flatten().map(|(layer, asked)| json!({"layer": layer, "asked": asked}));
    json::response(StatusCode::OK, &json!({"layers": layers.collect::<Vec<_>>()}))
}
