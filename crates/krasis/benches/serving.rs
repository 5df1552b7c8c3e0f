//! What the server adds to the engine's time, and what batching gains: the program as it is, the demo
//! model, and clients on the same machine.
//!
//! `cargo bench -p krasis --bench serving -- [ROUNDS]`. Everything is measured once in each round, in
//! turn, so that a machine that changes its mind tells the same of all of them; medians are printed.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A question whose greedy answer is long.
const QUESTION: &str = "Tell me a long story about a fox, a river and a clock.";
const TOKENS: u32 = 400;
const CLIENTS: usize = 8;

fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(7);
    let server = Server::start();
    let prompts: Vec<String> = (0..CLIENTS).map(|i| format!("{} {QUESTION}", i + 2)).collect();
    let alone: Vec<Stream> = prompts.iter().map(|p| server.ask(&text(p))).collect();
    let long = "the cat sat on the mat and looked at the moon. ".repeat(200);

    let (mut figures, mut read): ([Vec<f64>; 8], u64) = Default::default();
    for round in 0..rounds {
        let run = run();
        let (one, plain) = (server.ask(&chat()), server.ask(&text(&prompts[0])));
        let (free, formed) = (server.ask(&numbers("")), server.ask(&numbers(FORM)));
        let all = server.ask_all(&prompts);
        for (together, alone) in all.iter().zip(&alone) {
            assert_eq!(together.text, alone.text, "an answer depends on its company");
        }
        let (beside, prompt) =
            server.ask_beside(&prompts[..CLIENTS - 1], &format!("{round} {long}"));
        read = prompt.prompt_tokens;
        let (free, formed) = (free.rate(), formed.rate());
        let (together, pauses) = (total(&all), [longest(&all), longest(&beside)]);
        let row = [run, one.rate(), plain.rate(), free, formed, together, pauses[0], pauses[1]];
        figures.iter_mut().zip(row).for_each(|(all, figure)| all.push(figure));
    }
    let [run, one, plain, free, formed, all, pause, beside] = figures.map(median);
    println!("krasis run                 {run:8.1} tok/s");
    println!("the same chat over HTTP    {one:8.1} tok/s, {:.1} % of it", 100.0 * one / run);
    println!("a text over HTTP           {plain:8.1} tok/s");
    println!(
        "a text under a schema      {formed:8.1} tok/s, {:.1} % of {free:.1} without",
        100.0 * formed / free
    );
    println!("{CLIENTS} of them at once          {all:8.1} tok/s, {:.2} times one", all / plain);
    println!("longest pause of a stream  {pause:8.1} ms");
    println!("while {read} tokens are read {beside:8.1} ms");
}

/// Decoded tokens per second, as `krasis run` tells them.
fn run() -> f64 {
    let tokens = TOKENS.to_string();
    let output = krasis(&["run", "--temperature", "0", "--max-tokens", &tokens, QUESTION]).output();
    let said = String::from_utf8(output.expect("the program runs").stderr).expect("UTF-8");
    let rate = said.trim_end().strip_suffix(" tok/s").and_then(|said| said.rsplit(' ').next());
    rate.and_then(|rate| rate.parse().ok()).unwrap_or_else(|| panic!("no speed in: {said}"))
}

fn krasis(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_krasis"));
    command.args(arguments).stdin(Stdio::null()).env_remove("KRASIS_API_KEY");
    command
}

/// What `krasis run` asks.
fn chat() -> (&'static str, String) {
    let body = format!(
        r#"{{"messages": [{{"role": "user", "content": "{QUESTION}"}}], "max_tokens": {TOKENS},
            "chat_template_kwargs": {{"enable_thinking": false}}"#
    );
    ("/v1/chat/completions", body)
}

