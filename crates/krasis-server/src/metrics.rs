//! What operators look at, in Prometheus' format.
//!
//! Names are vLLM's with another prefix, and so are the bounds of the histograms: boards made for
//! one serve the other after a replacement of `vllm:` by `krasis:`.

use krasis_engine::{Census, Event, Finish, Handle, Request};
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const WHOLE: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const TOKENS: [f64; 17] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5];

/// What the server counts and measures.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    requests: Arc<Requests>,
    engine: Engine,
}

/// Of requests to the engine.
struct Requests {
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
    queued: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt: Histogram,
    generation: Histogram,
    tokens_max: Histogram,
    prompt_total: Counter,
    cached_total: Counter,
    generation_total: Counter,
    /// By why they ended, as [`REASONS`].
    finished: [Counter; 4],
}

const REASONS: [&str; 4] = ["stop", "length", "abort", "error"];

/// Of the engine, read when somebody looks.
struct Engine {
    running: Gauge,
    waiting: Gauge,
    kv_usage: Gauge,
    prefix_queries: Counter,
    prefix_hits: Counter,
    preemptions: Counter,
    steps: Counter,
}

impl Metrics {
    pub fn new(model: &str) -> Metrics {
        let buckets = [
            ("krasis:time_to_first_token_seconds", &FIRST_TOKEN[..]),
            ("krasis:inter_token_latency_seconds", &BETWEEN_TOKENS),
            ("krasis:e2e_request_latency_seconds", &WHOLE),
            ("krasis:request_queue_time_seconds", &WHOLE),
            ("krasis:request_prefill_time_seconds", &WHOLE),
            ("krasis:request_decode_time_seconds", &WHOLE),
            ("krasis:request_inference_time_seconds", &WHOLE),
            ("krasis:request_prompt_tokens", &TOKENS),
            ("krasis:request_generation_tokens", &TOKENS),
            ("krasis:request_params_max_tokens", &TOKENS),
        ];
        let mut builder = PrometheusBuilder::new();
        for (name, bounds) in buckets {
            let matcher = Matcher::Full(name.into());
            builder = builder.set_buckets_for_metric(matcher, bounds).expect("bounds are given");
        }
        let recorder = builder.build_recorder();
        let requests = Requests::new(&recorder, model).into();
        let engine = Engine::new(&recorder, model);
        Metrics { handle: recorder.handle(), recorder, requests, engine }
    }

    /// A request's observer, from its submission on.
    pub fn observe(&self, request: &Request) -> Observer {
        let now = Instant::now();
        self.requests.tokens_max.record(request.tokens_max);
        Observer { requests: self.requests.clone(), submitted: now, last: None }
    }

    /// An HTTP request was answered on a route.
    pub fn answered(&self, route: &str, method: &str, status: u16) {
        let labels = vec![
            Label::new("handler", route.to_owned()),
            Label::new("method", method.to_owned()),
            Label::new("status", format!("{}xx", status / 100)),
        ];
        let key = Key::from_parts("http_requests_total", labels);
        self.recorder.register_counter(&key, &METADATA).increment(1);
    }

    /// Everything, as text.
    pub fn render(&self, engine: Option<&Handle>) -> String {
        if let Some(handle) = engine {
            self.engine.read(&handle.census);
        }
        self.handle.render()
    }

    /// Folds what has been measured into histograms, which otherwise happens when somebody looks:
    /// to be called now and then, or measurements pile up where nobody does.
    pub fn fold(&self) {
        self.handle.run_upkeep();
    }
}

const METADATA: Metadata<'static> = Metadata::new("krasis", Level::INFO, None);

fn key(model: &str, name: &'static str) -> Key {
    Key::from_parts(name, vec![Label::new("model_name", model.to_owned())])
}

