//! No conversation is read twice: an agent's calls, each of which repeats the one before and goes on.
//!
//! `KRASIS_CONVERSATION=30000 cargo test --release -p krasis-engine --test prefix -- --nocapture` has
//! conversations grow as long as that. Every answer is compared with one that was computed from
//! nothing, which is nearly all of the time; `KRASIS_COMPARED=20` compares every twentieth alone.

mod common;

use common::{Answer, answer, dir, greedy};
use krasis_core::Bytes;
use krasis_core::random::SplitMix64;
use krasis_engine::device::cpu;
use krasis_engine::{
    Census, Engine, Handle, Loaded, Options, PrefixDisk, PrefixOptions, Request, Reuse,
};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

const CALLS: usize = 60;
const ANSWER: u32 = 12;

/// How long conversations grow, and of how many calls one is computed again.
fn length() -> (usize, usize) {
    let number = |name, otherwise| {
        std::env::var(name).map_or(otherwise, |wanted| wanted.parse().expect("a number"))
    };
    (number("KRASIS_CONVERSATION", 4000), number("KRASIS_COMPARED", 1))
}

/// A model that takes such conversations: the same weights under another limit.
fn model(from: &Path, tokens: usize) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in from.read_dir().unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_name().unwrap();
        if name != "config.json" && name != "golden.safetensors" && file.is_file() {
            std::fs::copy(&file, to.path().join(name)).unwrap();
        }
    }
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = (tokens + 1000).into();
    std::fs::write(to.path().join("config.json"), config.to_string()).unwrap();
    to
}

fn demo() -> PathBuf {
    dir("../../demo/model")
}

/// A server whose end can be waited for.
struct Served {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Served {
    fn start(dir: &Path, prefix: PrefixOptions, tokens: usize) -> Served {
        let (threads, context_max) = (None, Some(tokens as u32 + 1000));
        let options = Options { prefix, context_max, threads, ..common::defaults() };
        let Loaded { mut engine, handle, submissions, .. } =
            Engine::load(dir, &options, cpu(&options)).unwrap();
        Served { handle, thread: std::thread::spawn(move || engine.serve(&submissions)) }
    }

    fn end(self) {
        drop(self.handle);
        self.thread.join().unwrap();
    }
}

fn off() -> PrefixOptions {
    PrefixOptions { reuse: Reuse::Nothing, ..PrefixOptions::default() }
}

fn on_disk(dir: &Path) -> PrefixOptions {
    let disk = PrefixDisk { dir: dir.into(), bytes: Bytes(4 << 30) };
    PrefixOptions { disk: Some(disk), ..PrefixOptions::default() }
}

/// The calls of a conversation that grows to so many tokens: the task and the tools first, then what
/// was answered and what came of it.
struct Calls {
    random: SplitMix64,
    vocab: u32,
    each: usize,
    prompt: Vec<u32>,
}

impl Calls {
    fn new(tokens: usize, vocab: u32) -> Calls {
        let mut calls = Calls {
            random: SplitMix64(11),
            vocab: vocab.min(1500),
            each: tokens * 3 / 4 / CALLS,
            prompt: Vec::new(),
        };
        calls.say(tokens / 4);
        calls
    }

    fn say(&mut self, tokens: usize) {
        let word = |random: &mut SplitMix64| (random.bits() % u64::from(self.vocab)) as u32;
        self.prompt.extend((0..tokens).map(|_| word(&mut self.random)));
    }

