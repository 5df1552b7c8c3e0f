//! `krasis plan` for models and machines that nobody has at hand. What it says of all of them is kept in
//! `fixtures/plans`; after a change that is meant, `KRASIS_BLESS=1 cargo test -p krasis --test plan` writes
//! it anew.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MODELS: [&str; 8] = [
    "DeepSeek-V2-Lite",
    "DeepSeek-V3",
    "GLM-4.7",
    "Kimi-K2.5",
    "Qwen3-235B-A22B",
    "Qwen3-30B-A3B",
    "Qwen3-Coder-Next",
    "gpt-oss-120b",
];

const MACHINES: [&str; 10] = [
    "laptop",
    "gpu-16",
    "gpu-24",
    "gpu-32",
    "gpu-48",
    "gpu-80",
    "no-gpu",
    "little-ram",
    "much-ram",
    "container",
];

/// All in four bits, as large models are run.
const FOUR_BITS: [&str; 10] = [
    "--cpu-expert-bits",
    "4",
    "--attention-quant",
    "int4",
    "--shared-expert-quant",
    "int4",
    "--dense-mlp-quant",
    "int4",
    "--lm-head-quant",
    "int4",
];

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

fn plan(model: &str, machine: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_krasis"))
        .args(["plan", "--model-path"])
        .arg(fixture(&format!("configs/{model}.json")))
        .arg("--machine")
        .arg(fixture(&format!("machines/{machine}.json")))
        .args(FOUR_BITS)
        .args(arguments)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(model: &str, machine: &str, arguments: &[&str]) -> Value {
    let output = plan(model, machine, &[arguments, &["--json", "--quiet"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(output.stderr.is_empty(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(model: &str, machine: &str, arguments: &[&str], code: i32, words: &str) -> String {
    let output = plan(model, machine, arguments);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(said.contains(words), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty());
    said
}

#[test]
fn plans_are_as_they_were() {
    let mut changed = Vec::new();
    for model in MODELS {
        let mut all = String::new();
        for machine in MACHINES {
            let output = plan(model, machine, &[]);
            all += &format!(
                "## {machine}, exit code {}\n{}\n",
                output.status.code().unwrap(),
                said(&output)
            );
        }
        let file = fixture(&format!("plans/{model}.txt"));
        if std::env::var_os("KRASIS_BLESS").is_some() {
            std::fs::write(&file, all).unwrap();
        } else if std::fs::read_to_string(&file).ok().as_deref() != Some(&all) {
            changed.push(all);
        }
    }
    let changed = changed.join("\n");
    assert!(changed.is_empty(), "look at this, then bless it with KRASIS_BLESS=1:\n{changed}");
}

#[test]
fn scripts_read_the_same_plan() {
    let plan = json("Qwen3-30B-A3B", "gpu-16", &[]);
    let regions = plan["regions"].as_array().unwrap().iter();
    let sum: u64 = regions.map(|region| region["bytes"].as_u64().unwrap()).sum();
    assert_eq!(plan["device_bytes"], sum);
    assert!(sum <= plan["available"].as_u64().unwrap());
    assert_eq!(plan["strategy"]["prefill"], "hcs_prefill");
    assert_eq!(plan["strategy"]["expert_divisor"], -3);
    for length in plan["prefill"].as_array().unwrap() {
        let time = &length["ttft"];
        let seconds = time["seconds"].as_f64().unwrap();
        for bound in ["bytes_bound", "bus_bound", "operations_bound"] {
            assert!(time[bound].as_f64().unwrap() <= seconds, "{bound} of {length}");
        }
    }
    let smaller = json("Qwen3-30B-A3B", "gpu-16", &["--gpu-vram-mb", "8192"]);
    assert!(smaller["device_bytes"].as_u64().unwrap() <= (8192 + 16) << 20);
    assert!(smaller["strategy"]["hot"].as_u64() < plan["strategy"]["hot"].as_u64());
    let shorter = json("Qwen3-30B-A3B", "gpu-16", &["--context-length", "4096"]);
    assert_eq!(shorter["context_max"], 4096);
    let on_the_cpu = json("Qwen3-30B-A3B", "gpu-24", &["--device", "cpu"]);
    assert!(on_the_cpu["strategy"].is_null() && on_the_cpu["machine"]["gpu"].is_null());
    assert!(on_the_cpu["overflow"].is_null());
}

/// More memory holds more of the experts, until none are left on the disk.
#[test]
fn what_memory_has_no_room_for_stays_on_the_disk() {
    let with = |mib: &str| json("Qwen3-30B-A3B", "no-gpu", &["--ram-mb", mib]);
    let (little, more, all) = (with("6000"), with("12000"), with("40000"));
    let on_disk = |plan: &Value| plan["overflow"]["on_disk"].as_u64().unwrap();
    assert!(on_disk(&little) > on_disk(&more) && all["overflow"].is_null());
    let speed = |plan: &Value| plan["decode"]["tokens_per_second"].as_f64().unwrap();
    assert!(speed(&little) < speed(&more) && speed(&more) < speed(&all));
    for (plan, mib) in [(&little, 6000), (&more, 12_000)] {
        assert!(plan["device_bytes"].as_u64().unwrap() <= mib << 20);
        assert_eq!(plan["decode"]["token"]["rule"], "the disk rules");
    }
}

/// What a sentence tells to change is changed, and then it works; one less does not.
#[test]
fn the_nearest_setting_works() {
    let number = |said: &str, flag: &str| -> u64 {
        let (_, rest) = said.split_once(flag).unwrap_or_else(|| panic!("{flag}: {said}"));
        let digits = rest.trim_start_matches([' ', 't', 'o']);
        digits.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    let check = |machine: &str, given: &[&str], flag: &str, beyond: i64| {
        let said = refused("Qwen3-30B-A3B", machine, given, 5, flag);
        let near = number(&said, flag);
        let with = |value: u64| {
            let at = given.iter().position(|given| *given == flag).expect("a flag that is given");
            let value = value.to_string();
            let mut given = given.to_vec();
            given[at + 1] = &value;
            plan("Qwen3-30B-A3B", machine, &given).status.code()
        };
        assert_eq!(with(near), Some(0), "{said}");
        assert_eq!(with(near.checked_add_signed(beyond).unwrap()), Some(5), "{said}");
    };
    check("gpu-16", &["--gpu-vram-mb", "600"], "--gpu-vram-mb", -1);
    let long = ["--gpu-vram-mb", "4000", "--context-max", "40960"];
    check("gpu-16", &long, "--context-max", 1);
    check("gpu-16", &["--expert-divisor", "2", "--gpu-vram-mb", "9000"], "--expert-divisor", -1);
}

#[test]
fn layers_are_spread_over_gpus() {
    let spread = |plan: &Value| -> Vec<u64> {
        let ranks = plan["ranks"].as_array().unwrap();
        let mut first = 0;
        for rank in ranks {
            assert_eq!(rank["first_layer"], first, "{plan}");
            first += rank["layers"].as_u64().unwrap();
            let regions = rank["regions"].as_array().unwrap().iter();
            let sum: u64 = regions.map(|region| region["bytes"].as_u64().unwrap()).sum();
            assert!(sum <= rank["available"].as_u64().unwrap(), "{plan}");
        }
        ranks.iter().map(|rank| rank["layers"].as_u64().unwrap()).collect()
    };
    // What is too large for one GPU fits on two.
    let one = json("Qwen3-Coder-Next", "two-gpus", &["--context-max", "8192"]);
    assert!(one["strategy"].is_object() && spread(&one) == [48], "{one}");
    let two = json("Qwen3-Coder-Next", "two-gpus", &["--context-max", "8192", "--num-gpus", "2"]);
    assert!(two["strategy"].is_null(), "{two}");
    let [first, second] = spread(&two)[..] else { panic!("{two}") };
    assert!(first + second == 48 && first.abs_diff(second) <= 2, "{first}, {second}");
    // What was asked for, with experts in host memory on both.
    let uneven = ["--pp-partition", "20,28", "--expert-divisor", "-3", "--gpu-vram-mb", "9000"];
    let uneven = json("Qwen3-30B-A3B", "two-gpus", &uneven);
    assert!(uneven["strategy"].is_object() && spread(&uneven) == [20, 28], "{uneven}");
    // With a second GPU, experts come over two links.
    let seconds = |given: &[&str]| {
        let fixed = ["--expert-divisor", "48", "--gpu-vram-mb", "9000"];
        let plan = json("Qwen3-30B-A3B", "two-gpus", &[&fixed, given].concat());
        assert_eq!(spread(&plan)[0], 48, "{plan}");
        (
            plan["ranks"].as_array().unwrap().len(),
            plan["prefill"][0]["ttft"]["seconds"].as_f64().unwrap(),
        )
    };
    let (one, two) = (seconds(&[]), seconds(&["--num-gpus", "2", "--expert-parallel"]));
    assert!((one.0, two.0) == (1, 2) && two.1 < 0.7 * one.1, "{one:?}, {two:?}");
}

#[test]
fn impossible_partitions_are_refused_with_one_that_works() {
    let refused = |given: &[&str], code, words| {
        let model = "Qwen3-30B-A3B";
        let sentence = refused(model, "two-gpus", given, code, words);
        let Some((_, near)) = sentence.split_once("choose --pp-partition ") else { return };
        let near = near.split_whitespace().next().unwrap().trim_end_matches(',');
        let flag = given.iter().position(|given| *given == "--pp-partition");
        let mut given = given.to_vec();
        match flag {
            Some(flag) => given[flag + 1] = near,
            None => given.extend(["--pp-partition", near]),
        }
        let again = plan(model, "two-gpus", &given);
        assert_eq!(again.status.code(), Some(0), "{sentence}, then {given:?}");
    };
    // The first one has the embedding, in 16 bits.
    refused(&["--pp-partition", "20,20"], 3, "--pp-partition 23,25");
    refused(&["--pp-partition", "48,0"], 3, "--pp-partition 23,25");
    refused(&["--pp-partition", "4000000000,4000000000"], 3, "--pp-partition 23,25");
    refused(&["--pp-partition", "16,16,16"], 6, "choose --num-gpus 2");
    refused(&["--num-gpus", "3"], 6, "choose --num-gpus 2");
    refused(&["--selected-gpus", "0,2"], 6, "there is no GPU 2");
    refused(&["--num-gpus", "0", "--device", "cuda"], 6, "--device cpu");
    refused(&["--pp-partition", "24,24", "--device", "cpu"], 3, "--device cuda");
    refused(&["--num-gpus", "2", "--expert-parallel"], 3, "--expert-divisor -3");
    refused(&["--expert-parallel"], 3, "--num-gpus 2");
    let full = ["--pp-partition", "46,2", "--expert-divisor", "1", "--gpu-vram-mb", "14000"];
    refused(&full, 5, "--pp-partition");
}

#[test]
fn what_cannot_be_is_refused() {
    let all = ["--expert-divisor", "1"];
    let sentence = refused("Qwen3-Coder-Next", "gpu-24", &all, 5, "leave --expert-divisor out");
    assert!(!sentence.contains("--gpu-vram-mb"), "no cap was given: {sentence}");
    let gpu = ["--device", "cuda"];
    let sentence = refused("Qwen3-Coder-Next", "little-ram", &gpu, 5, "the model needs");
    assert!(sentence.contains("experts that stay on the disk (--device cpu)"), "{sentence}");
    // Where nobody names a device, that is what is done.
    let output = plan("Qwen3-Coder-Next", "little-ram", &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("the CPU is used, because"), "{}", said(&output));
    refused("Qwen3-30B-A3B", "gpu-24", &["--context-max", "50000"], 3, "40960");
    refused("Qwen3-30B-A3B", "no-gpu", &["--device", "cuda"], 6, "no GPU there");
    refused("Qwen3-30B-A3B", "no-gpu", &["--gpu-vram-mb", "9"], 3, "--device cuda");
    refused("gpt-oss-120b", "gpu-24", &[], 4, "gpt_oss");
    refused("Qwen3-30B-A3B", "nowhere", &[], 3, "nowhere.json");
    let folder = tempfile::tempdir().unwrap();
    for (text, words) in [
        ("{", "EOF"),
        ("[]", "not an object"),
        ("{}", "there is no \"host\""),
        (r#"{"host": {}}"#, "memory_gib"),
        (r#"{"host": {"memory_gib": -3}}"#, "not a positive number"),
        (r#"{"host": {"memory_gib": 3, "available_gib": 4}}"#, "more than memory_gib"),
        (r#"{"host": {"memory_gib": 3, "colour": 4}}"#, "no field \"colour\""),
        (r#"{"host": {"memory_gib": 3, "threads": 1e8}}"#, "between 1 and 1024"),
        (r#"{"host": {"memory_gib": 3, "simd": ["mmx"]}}"#, "simd may name"),
        (r#"{"host": {"memory_gib": 3}, "gpu": {"memory_gib": 1, "free_gib": 2}}"#, "free_gib"),
    ] {
        let file = folder.path().join("machine.json");
        std::fs::write(&file, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_krasis"))
            .args(["plan", "--machine"])
            .arg(&file)
            .output()
            .unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(3), "{text}: {said}");
        assert!(said.contains(words), "{text}: {said}");
    }
}

#[test]
fn the_environment_may_say_what_no_flag_does() {
    let with = |name: &str, value: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_krasis"))
            .args(["plan", "--json", "--quiet", "--cpu-expert-bits", "4", "--model-path"])
            .arg(fixture("configs/Qwen3-30B-A3B.json"))
            .arg("--machine")
            .arg(fixture("machines/gpu-24.json"))
            .env(name, value)
            .output()
            .unwrap();
        let plan = serde_json::from_slice::<Value>(&output.stdout);
        plan.map_err(|_| (output.status.code(), said(&output)))
    };
    assert_eq!(with("CTX_SIZE_OVERRIDE", "5000").unwrap()["context_max"], 5000);
    assert_eq!(with("MAX_TOTAL_TOKENS_OVERRIDE", "50000").unwrap()["kv_tokens"], 50_000);
    let half = with("MEM_FRACTION_OVERRIDE", "0.5").unwrap();
    assert!(half["device_bytes"].as_u64().unwrap() <= 12 << 30 && half["strategy"].is_object());
    let (code, said) = with("MEM_FRACTION_OVERRIDE", "half").unwrap_err();
    assert!(code == Some(3) && said.contains("MEM_FRACTION_OVERRIDE is half"), "{said}");
}

/// The device that nobody has named: the GPU if it can be used, and else the CPU with a reason.
#[test]
fn the_device_follows_from_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let with = |gpu: &str, arguments: &[&str]| {
        let file = folder.path().join("machine.json");
        let host = r#"{"memory_gib": 64, "threads": 8}"#;
        std::fs::write(&file, format!(r#"{{"gpu": {gpu}, "host": {host}}}"#)).unwrap();
        Command::new(env!("CARGO_BIN_EXE_krasis"))
            .args(["plan", "--json", "--model-path"])
            .arg(fixture("configs/Qwen3-30B-A3B.json"))
            .arg("--machine")
            .arg(&file)
            .args(FOUR_BITS)
            .args(arguments)
            .output()
            .unwrap()
    };
    let check = |gpu: &str, arguments: &[&str], device: &str, words: Option<&str>| {
        let output = with(gpu, arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(0), "{gpu} {arguments:?}: {said}");
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(plan["device"].as_str().unwrap().starts_with(device), "{gpu}: {plan:#}");
        assert_eq!(plan["machine"]["gpu"].is_null(), device == "Cpu", "{gpu}: {plan:#}");
        let reason = said.lines().find(|line| line.contains("the CPU is used, because"));
        assert_eq!(reason.is_some(), words.is_some(), "{gpu} {arguments:?}: {said}");
        let reason = reason.unwrap_or_default();
        assert!(reason.contains(words.unwrap_or_default()), "{words:?}: {reason}");
    };
    let good = r#"{"name": "A", "memory_gib": 16}"#;
    let (old, small) = (
        r#"{"name": "B", "memory_gib": 16, "capability": 7.5}"#,
        r#"{"name": "C", "memory_gib": 16, "free_gib": 1}"#,
    );
    let driver = r#"{"name": "D", "memory_gib": 16, "cuda": 11.8}"#;
    check(good, &[], "Cuda", None);
    check(good, &["--device", "cuda"], "Cuda", None);
    check(good, &["--device", "cpu"], "Cpu", None);
    check(good, &["--num-gpus", "0"], "Cpu", None);
    check("null", &[], "Cpu", None);
    check(old, &[], "Cpu", Some("B has compute capability 7.5"));
    check(small, &[], "Cpu", Some("C is not enough"));
    check(driver, &[], "Cpu", Some("supports CUDA 11.8 only"));
    check(good, &["--kv-dtype", "f16"], "Cpu", Some("--kv-dtype bf16"));
    // Whoever wants a GPU gets it, or hears why not.
    for (gpu, arguments, code) in [
        (old, &["--device", "cuda"][..], 6),
        (old, &["--gpu-vram-mb", "8000"], 6),
        (driver, &["--strategy", "hcs_prefill"], 6),
        (small, &["--device", "cuda"], 5),
        (small, &["--expert-divisor", "-3"], 5),
        ("null", &["--device", "cuda"], 6),
        ("null", &["--strategy", "persistent"], 3),
        (good, &["--strategy", "chunked", "--expert-divisor", "0"], 3),
        (good, &["--decode-strategy", "lru"], 3),
        (good, &["--strategy", "fastest"], 2),
    ] {
        let output = with(gpu, arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{gpu} {arguments:?}: {said}");
        assert!(!said.contains("the CPU is used"), "{said}");
    }
}

/// Names are those of the seeds, and mean what divisors do.
#[test]
fn strategies_have_names() {
    for (name, divisor) in
        [("persistent", "1"), ("layer_grouped_8", "8"), ("chunked", "0"), ("hcs_prefill", "-3")]
    {
        let named = json("Qwen3-30B-A3B", "gpu-48", &["--strategy", name]);
        let divided = json("Qwen3-30B-A3B", "gpu-48", &["--expert-divisor", divisor]);
        assert_eq!(named, divided, "{name}");
    }
    let lru = ["--strategy", "active_only", "--decode-strategy", "lru"];
    assert_eq!(
        json("Qwen3-30B-A3B", "gpu-48", &lru),
        json("Qwen3-30B-A3B", "gpu-48", &["--expert-divisor", "-2"])
    );
    let manual = ["--strategy", "manual", "--expert-divisor", "-1"];
    let plan = json("Qwen3-30B-A3B", "gpu-48", &manual);
    assert_eq!(plan["strategy"]["prefill"], "active_only");
    assert_eq!(plan["strategy"]["decode"], "compact");
}

/// The machine that the tests run on, without its GPU if it has one, and the demo model.
#[test]
fn without_arguments_this_machine_is_planned_for() {
    let output = Command::new(env!("CARGO_BIN_EXE_krasis"))
        .args(["plan", "--json"])
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(plan["machine"]["host"]["read_bytes_per_second"].as_f64().unwrap() > 1e8);
    assert_eq!(plan["context_max"], 4096);
}