impl Requests {
    fn new(recorder: &PrometheusRecorder, model: &str) -> Requests {
        let histogram = |name, words: &'static str| {
            let key = key(model, name);
            recorder.describe_histogram(key.name_shared(), None, words.into());
            recorder.register_histogram(&key, &METADATA)
        };
        let counter = |name, words: &'static str| {
            let key = key(model, name);
            recorder.describe_counter(key.name_shared(), None, words.into());
            recorder.register_counter(&key, &METADATA)
        };
        let finished = "krasis:request_success_total";
        recorder.describe_counter(finished.into(), None, "Requests by why they ended.".into());
        let finished = REASONS.map(|reason| {
            let labels = vec![
                Label::new("finished_reason", reason),
                Label::new("model_name", model.to_owned()),
            ];
            recorder.register_counter(&Key::from_parts(finished, labels), &METADATA)
        });
        Requests {
            first_token: histogram(
                "krasis:time_to_first_token_seconds",
                "From submission to the first token.",
            ),
            between_tokens: histogram(
                "krasis:inter_token_latency_seconds",
                "From one token of an answer to the next.",
            ),
            whole: histogram(
                "krasis:e2e_request_latency_seconds",
                "From submission to the last token.",
            ),
            queued: histogram(
                "krasis:request_queue_time_seconds",
                "Waiting for memory and others.",
            ),
            prefill: histogram(
                "krasis:request_prefill_time_seconds",
                "From admission to the first token.",
            ),
            decode: histogram(
                "krasis:request_decode_time_seconds",
                "From the first token to the last.",
            ),
            inference: histogram(
                "krasis:request_inference_time_seconds",
                "From admission to the last token.",
            ),
            prompt: histogram("krasis:request_prompt_tokens", "Tokens of prompts."),
            generation: histogram("krasis:request_generation_tokens", "Tokens of answers."),
            tokens_max: histogram(
                "krasis:request_params_max_tokens",
                "Tokens that answers may have.",
            ),
            prompt_total: counter(
                "krasis:prompt_tokens_total",
                "Tokens of prompts, cached or not.",
            ),
            cached_total: counter(
                "krasis:prompt_tokens_cached_total",
                "Tokens of prompts that were not computed again.",
            ),
            generation_total: counter("krasis:generation_tokens_total", "Tokens of answers."),
            finished,
        }
    }
}

impl Engine {
    fn new(recorder: &PrometheusRecorder, model: &str) -> Engine {
        let gauge = |name, words: &'static str| {
            let key = key(model, name);
            recorder.describe_gauge(key.name_shared(), None, words.into());
            recorder.register_gauge(&key, &METADATA)
        };
        let counter = |name, words: &'static str| {
            let key = key(model, name);
            recorder.describe_counter(key.name_shared(), None, words.into());
            recorder.register_counter(&key, &METADATA)
        };
        Engine {
            running: gauge("krasis:num_requests_running", "Requests that run."),
            waiting: gauge("krasis:num_requests_waiting", "Requests that wait."),
            kv_usage: gauge("krasis:kv_cache_usage_perc", "KV pages in use; 1 is all."),
            prefix_queries: counter(
                "krasis:prefix_cache_queries_total",
                "Tokens that were looked for among known prefixes.",
            ),
            prefix_hits: counter("krasis:prefix_cache_hits_total", "Tokens that were found there."),
            preemptions: counter(
                "krasis:num_preemptions_total",
                "Requests that went back to the queue because memory ended.",
            ),
            steps: counter("krasis:forward_passes_total", "Forward passes of the model."),
        }
    }

    fn read(&self, census: &Census) {
        let [queued, waiting, running, pages, available] = [
            &census.queued,
            &census.waiting,
            &census.running,
            &census.pages,
            &census.pages_available,
        ]
        .map(Census::read);
        self.running.set(running as f64);
        self.waiting.set((queued + waiting) as f64);
        self.kv_usage.set(1.0 - available as f64 / pages.max(1) as f64);
        self.prefix_queries.absolute(Census::read(&census.prefix_queries));
        self.prefix_hits.absolute(Census::read(&census.prefix_hits));
        self.preemptions.absolute(Census::read(&census.preemptions));
        self.steps.absolute(Census::read(&census.steps));
    }
}

/// Measures one request, on the engine's thread: a slow client changes nothing.
#[derive(Clone)]
pub(crate) struct Observer {
    requests: Arc<Requests>,
    submitted: Instant,
    last: Option<Instant>,
}

impl Observer {
    pub fn hear(&mut self, event: &Event) {
        let requests = &*self.requests;
        match event {
            Event::Prompt { .. } => {}
            Event::Token { .. } => {
                let now = Instant::now();
                match self.last.replace(now) {
                    None => requests.first_token.record(now - self.submitted),
                    Some(last) => requests.between_tokens.record(now - last),
                }
            }
            Event::Refused { .. } | Event::Failed { .. } => requests.finished[3].increment(1),
            Event::Done { finish, usage } => {
                let reason = match finish {
                    Finish::Stop => 0,
                    Finish::Length => 1,
                    Finish::Cancelled => 2,
                };
                requests.finished[reason].increment(1);
                requests.whole.record(self.submitted.elapsed());
                requests.queued.record(usage.queued);
                requests.prefill.record(usage.prefill);
                requests.decode.record(usage.decode);
                requests.inference.record(usage.prefill + usage.decode);
                requests.prompt.record(usage.prompt_tokens);
                requests.generation.record(usage.completion_tokens);
                requests.prompt_total.increment(usage.prompt_tokens.into());
                requests.cached_total.increment(usage.cached_tokens.into());
                requests.generation_total.increment(usage.completion_tokens.into());
            }
        }
    }
}

/// How often measurements are folded where nobody looks.
pub(crate) const FOLD_EVERY: Duration = Duration::from_secs(5);
