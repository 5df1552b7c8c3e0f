//! A conversation goes on after its server was killed.

mod common;

use common::{krasis, tiny};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A server that may be killed.
struct Served {
    process: Child,
    address: String,
}

impl Served {
    fn start(model: &Path, cache: &Path) -> Served {
        let arguments = ["serve", "--port", "0", "--no-cache", "--prefix-disk-mb", "100"];
        let mut command = krasis(&arguments);
        command.arg("--model-path").arg(model).arg("--prefix-cache-dir").arg(cache);
        let command = command.env_remove("KRASIS_API_KEY").stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let ready =
            lines.by_ref().map_while(Result::ok).find(|line| line.contains("ready on http"));
        let ready = ready.expect("it becomes ready");
        // The pipe is read to its end, or the server would wait for us.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let address = ready.split("://").nth(1).unwrap().split(' ').next().unwrap();
        Served { process, address: address.to_owned() }
    }

    fn ask(&self, path: &str, body: &str) -> String {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        let method = if body.is_empty() { "GET" } else { "POST" };
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut reply = String::new();
        socket.read_to_string(&mut reply).unwrap();
        reply.split_once("\r\n\r\n").expect("head and body").1.to_owned()
    }

    /// The answer, and how many tokens of the prompt were not computed.
    fn complete(&self, prompt: &str) -> (String, u64) {
        let body =
            json!({"prompt": prompt, "max_tokens": 40, "ignore_eos": true, "temperature": 0});
        let reply: Value =
            serde_json::from_str(&self.ask("/v1/completions", &body.to_string())).unwrap();
        let cached = &reply["usage"]["prompt_tokens_details"]["cached_tokens"];
        (reply["choices"][0]["text"].as_str().unwrap().to_owned(), cached.as_u64().unwrap())
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.ask("/metrics", "");
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} is not among {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_killed_server_goes_on_where_it_was() {
    let (model, cache) = (tiny(), tempfile::tempdir().unwrap());
    let start = || Served::start(model.path(), cache.path());
    let prompt: String = (0..60).map(|line| format!("{line}: once more\n")).collect();
    let longer = format!("{prompt}And then?");
    let served = start();
    let (text, cached) = served.complete(&prompt);
    assert_eq!(cached, 0);
    let whole = prompt.len() / 16 * 16;
    let mut looked = 0;
    // A page of 16 tokens takes 4 KiB at least in any model.
    while served.metric("krasis:prefix_cache_disk_bytes") < whole as f64 * 256.0 {
        looked += 1;
        assert!(looked < 1000, "nothing is written");
        std::thread::sleep(Duration::from_millis(20));
    }
    // SIGKILL.
    drop(served);
    let served = start();
    let (again, cached) = served.complete(&prompt);
    assert_eq!((again, cached), (text, ((prompt.len() - 1) / 16 * 16) as u64));
    let found = "krasis:prefix_cache_found_tokens_total{tier=\"disk\"";
    assert_eq!(served.metric(found), cached as f64);
    let (wanted, cached) = served.complete(&longer);
    assert_eq!(cached, whole as u64);
    drop(served);
    for file in cache.path().read_dir().unwrap() {
        let file = file.unwrap().path();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        std::fs::write(&file, bytes).unwrap();
    }
    let served = start();
    assert_eq!(served.complete(&longer), (wanted, 0));
}
