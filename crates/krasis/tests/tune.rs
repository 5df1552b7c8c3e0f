//! Strategies that are timed, kept, used and changed, by the program itself. The CPU plays a GPU of a few
//! megabytes, so times say nothing about GPUs, but everything else happens as on one.

mod common;

use common::{krasis, tiny};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

/// A GPU that has room for some experts, and a model that is read in small steps.
const PLAYED: [&str; 13] = [
    "--device",
    "cpu",
    "--gpu-vram-mb",
    "1",
    "--headroom-mb",
    "0",
    "--context-max=160",
    "--kv-dtype=bf16",
    "--prefill-chunk=32",
    "--pass-tokens=64",
    "--krasis-threads=1",
    "--no-prefix-cache",
    "--no-memory-watchdog",
];

const SHORT: [&str; 3] = ["--prompt-tokens=100", "--answer-tokens=8", "--runs=1"];

/// Runs a command about a model with such a GPU.
fn output(model: &Path, command: &[&str], more: &[&str]) -> Output {
    let model = ["--model-path", model.to_str().unwrap()];
    krasis(&[command, &model, &PLAYED, more].concat()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn done(output: Output) -> Output {
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    output
}

fn tune(model: &Path, more: &[&str]) -> Output {
    done(output(model, &["tune"], &[&SHORT, more].concat()))
}

/// An answer, and what was said of how it came.
fn answer(model: &Path, more: &[&str]) -> (Vec<u8>, String) {
    let fixed = ["--temperature", "0", "--max-tokens", "12"];
    let output = done(output(model, &["run", "what is hot?"], &[&fixed, more].concat()));
    (output.stdout.clone(), said(&output))
}

fn file(model: &Path) -> PathBuf {
    model.join(".krasis_cache/auto_optimise.json")
}

fn kept(model: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file(model)).unwrap()).unwrap()
}

fn change(model: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = kept(model);
    change(&mut value);
    std::fs::write(file(model), value.to_string()).unwrap();
}

/// The one in the middle.
fn median(times: &Value) -> f64 {
    let times = times.as_array().unwrap();
    times[times.len() / 2].as_f64().unwrap()
}

#[test]
fn what_is_measured_is_kept_and_used() {
    let model = tiny();
    let model = model.path();
    let (plain, first) = answer(model, &[]);
    assert!(!first.contains("measured"), "{first}");
    let table = String::from_utf8(tune(model, &[]).stdout).unwrap();
    assert_eq!(table.matches("| best |").count(), 1, "{table}");
    for name in ["layer_grouped_2", "chunked", "active_only", "hcs_prefill"] {
        assert!(table.contains(name), "{name}: {table}");
    }

    // The choice follows from what was measured.
    let record = kept(model)["tuned"][0].clone();
    let trials = record["trials"].as_array().unwrap();
    let prompts = trials.iter().map(|trial| median(&trial["prompt_seconds"]));
    let fastest = prompts.min_by(f64::total_cmp).unwrap();
    let as_fast = trials.iter().filter(|t| median(&t["prompt_seconds"]) <= 1.05 * fastest);
    let tokens = as_fast.flat_map(|trial| trial["decodes"].as_array().unwrap());
    let best = tokens.map(|decode| median(&decode["token_seconds"])).min_by(f64::total_cmp);
    assert_eq!(record["best"]["token_seconds"].as_f64(), best);
    assert!(record["best"]["prompt_seconds"].as_f64().unwrap() <= 1.05 * fastest);

    // It is used at once, for the same answer; whoever decides by hand is left alone.
    let name = record["best"]["prefill"].as_str().unwrap();
    let (with, told) = answer(model, &[]);
    assert_eq!(with, plain);
    assert!(told.contains("measured before") && told.contains(name), "{told}");
    for more in
        [&["--strategy", "manual"][..], &["--strategy", "chunked"], &["--expert-divisor=-1"]]
    {
        let (with, told) = answer(model, more);
        assert_eq!(with, plain);
        assert!(!told.contains("measured"), "{more:?}: {told}");
    }
    assert!(!said(&tune(model, &[])).contains("tuning, "));
    assert!(said(&tune(model, &["--force-optimize"])).contains("tuning, 1 of"));
}

