//! Running the tiny fixtures: checkpoints of random weights with what transformers computes from
//! them in float32 (`fixtures/tiny/README.md`).
#![allow(dead_code, reason = "each test file uses its part")]

use krasis_core::Bytes;
use krasis_engine::{
    CacheUse, DecodeStrategy, Event, ExpertBits, Finish, Handle, Logprob, Options, PrefillStrategy,
    Quant, Request, Residency, Sampling, StartError, Usage, start,
};
use safetensors::SafeTensors;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

/// Every architecture, each variant.
pub const FIXTURES: [&str; 10] = [
    "qwen3_moe",
    "qwen3_moe_sparse",
    "deepseek_v2_lite",
    "deepseek_v2",
    "deepseek_v3",
    "kimi_k2",
    "kimi_k25",
    "glm4_moe",
    "glm4_moe_noqk",
    "qwen3_next",
];

/// In the checkout that the test was built in, or, where there is none, below the current folder:
/// a GPU machine gets the fixtures and a test program, but no Rust.
pub fn dir(fixture: &str) -> PathBuf {
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny");
    let tiny = if built.is_dir() { built } else { PathBuf::from("fixtures/tiny") };
    tiny.join(fixture)
}

/// A fixture of one's own, without what is known of it.
pub fn copy(fixture: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir(fixture)).unwrap() {
        let from = entry.unwrap().path();
        if from.is_file() && !from.ends_with("golden.safetensors") {
            std::fs::copy(&from, to.path().join(from.file_name().unwrap())).unwrap();
        }
    }
    to
}

/// Shapes of Qwen3-30B-A3B, cut to a vocabulary of 3,000 and what these fields say.
pub fn shapes(fields: &[(&str, u32)]) -> serde_json::Value {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/configs/Qwen3-30B-A3B.json");
    let text = std::fs::read_to_string(file).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    for &(field, value) in [("vocab_size", 3000)].iter().chain(fields) {
        config[field] = value.into();
    }
    config
}

/// One thread: tests run side by side, and more threads than cores only wait for each other.
pub fn defaults() -> Options {
    Options { threads: Some(1), cache: CacheUse::Off, ..Options::default() }
}

/// All weights in INT4, and contexts of so many tokens.
pub fn int4(context_max: u32) -> Options {
    let (attention, lm_head) = (Quant::Int4, Quant::Int4);
    let (expert_bits, context_max) = (ExpertBits::Int4, Some(context_max));
    Options { expert_bits, attention, lm_head, context_max, ..defaults() }
}

/// All of them, with few groups and with as many as there are layers.
pub const PREFILL: [PrefillStrategy; 6] = [
    PrefillStrategy::LayerGrouped(1),
    PrefillStrategy::LayerGrouped(2),
    PrefillStrategy::LayerGrouped(9),
    PrefillStrategy::Chunked,
    PrefillStrategy::ActiveOnly,
    PrefillStrategy::HcsPrefill,
];

/// All of them.
pub const DECODE: [DecodeStrategy; 4] = [
    DecodeStrategy::PureCpu,
    DecodeStrategy::HcsHybrid,
    DecodeStrategy::Compact,
    DecodeStrategy::Lru,
];

/// Prompts of 12 rows and more; passes of 50 tokens in chunks of 16.
pub fn away(prefill: PrefillStrategy, decode: DecodeStrategy) -> Options {
    Options {
        residency: Residency::Host { prefill, decode },
        prompt_rows: Some(12),
        prefill_chunk: 16,
        pass_tokens: 50,
        context_max: Some(320),
        ..defaults()
    }
}

/// The least memory of the device with which these options work, or a little more.
pub fn tight(fixture: &str, options: &Options) -> Options {
    let with = |bytes| Options { device_bytes: Some(Bytes(bytes)), ..options.clone() };
    let mut bytes = 1;
    while let Err(error) = start(&dir(fixture), &with(bytes)) {
        let StartError::Shortfall { wanted, available, .. } = error else { panic!("{error}") };
        bytes += wanted.0 - available.0 + 1024;
    }
    with(bytes)
}

/// What transformers says.
pub struct Golden {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
    /// `[layers + 1][24 tokens · hidden]`
    pub hidden: Vec<Vec<f32>>,
    pub greedy_prompt: Vec<u32>,
    pub greedy: Vec<u32>,
}

