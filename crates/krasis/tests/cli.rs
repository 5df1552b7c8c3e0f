//! The program from outside: exit codes, and whole runs of a tiny model with random weights.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn krasis(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_krasis"));
    // Where there is a GPU, these tests do not see it.
    command.args(arguments).stdin(Stdio::null()).env("CUDA_VISIBLE_DEVICES", "");
    command
}

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

/// The fixture of a Qwen3 MoE with a tokenizer of 240 bytes, `<s>` and `</s>`.
fn tiny() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny/qwen3_moe");
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(file), dir.path().join(file)).unwrap();
    }
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let spelled = |byte: u32| match printable(byte) {
        true => char::from_u32(byte).unwrap(),
        false => {
            char::from_u32(0x100 + (0..byte).filter(|&b| !printable(b)).count() as u32).unwrap()
        }
    };
    let mut vocab: serde_json::Map<String, Value> =
        (0..240).map(|byte| (spelled(byte).to_string(), json!(byte + 2))).collect();
    vocab.insert("<s>".into(), json!(0));
    vocab.insert("</s>".into(), json!(1));
    let added = [("<s>", 0), ("</s>", 1)].map(|(token, id)| {
        json!({"id": id, "content": token, "special": true, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    });
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                       "use_regex": true});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added, "normalizer": null, "pre_tokenizer": bytes, "decoder": bytes,
        "post_processor": null, "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer.json", &tokenizer.to_string());
    write("tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": "</s>"}"#);
    write(
        "chat_template.jinja",
        "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}\
         {% if add_generation_prompt %}assistant:{% endif %}",
    );
    dir
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
    refused(&["doctor", "--device", "cuda", "--model-path", "."], 3, "the CPU only");
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

#[test]
fn serve_listens_answers_and_ends_on_a_signal() {
    let model = tiny();
    let dir = model.path().to_str().unwrap();
    let ready = model.path().join("ready");
    let mut server = krasis(&["serve", "--model-path", dir, "--port", "0", "--ready-file"])
        .arg(&ready)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    let mut said = BufReader::new(server.stderr.take().unwrap());
    said.read_line(&mut first).unwrap();
    let url = first.split("http://").nth(1).unwrap().split(',').next().unwrap().to_owned();
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    for _ in 0..1000 {
        std::thread::sleep(Duration::from_millis(10));
        if std::fs::read_to_string(&ready).is_ok_and(|text| text.contains(&url)) {
            break;
        }
    }
    let body = json!({"prompt": "hi", "max_tokens": 3, "ignore_eos": true}).to_string();
    let mut socket = TcpStream::connect(&url).unwrap();
    write!(
        socket,
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut reply = String::new();
    socket.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(reply.contains("\"completion_tokens\":3"), "{reply}");
    let ended = Command::new("kill").arg(server.id().to_string()).status().unwrap();
    assert!(ended.success());
    assert_eq!(server.wait().unwrap().code(), Some(0));
}
