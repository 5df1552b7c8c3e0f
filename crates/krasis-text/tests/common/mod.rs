//! Tiny tokenizers built in code.
#![allow(dead_code, reason = "each test file uses its own part")]

use krasis_text::{Specials, Tokenizer};
use serde_json::{Value, json};
use std::sync::Arc;

/// GPT-2's spelling of a byte.
pub fn spelled(byte: u8) -> char {
    let printable = |byte| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match printable(byte) {
        true => byte as char,
        false => {
            let before = (0..byte).filter(|&byte| !printable(byte)).count() as u32;
            char::from_u32(0x100 + before).unwrap()
        }
    }
}

/// A byte-level tokenizer: ids 0 to 255 are the bytes, then some merges (one ends in the middle of
/// a character), then `<s>`, `</s>` (special) and `<tool>` (not special).
pub fn byte_level_json() -> Value {
    let mut tokens: Vec<String> = (0..=255).map(|byte| spelled(byte).to_string()).collect();
    let merges = ["h e", "l l", "Ġ h", "ð Ł", "é Ģ"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added = ["<s>", "</s>", "<tool>"].iter().enumerate().map(|(n, token)| {
        json!({"id": tokens.len() + n, "content": token, "special": n < 2, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    });
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4,
        "strategy": "LongestFirst", "stride": 0}, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(), "normalizer": null,
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [tokens.len()], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": null,
                  "byte_fallback": false, "fuse_unk": false, "ignore_merges": false},
    })
}

/// A SentencePiece-like tokenizer with byte fallback: 0 is `<unk>`, 1 to 256 are bytes, then
/// pieces with `▁` for spaces.
pub fn byte_fallback_json() -> Value {
    let mut tokens = vec!["<unk>".to_owned()];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "b", "▁a", "é", "▁▁"].map(str::to_owned));
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["▁ a", "▁ ▁"], "unk_token": "<unk>",
                  "byte_fallback": true, "fuse_unk": false, "ignore_merges": false},
    })
}

pub fn specials() -> Specials {
    Specials { bos: Some("<s>".into()), eos: Some("</s>".into()), unk: None, pad: None }
}

pub fn byte_level() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_json(&byte_level_json().to_string(), specials()).unwrap())
}

pub fn byte_fallback() -> Arc<Tokenizer> {
    let json = byte_fallback_json().to_string();
    Arc::new(Tokenizer::from_json(&json, Specials::default()).unwrap())
}