impl Golden {
    pub fn of(fixture: &str) -> Golden {
        let bytes = std::fs::read(dir(fixture).join("golden.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            file.tensor(name)
                .unwrap()
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect()
        };
        let ids = |name: &str| -> Vec<u32> {
            file.tensor(name)
                .unwrap()
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|b| i64::from_le_bytes(*b) as u32)
                .collect()
        };
        let layers = file.tensor("hidden").unwrap().shape()[0];
        let hidden = floats("hidden");
        Golden {
            tokens: ids("tokens"),
            logprobs: floats("logprobs"),
            hidden: hidden.chunks_exact(hidden.len() / layers).map(<[f32]>::to_vec).collect(),
            greedy_prompt: ids("greedy_prompt"),
            greedy: ids("greedy"),
        }
    }
}

/// What a device computes of a fixture, beside what transformers does.
pub struct Compared {
    /// Mean difference of log-probabilities.
    pub mean: f32,
    /// The largest.
    pub worst: f32,
    /// Greedy tokens that are the same, of 24.
    pub same: usize,
}

/// Compares a running fixture with its golden values.
pub fn compare(fixture: &str, handle: &Handle) -> Compared {
    let golden = Golden::of(fixture);
    let (mean, worst) = differences(&logprobs(handle, &golden.tokens), &golden.logprobs);
    let got = answer(handle, greedy(&golden.greedy_prompt, 24)).tokens;
    let same = got.iter().zip(&golden.greedy).filter(|(a, b)| a == b).count();
    Compared { mean, worst, same }
}

pub fn engine(fixture: &str, options: &Options) -> Handle {
    start(&dir(fixture), options).unwrap_or_else(|error| panic!("{fixture}: {error}")).handle
}

pub fn greedy(prompt: &[u32], tokens_max: u32) -> Request {
    Request {
        prompt: prompt.to_vec(),
        sampling: Sampling::GREEDY,
        tokens_max,
        stop_tokens: vec![],
        logprobs: None,
        prompt_logprobs: None,
        grammar: None,
        priority: 0,
    }
}

/// All that a request brought.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub prompt: Vec<Logprob>,
    pub finish: Finish,
    pub usage: Usage,
}

/// An answer on its way.
pub struct Pending {
    events: Receiver<Event>,
    _ticket: krasis_engine::Ticket,
}

pub fn submit(handle: &Handle, request: Request) -> Pending {
    let (send, events) = channel();
    let sink = Box::new(move |event| drop(send.send(event)));
    Pending { events, _ticket: handle.submit(request, sink).unwrap() }
}

impl Pending {
    pub fn wait(self) -> Answer {
        let (mut tokens, mut prompt) = (vec![], vec![]);
        loop {
            match self.events.recv().expect("the engine is alive") {
                Event::Token { id, .. } => tokens.push(id),
                Event::Prompt { logprobs } => prompt = logprobs,
                Event::Done { finish, usage } => return Answer { tokens, prompt, finish, usage },
                Event::Refused { message } | Event::Failed { message } => panic!("{message}"),
            }
        }
    }
}

pub fn answer(handle: &Handle, request: Request) -> Answer {
    submit(handle, request).wait()
}

/// Six answers at once, to prompts of several lengths.
pub fn company(fixture: &str, options: &Options) -> Vec<Vec<u32>> {
    let tokens = Golden::of(fixture).tokens;
    let handle = engine(fixture, options);
    let request = |i: usize| greedy(&tokens[i * 9..][..20 + 30 * (i % 3)], 40);
    let pending: Vec<_> = (0..6).map(|i| submit(&handle, request(i))).collect();
    pending.into_iter().map(|pending| pending.wait().tokens).collect()
}

/// Log-probabilities of `tokens[1..]`.
pub fn logprobs(handle: &Handle, tokens: &[u32]) -> Vec<f32> {
    let request = Request { prompt_logprobs: Some(0), ..greedy(tokens, 0) };
    answer(handle, request).prompt.into_iter().map(|entry| entry.logprob).collect()
}

/// Mean and largest absolute difference.
pub fn differences(got: &[f32], wanted: &[f32]) -> (f32, f32) {
    assert_eq!(got.len(), wanted.len());
    let each = got.iter().zip(wanted).map(|(a, b)| (a - b).abs());
    (each.clone().sum::<f32>() / got.len() as f32, each.fold(0.0, f32::max))
}

/// An engine with as few KV pages as a test wants.
pub fn engine_with_pages(fixture: &str, options: &Options, pages: u32) -> Handle {
    let options = Options { kv_pages: Some(pages), ..options.clone() };
    engine(fixture, &options)
}
