//! The program on machines that nobody has at hand: too little memory, a container's limit, no
//! AVX2, several NUMA nodes. Their files are written into a folder; the model is the demo's.

use krasis_machine::fake::{Fake, FakeNode, meminfo, put};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const fn node(number: u32, cpus: &str) -> FakeNode<'_> {
    FakeNode { number, cpus, mib: 8_000 }
}

const MACHINE: Fake = Fake {
    online: "0-3",
    cpus_allowed: "0-3",
    mems_allowed: "0",
    cores: &["0,2", "1,3"],
    nodes: &[node(0, "0-3")],
    mib: (8_000, 6_000),
};

fn machine(fake: Fake, files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fake.write(root.path()).unwrap();
    files.iter().for_each(|(path, text)| put(root.path(), path, text).unwrap());
    root
}

fn krasis(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_krasis"));
    command.args(arguments).arg("--machine-root").arg(root).stdin(Stdio::null());
    // A machine that is made up has no GPU.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
}

fn check(root: &Path, arguments: &[&str], code: i32, words: &[&str]) -> Output {
    let output = krasis(root, arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?}, {word}: {said}");
    }
    output
}

const RUN: [&str; 8] =
    ["run", "hi", "--temperature", "0", "--max-tokens", "4", "--context-max", "64"];

#[test]
fn too_little_memory_ends_the_program_with_137() {
    let root = machine(Fake { mib: (8_000, 399), ..MACHINE }, &[]);
    let words = ["only 399.00 MiB of 7.81 GiB", "less than 5 %", "--no-memory-watchdog"];
    let output = check(root.path(), &RUN, 137, &words);
    assert!(output.stdout.is_empty());
    let off = [&RUN[..], &["--no-memory-watchdog"]].concat();
    check(root.path(), &off, 0, &["prefill"]);
    check(root.path(), &["cache", "build", "--cpu-expert-bits", "4"], 137, &words);
    // Nothing is loaded by a doctor, who may look at a machine that is full.
    check(root.path(), &["doctor"], 0, &[]);
}