fn text(prompt: &str) -> (&'static str, String) {
    let body = format!(r#"{{"prompt": "{prompt}", "max_tokens": {TOKENS}, "ignore_eos": true"#);
    ("/v1/completions", body)
}

/// A list of numbers that the schema has no end for, so that answers with and without it are as long.
fn numbers(form: &str) -> (&'static str, String) {
    let (path, body) = text("Count from 1 to 400: [1, 2, 3,");
    (path, format!("{body}{form}"))
}

const FORM: &str = r#", "response_format": {"type": "json_schema", "json_schema": {"name": "numbers",
    "strict": true, "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 400}}}"#;

/// What came of a stream.
struct Stream {
    prompt_tokens: u64,
    text: String,
    tokens: u64,
    /// When each chunk came that adds to the answer.
    heard: Vec<Instant>,
}

impl Stream {
    /// Tokens per second from the first one on.
    fn rate(&self) -> f64 {
        (self.tokens - 1) as f64 / (self.last() - self.first()).as_secs_f64()
    }

    fn first(&self) -> Instant {
        self.heard[0]
    }

    fn last(&self) -> Instant {
        self.heard[self.heard.len() - 1]
    }
}

/// Tokens per second of all streams, from the first one's first token to the last one's last.
fn total(streams: &[Stream]) -> f64 {
    let first = streams.iter().map(Stream::first).min().expect("there are some");
    let last = streams.iter().map(Stream::last).max().expect("there are some");
    let tokens: u64 = streams.iter().map(|stream| stream.tokens - 1).sum();
    tokens as f64 / (last - first).as_secs_f64()
}

/// Milliseconds between two chunks of a stream, at most.
fn longest(streams: &[Stream]) -> f64 {
    let pauses = streams.iter().flat_map(|s| s.heard.windows(2).map(|two| two[1] - two[0]));
    pauses.max().unwrap_or(Duration::ZERO).as_secs_f64() * 1e3
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// A server of the demo model.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start() -> Server {
        let mut process = krasis(&["serve", "--port", "0", "--no-prefix-cache"])
            .env("KRASIS_LOG", "warn")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let mut said = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let ready = |line: &String| line.contains("ready on http://");
        let line = said.by_ref().map_while(Result::ok).find(ready).expect("the server is ready");
        // Read to its end, or the server would wait for us.
        std::thread::spawn(move || said.for_each(drop));
        let address = line.split("://").nth(1).and_then(|rest| rest.split(' ').next());
        Server { process, address: address.expect("it says where").to_owned() }
    }

    /// Streams an answer.
    fn ask(&self, (path, body): &(&str, String)) -> Stream {
        let mut socket = TcpStream::connect(&self.address).expect("the server listens");
        let body = format!(
            r#"{body}, "temperature": 0, "stream": true, "stream_options": {{"include_usage": true}}}}"#
        );
        write!(
            socket,
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("the server reads");
        let (mut text, mut heard, mut usage) = (String::new(), Vec::new(), None);
        for line in BufReader::new(socket).lines().map_while(Result::ok) {
            let Some(data) = line.strip_prefix("data: ") else { continue };
            let now = Instant::now();
            if data == "[DONE]" {
                break;
            }
            let chunk: serde_json::Value = serde_json::from_str(data).expect("chunks are JSON");
            let tokens = |of: &str| chunk["usage"][of].as_u64();
            usage = tokens("prompt_tokens").zip(tokens("completion_tokens")).or(usage);
            let choice = &chunk["choices"][0];
            let said = choice["text"].as_str().or(choice["delta"]["content"].as_str());
            // A chat begins with a role and no text.
            if let Some(said) = said.filter(|said| !said.is_empty()) {
                text += said;
                heard.push(now);
            }
        }
        let (prompt_tokens, tokens) = usage.expect("the answer is complete");
        Stream { prompt_tokens, text, tokens, heard }
    }

    fn ask_all(&self, prompts: &[String]) -> Vec<Stream> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                prompts.iter().map(|prompt| scope.spawn(|| self.ask(&text(prompt)))).collect();
            threads.into_iter().map(|thread| thread.join().expect("it is answered")).collect()
        })
    }

    /// Streams answers, while a long prompt comes in between.
    fn ask_beside(&self, prompts: &[String], long: &str) -> (Vec<Stream>, Stream) {
        std::thread::scope(|scope| {
            let streams = scope.spawn(|| self.ask_all(prompts));
            std::thread::sleep(Duration::from_millis(100));
            let long = self.ask(&text(long));
            (streams.join().expect("they are answered"), long)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
