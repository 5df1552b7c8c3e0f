//! Damaged and edited checkpoints: each is refused in a sentence that names file or field, and
//! nothing panics.

mod common;

use common::{FIXTURES, dir};
use krasis_engine::{CacheUse, DeviceKind, Options, start};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A copy of a fixture that a test may damage.
fn copy(fixture: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir(fixture)).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, to.path().join(from.file_name().unwrap())).unwrap();
    }
    to
}

fn options() -> Options {
    Options {
        device: DeviceKind::Cpu,
        threads: Some(1),
        cache: CacheUse::Off,
        context_max: Some(64),
        ..Options::default()
    }
}

/// The sentence that starting such a checkpoint ends with.
fn refusal(dir: &Path) -> String {
    match start(dir, &options()) {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    }
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

#[track_caller]
fn check(fixture: &str, damage: impl FnOnce(&Path), words: &[&str]) {
    let copy = copy(fixture);
    damage(copy.path());
    let said = refusal(copy.path());
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[test]
fn files_that_are_missing_or_damaged_are_named() {
    let shard = "model-00002-of-00003.safetensors";
    check("qwen3_moe_sparse", |d| fs::remove_file(d.join(shard)).unwrap(), &[shard]);
    let truncate = |name: &'static str| {
        move |d: &Path| {
            let path = d.join(name);
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
        }
    };
    check("qwen3_moe_sparse", truncate(shard), &[shard, "bytes"]);
    check("qwen3_moe", truncate("model.safetensors"), &["model.safetensors", "bytes"]);
    check("qwen3_moe", |d| fs::remove_file(d.join("config.json")).unwrap(), &["config.json"]);
    check(
        "qwen3_moe",
        |d| fs::write(d.join("config.json"), "{\"a\": 1,}").unwrap(),
        &["config.json", "line 1"],
    );
    let index = "model.safetensors.index.json";
    check(
        "qwen3_moe_sparse",
        |d| {
            let text = fs::read_to_string(d.join(index)).unwrap();
            fs::write(d.join(index), text.replace(shard, "model-00009-of-00003.safetensors"))
                .unwrap();
        },
        &[index, "model-00009-of-00003.safetensors"],
    );
}

#[test]
fn settings_that_no_block_computes_are_refused_by_name() {
    let rows: [(&str, &str, Value, &[&str]); 12] = [
        ("qwen3_moe", "use_sliding_window", json!(true), &["use_sliding_window"]),
        ("qwen3_moe", "hidden_act", json!("gelu"), &["hidden_act", "gelu", "silu"]),
        ("qwen3_moe", "rope_scaling", json!({"rope_type": "longrope"}), &["longrope", "yarn"]),
        ("qwen3_moe", "num_experts_per_tok", json!(9), &["num_experts_per_tok", "9", "8"]),
        ("qwen3_moe", "num_key_value_heads", json!(3), &["num_key_value_heads", "3"]),
        ("deepseek_v2", "scoring_func", json!("sigmoid"), &["scoring_func", "softmax"]),
        ("deepseek_v2", "topk_method", json!("noaux_tc"), &["topk_method", "greedy"]),
        ("deepseek_v2", "n_group", json!(5), &["n_group", "5"]),
        ("deepseek_v2", "mlp_bias", json!(true), &["mlp_bias"]),
        ("deepseek_v3", "moe_layer_freq", json!(2), &["moe_layer_freq", "2"]),
        (
            "qwen3_next",
            "layer_types",
            json!(["sliding_attention", "x", "x", "x", "x"]),
            &["layer_types", "sliding_attention"],
        ),
        (
            "glm4_moe",
            "architectures",
            json!(["LlamaForCausalLM"]),
            &["LlamaForCausalLM", "Qwen3MoeForCausalLM"],
        ),
    ];
    for (fixture, field, value, words) in rows {
        let change = |d: &Path| {
            edit_config(d, |config| {
                config[field] = value;
                if field == "architectures" {
                    config["model_type"] = json!("llama");
                }
            });
        };
        check(fixture, change, words);
    }
}

#[test]
fn tensors_of_another_shape_or_type_are_named() {
    check(
        "qwen3_moe",
        |d| edit_config(d, |c| c["hidden_size"] = json!(76)),
        &["embed_tokens", "76", "72"],
    );
    check(
        "qwen3_moe",
        |d| edit_config(d, |c| c["num_hidden_layers"] = json!(4)),
        &["model.layers.3"],
    );
    check(
        "kimi_k25",
        |d| edit_config(d, |c| c["text_config"]["moe_intermediate_size"] = json!(96)),
        &["gate_proj", "96", "64"],
    );
    // The header says BF16; make it say FP8 of twice the columns' bytes.
    check(
        "qwen3_moe",
        |d| {
            let path = d.join("model.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let text = String::from_utf8(bytes[8..8 + header].to_vec()).unwrap();
            let mut json: Value = serde_json::from_str(&text).unwrap();
            json["lm_head.weight"]["dtype"] = json!("I16");
            let new = json.to_string();
            assert!(new.len() <= header);
            bytes[8..8 + header].copy_from_slice(format!("{new:header$}").as_bytes());
            fs::write(path, bytes).unwrap();
        },
        &["lm_head.weight", "I16"],
    );
}

#[test]
fn a_context_that_cannot_be_is_refused() {
    let wanted = Options { context_max: Some(5000), ..options() };
    let said = start(&dir("qwen3_moe"), &wanted).err().unwrap().to_string();
    assert!(said.contains("5000") && said.contains("1024"), "{said}");
}

/// Every field of every config, missing or of an absurd value: a model or a sentence, no panic.
#[test]
fn no_edit_of_a_config_panics() {
    let absurd = [
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(1e300),
        json!(16_777_216),
        json!("x"),
        json!([]),
        json!({}),
        json!(true),
        Value::Null,
    ];
    for fixture in FIXTURES {
        let copy = copy(fixture);
        let path = copy.path().join("config.json");
        let original: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for place in places(&original) {
            for value in &absurd {
                let mut config = original.clone();
                *config.pointer_mut(&place).unwrap() = value.clone();
                fs::write(&path, config.to_string()).unwrap();
                if let Err(error) = start(copy.path(), &options()) {
                    let said = error.to_string();
                    assert!(
                        said.len() > 20 && !said.contains("panic"),
                        "{fixture} {place} = {value}: {said}"
                    );
                }
            }
        }
    }
}

/// JSON pointers of all leaves.
fn places(value: &Value) -> Vec<String> {
    let Some(object) = value.as_object() else { return vec![String::new()] };
    let below = |(key, value): (&String, &Value)| -> Vec<String> {
        places(value).into_iter().map(|rest| format!("/{key}{rest}")).collect()
    };
    object.iter().flat_map(below).collect()
}

#[test]
fn a_folder_that_is_none_is_said_so() {
    let said = refusal(&PathBuf::from("/does/not/exist"));
    assert!(said.contains("/does/not/exist"), "{said}");
}
