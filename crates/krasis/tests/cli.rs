//! The program from outside: exit codes, and whole runs of a tiny model with random weights.

mod common;

use common::{krasis, tiny};
use serde_json::{Value, json};
use std::process::Output;

fn output(arguments: &[&str]) -> Output {
    krasis(arguments).output().unwrap()
}

fn refused(arguments: &[&str], code: i32, sentence: &str) {
    assert!(refused_with_output(arguments, code, sentence).stdout.is_empty());
}

/// The same for a command that has said something before.
fn refused_with_output(arguments: &[&str], code: i32, sentence: &str) -> Output {
    let output = output(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(said.contains(sentence), "{arguments:?}: {said}");
    output
}

#[test]
fn the_help_lists_exit_codes() {
    for arguments in [&["--help"][..], &["serve", "--help"], &["run", "--help"]] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains("8  port in use"));
    }
}

#[test]
fn the_doctor_finds_a_machine_without_a_gpu_healthy() {
    let output = output(&["doctor"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for fact in ["processor ", "GPU ", "memory "] {
        assert!(said.lines().any(|line| line.starts_with(fact)), "{fact}: {said}");
    }
    let json: Value =
        serde_json::from_slice(&krasis(&["doctor", "--json"]).output().unwrap().stdout).unwrap();
    assert!(json["gpus"]["error"].is_string(), "{json}");
    refused_with_output(&["doctor", "--gpu"], 6, "NVIDIA driver");
}

#[test]
fn every_failure_has_its_code_and_sentence() {
    refused(&["frobnicate"], 2, "unrecognized subcommand");
    refused(&["run", "hi", "--cpu-expert-bits", "5"], 2, "4, 8, 16");
    refused(&["run", "hi", "--group-size", "48"], 2, "32, 64, 128");
    refused(&["run", "hi", "--num-gpus", "1"], 6, "--num-gpus 0");
    refused(&["run", "hi", "--device", "cuda"], 6, "NVIDIA driver");
    let f16 = ["run", "hi", "--device", "cuda", "--kv-dtype", "f16"];
    refused(&f16, 3, "choose --kv-dtype bf16");
    refused(&["doctor", "--device", "cuda", "--model-path", "."], 3, "krasis plan");
    refused(&["run", "hi", "--model-path", "/nowhere"], 4, "there is no such folder");
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    refused(&["run", "hi", "--model-path", empty], 4, "tokenizer.json is missing");
    let model = tiny();
    let dir = model.path().to_str().unwrap();
    refused(&["run", "hi", "--model-path", dir, "--context-max", "99999"], 3, "--context-max");
    refused(&["eval", "--model-path", dir, "--text", "/nowhere"], 1, "cannot read /nowhere");
    let long = "x".repeat(500);
    let arguments = ["run", &long, "--model-path", dir, "--context-max", "128"];
    refused(&arguments, 1, "the context holds 128");
    std::fs::write(model.path().join("model.safetensors"), "rubbish").unwrap();
    refused(&["run", "hi", "--model-path", dir], 4, "model.safetensors");
}

#[test]
fn a_port_in_use_is_told_before_anything_is_loaded() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let model = tiny();
    let dir = model.path().to_str().unwrap();
    let sentence = format!("port {port} on 127.0.0.1 is in use");
    refused(&["serve", "--model-path", dir, "--port", &port], 8, &sentence);
}

#[test]
fn run_answers_the_same_way_twice() {
    let model = tiny();
    let dir = model.path().to_str().unwrap();
    let run = |extra: &[&str]| {
        let arguments = [&["run", "hi", "--model-path", dir, "--max-tokens", "20"], extra].concat();
        let output = output(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("prefill") && said.contains("decode"), "{said}");
        output.stdout
    };
    let greedy = ["--temperature", "0", "--system", "be brief"];
    assert_eq!(run(&greedy), run(&greedy));
    let seeded = ["--seed", "7", "--raw"];
    assert_eq!(run(&seeded), run(&seeded));
}

#[test]
fn eval_prints_perplexity_and_exactness() {
    let model = tiny();
    let dir = model.path().to_str().unwrap();
    let text = model.path().join("text.jsonl");
    std::fs::write(&text, "{\"ids\": [2, 3, 4, 5]}\n{\"ids\": [9, 8, 7]}\n").unwrap();
    let tasks = model.path().join("tasks.jsonl");
    let task = json!({"kind": "sums", "answer": "4",
                      "messages": [{"role": "user", "content": "2+2?"}]});
    std::fs::write(&tasks, format!("{task}\n{task}\n")).unwrap();
    let output = output(&[
        "eval",
        "--model-path",
        dir,
        "--text",
        text.to_str().unwrap(),
        "--tasks",
        tasks.to_str().unwrap(),
        "--max-tokens",
        "4",
    ]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let words: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((words[0][1], words[1][1], words[3][0]), ("2", "5", "perplexity"));
    // Random weights know nothing: about one in 251.
    let perplexity: f64 = words[3][1].parse().unwrap();
    assert!((100.0..1000.0).contains(&perplexity), "{table}");
    assert_eq!(words[5], ["sums", "0", "2", "0.0"]);
}
