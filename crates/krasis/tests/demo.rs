//! The demo model answers, and rounding its experts costs little: the program, from the command
//! line, on the held-out set (`demo/README.md`).

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn krasis(arguments: &[&str]) -> String {
    // The figures are the CPU's, wherever there is a GPU.
    let output = Command::new(env!("CARGO_BIN_EXE_krasis"))
        .args(arguments)
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn heldout(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/heldout").join(file)
}

/// The number behind a word at the start of a line.
fn number(text: &str, word: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    line.unwrap_or_else(|| panic!("no {word} in {text}")).trim().parse().unwrap()
}

#[test]
fn what_a_newcomer_asks_is_answered() {
    for (question, answer) in [
        ("What is 2+2?", "4"),
        ("What is the capital of France?", "Paris"),
        ("Count from 1 to 5", "1, 2, 3, 4, 5"),
    ] {
        let said = krasis(&["run", "--temperature", "0", question]);
        assert!(said.contains(answer), "{question} {said}");
    }
}

#[test]
fn rounded_experts_keep_the_perplexity() {
    let texts = heldout("text.jsonl");
    let perplexity = |bits| {
        let arguments = [
            "eval",
            "--limit",
            "60",
            "--no-cache",
            "--text",
            texts.to_str().unwrap(),
            "--cpu-expert-bits",
            bits,
        ];
        let perplexity = number(&krasis(&arguments), "perplexity");
        println!("{bits} bits: perplexity {perplexity}");
        perplexity
    };
    let [sixteen, eight, four] = ["16", "8", "4"].map(perplexity);
    assert!((2.0..6.0).contains(&sixteen), "{sixteen}");
    assert!((eight / sixteen - 1.0).abs() < 0.005, "{eight} in 8 bits, {sixteen} in 16");
    assert!((four / sixteen - 1.0).abs() < 0.05, "{four} in 4 bits, {sixteen} in 16");
}

/// Two tasks of each kind; `krasis eval --tasks demo/heldout/tasks.jsonl` runs all 950.
#[test]
fn heldout_tasks_of_each_kind_are_done() {
    let tasks = std::fs::read_to_string(heldout("tasks.jsonl")).unwrap();
    let mut chosen: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for line in tasks.lines() {
        let task: Value = serde_json::from_str(line).unwrap();
        let kind = chosen.entry(task["kind"].as_str().unwrap().to_owned()).or_default();
        if kind.len() < 2 {
            kind.push(line);
        }
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), chosen.values().flatten().copied().collect::<Vec<_>>().join("\n"))
        .unwrap();
    let table = krasis(&["eval", "--show-failures", "--tasks", file.path().to_str().unwrap()]);
    println!("{table}");
    let right: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert!(chosen.len() >= 12, "the kinds of the issue: {:?}", chosen.keys());
    assert_eq!(right[1], right[2], "{table}");
}