#[test]
fn memory_that_runs_out_later_ends_the_program_with_137() {
    let root = machine(MACHINE, &[]);
    let ready = root.path().join("ready");
    let ready_file = ready.to_str().unwrap();
    let mut server = krasis(root.path(), &["serve", "--port", "0", "--ready-file", ready_file])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !ready.exists() {
        assert_eq!(server.try_wait().unwrap(), None, "the server has ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    put(root.path(), "proc/meminfo", &meminfo(8_000, 300)).unwrap();
    let output = server.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(137), "{said}");
    assert!(said.contains("only 300.00 MiB of 7.81 GiB"), "{said}");
}

#[test]
fn a_container_smaller_than_the_model_is_refused_before_loading() {
    let limits = [
        ("proc/self/cgroup", "0::/box"),
        ("sys/fs/cgroup/box/memory.max", "25165824"),
        ("sys/fs/cgroup/box/memory.current", "4194304"),
    ];
    let root = machine(MACHINE, &limits);
    let words = [
        "the model needs",
        "weights 22.60 MiB",
        "95 % of the 20.00 MiB",
        "the control group /box may have 24.00 MiB and holds 4.00 MiB",
        "raise the limit",
    ];
    let run = [&RUN[..], &["--no-cache"]].concat();
    let output = check(root.path(), &run, 5, &words);
    assert!(output.stdout.is_empty());
    check(root.path(), &["doctor"], 0, &[]);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/model");
    let doctor = ["doctor", "--no-cache", "--model-path", model.to_str().unwrap()];
    let output = check(root.path(), &doctor, 5, &["the model needs"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("refuse  memory"));
}

/// The same answer, with a part of the experts in memory; and the program says so before it loads them.
#[test]
fn a_model_larger_than_its_memory_runs_from_the_disk() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/model");
    let model = tempfile::tempdir().unwrap();
    for entry in demo.read_dir().unwrap() {
        let file = entry.unwrap();
        if file.file_type().unwrap().is_file() {
            std::fs::copy(file.path(), model.path().join(file.file_name())).unwrap();
        }
    }
    let root = machine(MACHINE, &[]);
    let here = ["--model-path", model.path().to_str().unwrap()];
    let run = |more: &[&str], code: i32, words: &[&str]| {
        check(root.path(), &[&RUN[..], &here, more].concat(), code, words).stdout
    };
    let wanted = run(&[], 0, &[]);
    let little = ["--ram-mb", "20", "--no-prefix-cache"];
    let words = ["of experts stay on the disk; predicted", "tok/s decode"];
    assert_eq!(run(&little, 0, &words), wanted);
    // The second start finds the cache.
    assert_eq!(run(&little, 0, &words), wanted);
    let plan = [&["plan"][..], &here, &little, &["--context-max", "64"]].concat();
    check(root.path(), &plan, 0, &["fit into memory", "stay on the disk", "from the disk"]);
    let doctor = [&["doctor"][..], &here, &little, &["--context-max", "64"]].concat();
    let said = check(root.path(), &doctor, 0, &[]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("stay on the disk"));
    run(&["--ram-mb", "2"], 5, &["raise --ram-mb to"]);
}

#[test]
fn the_doctor_says_what_makes_a_machine_slow() {
    let nodes = [node(0, "0-1"), node(3, "2-3")];
    let two = Fake { nodes: &nodes, mems_allowed: "0,3", cores: &[], ..MACHINE };
    let settings = [
        ("proc/cpuinfo", "model name : Pentium\nflags : fpu sse2\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
    ];
    let root = machine(two, &settings);
    let doctor = ["doctor", "--json", "--numa", "off", "--krasis-threads", "9"];
    let output = check(root.path(), &doctor, 0, &[]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let warned: Vec<&str> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["level"] == "warn")
        .map(|finding| finding["what"].as_str().unwrap())
        .collect();
    assert_eq!(warned, ["SIMD", "threads", "NUMA", "huge pages", "governor"]);
    assert_eq!(report["machine"]["cores"], serde_json::json!([0, 2, 1, 3]));
    assert_eq!(report["machine"]["interleaved"], serde_json::json!([0, 3]));
    assert_eq!(report["need"], Value::Null);
    // The same machine still answers, and says the one thing that nobody would expect.
    let output = check(root.path(), &RUN, 0, &["no AVX2", "prefill"]);
    assert!(!output.stdout.is_empty());
}

/// No machine has these nodes, so the kernel refuses: a warning, and the same answer.
#[test]
fn memory_that_cannot_be_spread_is_a_warning() {
    let nodes = [node(1001, "0-1"), node(1002, "2-3")];
    let root = machine(Fake { nodes: &nodes, mems_allowed: "1001-1002", ..MACHINE }, &[]);
    let spread = check(root.path(), &RUN, 0, &["could not be spread", "numactl"]);
    let off = [&RUN[..], &["--numa", "off"]].concat();
    let local = check(root.path(), &off, 0, &[]);
    assert!(!String::from_utf8_lossy(&local.stderr).contains("spread"));
    assert_eq!(spread.stdout, local.stdout);
}

#[test]
fn a_config_alone_can_be_planned() {
    let config =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/configs/Qwen3-30B-A3B.json");
    let doctor = ["doctor", "--json", "--model-path", config.to_str().unwrap()];
    let root = machine(MACHINE, &[]);
    let no_disk = [&doctor[..], &["--no-cache"]].concat();
    check(root.path(), &no_disk, 5, &["weights 56.87 GiB", "--cpu-expert-bits 4"]);
    check(root.path(), &doctor, 0, &[]);
    let large = machine(Fake { mib: (100_000, 90_000), ..MACHINE }, &[]);
    let output = check(large.path(), &doctor, 0, &[]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["need"]["weights"].as_u64().unwrap() >> 30, 56);
}
