//! The program and a tiny model for it.

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

/// The program, ready to run.
pub fn krasis(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_krasis"));
    // Where there is a GPU, these tests do not see it.
    command.args(arguments).stdin(Stdio::null()).env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// The fixture of a Qwen3 MoE with a tokenizer of 240 bytes, `<s>` and `</s>`.
pub fn tiny() -> tempfile::TempDir {
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