#[test]
fn what_does_not_count_here_is_told_and_ignored() {
    let model = tiny();
    let model = model.path();
    // Measured when it is needed.
    let (plain, told) = answer(model, &["--strategy", "auto"]);
    assert!(told.contains("tuning, 1 of") && told.contains("measured now"), "{told}");
    let check = |more: &[&str], words: &str| {
        let (with, told) = answer(model, more);
        assert_eq!(with, plain, "{more:?}");
        assert!(told.contains(words) && !told.contains("measured before"), "{words}: {told}");
    };
    check(&["--gpu-prefill-threshold", "20"], "measured with another steps");
    change(model, |value| value["tuned"][0]["for"]["krasis"] = json!("0.0.1"));
    check(&[], "measured with another krasis");
    tune(model, &["--force-optimize"]);
    // Settings that nothing has room for.
    change(model, |value| {
        for trial in value["tuned"][0]["trials"].as_array_mut().unwrap() {
            trial["prefill_chunk"] = json!(4_000_000);
        }
    });
    check(&[], "the planner decides");
    change(model, |value| value["tuned"][0]["trials"][0]["prefill"] = json!("magic"));
    check(&[], "damaged");
    let text = std::fs::read_to_string(file(model)).unwrap();
    std::fs::write(file(model), &text[..text.len() / 2]).unwrap();
    check(&[], "damaged");
    std::fs::write(file(model), "[1, 2").unwrap();
    tune(model, &[]);
    assert!(answer(model, &[]).1.contains("measured before"));
    // A folder that cannot be written to, and nothing that is kept.
    assert!(said(&tune(model, &["--no-cache"])).contains("tuning, 1 of"));
}