    fn go_on(&mut self, answer: &[u32]) {
        self.prompt.extend(answer);
        self.say(self.each - answer.len());
    }
}

fn ask(handle: &Handle, prompt: &[u32]) -> Answer {
    answer(handle, greedy(prompt, ANSWER))
}

fn converse(name: &str, from: &Path) {
    let (tokens, every) = length();
    let dir = model(from, tokens);
    let served = Served::start(dir.path(), PrefixOptions::default(), tokens);
    let cold = Served::start(dir.path(), off(), tokens);
    let mut calls = Calls::new(tokens, served.handle.facts.vocab);
    let (mut all, mut found, mut compared) = (0, 0, 0);
    let mut reading = Duration::ZERO;
    for call in 0..CALLS {
        let got = ask(&served.handle, &calls.prompt);
        all += got.usage.prompt_tokens;
        found += got.usage.cached_tokens;
        if call % every == every - 1 {
            let fresh = ask(&cold.handle, &calls.prompt);
            assert_eq!(fresh.usage.cached_tokens, 0);
            assert_eq!(got.tokens, fresh.tokens, "{name}, call {call}");
            compared += 1;
            reading += fresh.usage.prefill;
        }
        calls.go_on(&got.tokens);
    }
    let share = 100.0 * f64::from(found) / f64::from(all);
    let end = calls.prompt.len();
    println!(
        "{name}: {CALLS} calls to {end} tokens, {share:.2} % of {all} reused, {compared} compared, \
         which were read from nothing in {:.0} s",
        reading.as_secs_f64()
    );
    // Of short calls, some are not worth a checkpoint.
    assert!(share >= if tokens < 30_000 { 92.0 } else { 95.0 }, "{name}: {share} %");
    // An edit in the middle: what comes before it is not read again, up to the checkpoint before it.
    let mut edited = calls.prompt[..end - end / 8].to_vec();
    let middle = end / 2;
    edited[middle] = (edited[middle] + 1) % 100;
    let got = ask(&served.handle, &edited);
    let cached = got.usage.cached_tokens as usize;
    println!("{name}: edited at {middle}, {cached} reused");
    assert!(cached <= middle && cached >= middle - tokens / 4, "{name}: {cached} of {middle}");
    assert_eq!(got.tokens, ask(&cold.handle, &edited).tokens, "{name}, edited");
    served.end();
    cold.end();
}

#[test]
fn a_conversation_is_not_read_twice() {
    converse("demo", &demo());
}

#[test]
fn nor_with_recurrent_layers() {
    converse("qwen3_next", &dir("qwen3_next"));
}

/// The next process finds what this one has written, damaged or not.
#[test]
fn a_conversation_outlives_the_process() {
    let (tokens, _) = length();
    for (name, from) in [("demo", demo()), ("qwen3_next", dir("qwen3_next"))] {
        let (dir, cache) = (model(&from, tokens), tempfile::tempdir().unwrap());
        let start = || Served::start(dir.path(), on_disk(cache.path()), tokens);
        let served = start();
        let mut calls = Calls::new(tokens, served.handle.facts.vocab);
        calls.say(tokens * 3 / 4);
        let cold = ask(&served.handle, &calls.prompt);
        calls.go_on(&cold.tokens);
        served.end();

        let served = start();
        let warm = ask(&served.handle, &calls.prompt);
        let (first, then) = (cold.usage.prefill, warm.usage.prefill);
        let found = warm.usage.cached_tokens as usize;
        println!(
            "{name}: {} tokens cold in {first:.3?}, {} after a restart in {then:.3?}, {found} from the disk",
            cold.usage.prompt_tokens, warm.usage.prompt_tokens
        );
        assert!(found + 72 >= cold.usage.prompt_tokens as usize, "{name}: {found}");
        let from_disk = Census::read(&served.handle.census.prefix_hits_disk);
        assert_eq!(from_disk as usize, found, "{name}");
        served.end();

        for file in cache.path().read_dir().unwrap() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|ending| ending == "prefix") {
                let mut bytes = std::fs::read(&file).unwrap();
                bytes.iter_mut().step_by(9001).for_each(|byte| *byte ^= 1);
                std::fs::write(&file, bytes).unwrap();
            }
        }
        let served = start();
        let damaged = ask(&served.handle, &calls.prompt);
        println!("{name}: {} of damaged files", damaged.usage.cached_tokens);
        assert_eq!(damaged.tokens, warm.tokens, "{name}, damaged");
        assert!(damaged.usage.cached_tokens < warm.usage.cached_tokens, "{name}");
        served.end();
        // Of a model that has changed, nothing is taken.
        let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
        std::fs::write(dir.path().join("config.json"), config + " ").unwrap();
        let served = start();
        assert_eq!(
            ask(&served.handle, &calls.prompt).usage.cached_tokens,
            0,
            "{name}, another model"
        );
        served.end();
    }
}

/// Conversations side by side in memory for one or two of them, with room beyond it and without.
#[test]
fn tiny_budgets_never_give_other_tokens() {
    for name in ["qwen3_moe", "qwen3_next"] {
        let off = common::engine(name, &Options { prefix: off(), ..common::defaults() });
        let disk = tempfile::tempdir().unwrap();
        for (round, (ram, disk_bytes)) in
            [(0, 0), (200_000, 0), (30_000, 300_000), (0, 60_000)].into_iter().enumerate()
        {
            let mut random = SplitMix64(round as u64);
            let mut below = move |n: usize| (random.bits() % n as u64) as usize;
            let disk = PrefixDisk { dir: disk.path().into(), bytes: Bytes(disk_bytes) };
            let options = Options {
                prefix: PrefixOptions {
                    checkpoints: Some(round as u32),
                    ram: Some(Bytes(ram)),
                    disk: Some(disk).filter(|_| disk_bytes > 0),
                    ..PrefixOptions::default()
                },
                context_max: Some(400),
                sequences_max: 3,
                prefill_chunk: 100,
                ..common::defaults()
            };
            let start = || common::engine_with_pages(name, &options, 40);
            let mut handle = start();
            let mut found = 0;
            let mut said: Vec<Vec<u32>> = vec![vec![5, 6, 7]];
            for turn in 0..30 {
                let mut requests: Vec<Request> = Vec::new();
                for _ in 0..1 + below(3) {
                    let mut prompt = said[below(said.len())].clone();
                    prompt.truncate(1 + below(prompt.len() + 60));
                    prompt.extend((0..10 + below(90)).map(|_| below(200) as u32));
                    prompt.truncate(330);
                    requests.push(greedy(&prompt, 1 + below(69) as u32));
                }
                let pending: Vec<_> = requests
                    .iter()
                    .map(|request| common::submit(&handle, request.clone()))
                    .collect();
                for (pending, request) in pending.into_iter().zip(requests) {
                    let got = pending.wait();
                    let prompt = request.prompt.clone();
                    let wanted = answer(&off, request);
                    assert_eq!(got.tokens, wanted.tokens, "{name}, {ram} and {disk_bytes} bytes");
                    said.push([prompt, got.tokens].concat());
                }
                if turn % 10 == 9 {
                    found += Census::read(&handle.census.prefix_hits);
                    // The old one may still have the folder; then this one works without it.
                    handle = start();
                }
            }
            println!("{name}, {ram} and {disk_bytes} bytes: {found} tokens found");
        }
    }
}