#[test]
fn what_is_interrupted_goes_on_and_two_at_once_are_no_harm() {
    let model = tiny();
    let model = model.path();
    tune(model, &[]);
    let of = kept(model)["tuned"][0]["trials"].as_array().unwrap().len();
    assert!(of > 3, "{of}");
    change(model, |value| {
        let record = &mut value["tuned"][0];
        record["complete"] = json!(false);
        record["trials"].as_array_mut().unwrap().truncate(of - 1);
    });
    // Half of it decides nothing.
    assert!(!answer(model, &[]).1.contains("measured before"));
    let told = said(&tune(model, &[]));
    assert!(told.contains(&format!("tuning, {of} of {of}")), "{told}");
    assert_eq!(told.matches("tuning, ").count(), 1, "{told}");

    let again = || {
        let model = ["--model-path", model.to_str().unwrap()];
        let arguments = [&["tune", "--force-optimize"][..], &model, &PLAYED, &SHORT].concat();
        krasis(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut both = [again(), again()];
    // A third is killed wherever it is.
    let mut third = again();
    std::thread::sleep(Duration::from_millis(300));
    third.kill().unwrap();
    third.wait().unwrap();
    both.iter_mut().for_each(|one| assert!(one.wait().unwrap().success()));
    let records = kept(model)["tuned"].as_array().unwrap().clone();
    assert_eq!(records.iter().filter(|record| record["complete"] == json!(true)).count(), 1);
    assert!(answer(model, &[]).1.contains("measured before"));
}

#[test]
fn heat_is_kept_from_run_to_run() {
    let model = tiny();
    let model = model.path();
    let sum = |value: &Value| -> u64 {
        let layers = value["heat_map"]["layers"].as_array().unwrap().iter();
        layers.flat_map(|of| of.as_array().unwrap()).map(|count| count.as_u64().unwrap()).sum()
    };
    let (plain, _) = answer(model, &[]);
    let once = sum(&kept(model));
    assert!(once > 0);
    assert_eq!(answer(model, &[]).0, plain);
    assert_eq!(sum(&kept(model)), 2 * once);
    // In a file of its own.
    let named = model.join("heat.json");
    let flag = ["--heat-map", named.to_str().unwrap()];
    for times in 1..3 {
        assert_eq!(answer(model, &flag).0, plain);
        let text = std::fs::read_to_string(&named).unwrap();
        assert_eq!(sum(&serde_json::from_str(&text).unwrap()), times * once);
    }
    let mut foreign: Value =
        serde_json::from_str(&std::fs::read_to_string(&named).unwrap()).unwrap();
    foreign["heat_map"]["model"] = json!("0123456789abcdef");
    for (text, words) in [(foreign.to_string(), "another model"), ("{".into(), "damaged")] {
        std::fs::write(&named, &text).unwrap();
        let refused = output(model, &["run", "hi"], &flag);
        assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
        assert!(said(&refused).contains(words), "{}", said(&refused));
        assert_eq!(std::fs::read_to_string(&named).unwrap(), text, "it is not ours to replace");
    }
}

/// A server of a tiny model, which ends with it.
struct Server {
    process: std::process::Child,
    address: String,
}

impl Server {
    fn start(model: &Path) -> Server {
        let dir = ["--model-path", model.to_str().unwrap()];
        let arguments = [
            &["serve", "--port", "0", "--served-model-name=m", "--strategy", "auto"][..],
            &dir,
            &PLAYED,
        ];
        let mut process = krasis(&arguments.concat()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let ready = lines.find_map(|line| line.ok().filter(|line| line.contains("ready on http")));
        let ready = ready.expect("it says that it is ready");
        let address = ready.split("://").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        // The pipe is read to its end, or the server would wait for us.
        std::thread::spawn(move || lines.for_each(drop));
        Server { process, address }
    }

    fn ask(&self, path: &str, body: &str) -> Value {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        let method = if body.is_empty() { "GET" } else { "POST" };
        let length = body.len();
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut reply = String::new();
        socket.read_to_string(&mut reply).unwrap();
        serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where answers come far slower than they were measured, another strategy takes over between two of them;
/// and it is told.
#[test]
fn a_server_changes_what_is_slower_than_it_was() {
    let model = tiny();
    let model = model.path();
    done(output(model, &["run", "hi"], &["--strategy", "auto", "--max-tokens", "2"]));
    let (best, other) = ("hcs_hybrid", "pure_cpu");
    change(model, |value| {
        let trials = value["tuned"][0]["trials"].as_array_mut().unwrap();
        trials.retain(|trial| trial["prefill"] == "hcs_prefill");
        trials.truncate(1);
        let token =
            |decode: &str, seconds: f64| json!({"decode": decode, "token_seconds": [seconds]});
        trials[0]["decodes"] = json!([token(best, 1e-7), token(other, 1e-6)]);
    });
    let server = Server::start(model);
    let decode = |status: &Value| status["experts"]["strategies"]["decode"].clone();
    let status = server.ask("/v1/status", "");
    assert_eq!((decode(&status), &status["remarks"]), (json!(best), &json!([])));
    let body = json!({"model": "m", "prompt": "a", "max_tokens": 130, "temperature": 0,
                      "ignore_eos": true});
    let text = |reply: Value| match &reply["choices"][0]["text"] {
        Value::String(text) => text.clone(),
        _ => panic!("{reply:#}"),
    };
    let first = text(server.ask("/v1/completions", &body.to_string()));
    for _ in 0..6 {
        assert_eq!(text(server.ask("/v1/completions", &body.to_string())), first);
    }
    let status = server.ask("/v1/status", "");
    assert_eq!(decode(&status), json!(other), "{status:#}");
    let remarks = status["remarks"].as_array().unwrap();
    assert!(remarks[0].as_str().unwrap().contains("pure_cpu was measured"), "{remarks:?}");
}
