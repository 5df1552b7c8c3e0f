//! Text to ids and back, whole and streamed.

mod common;

use common::{byte_fallback, byte_level, byte_level_json, specials};
use krasis_text::{Detokenizer, Specials, TextError, Tokenizer};
use proptest::prelude::*;
use std::sync::Arc;

const BOS: u32 = 261;
const EOS: u32 = 262;
const TOOL: u32 = 263;

#[test]
fn a_text_comes_back_whatever_it_holds() {
    let tokenizer = byte_level();
    for text in ["hello", " hé\n", "👩‍👩‍👧 日本語", "a\u{301}", "", "x <tool> y"] {
        let ids = tokenizer.encode_rendered(text).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
        assert_eq!(bytes, text.as_bytes());
    }
}

#[test]
fn one_bos_is_added_and_never_two() {
    let tokenizer = byte_level();
    assert_eq!(tokenizer.encode("a").unwrap(), [BOS, 97]);
    assert_eq!(tokenizer.encode("<s>a").unwrap(), [BOS, 97]);
    assert_eq!(tokenizer.encode_rendered("<s>a").unwrap(), [BOS, 97]);
    assert_eq!(tokenizer.encode_rendered("a").unwrap(), [97]);
}

#[test]
fn truncation_of_the_training_set_is_off() {
    assert_eq!(byte_level().encode_rendered("0123456789").unwrap().len(), 10);
}

#[test]
fn special_tokens_are_hidden_and_others_are_not() {
    let tokenizer = byte_level();
    assert_eq!(tokenizer.decode(&[BOS, 97, TOOL, EOS, 9_999]), "a<tool>");
    assert_eq!(tokenizer.decode_all(&[97, EOS]), "a</s>");
    assert!(tokenizer.is_special(EOS) && !tokenizer.is_special(TOOL));
    assert_eq!(
        (tokenizer.token_text(EOS), tokenizer.token_text(0xff)),
        ("</s>".into(), "\u{FFFD}".into())
    );
    assert!(tokenizer.knows(TOOL) && !tokenizer.knows(9_999));
}

#[test]
fn markers_are_spelled_where_other_special_tokens_are_hidden() {
    let mut detokenizer = Detokenizer::with_markers(byte_level(), &["</s>", "<unheard>"]);
    let pieces: Vec<String> =
        [BOS, 97, EOS, TOOL].into_iter().map(|id| detokenizer.push(id)).collect();
    assert_eq!(pieces.concat() + &detokenizer.finish(), "a</s><tool>");
}

#[test]
fn long_texts_are_refused_before_any_work() {
    let json = byte_level_json().to_string();
    let tokenizer = Tokenizer::from_json(&json, specials()).unwrap();
    tokenizer.bytes_max.set(4).unwrap();
    let error = tokenizer.encode("hello").unwrap_err();
    assert_eq!(error.to_string(), "the text has 5 bytes, but at most 4 are taken: shorten it");
}

#[test]
fn files_that_are_missing_or_broken_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(dir.path()).err().unwrap();
    assert!(matches!(error, TextError::NoTokenizer { .. }));
    assert!(error.to_string().contains("tokenizer.json is missing"), "{error}");

    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let error = Tokenizer::load(dir.path()).err().unwrap().to_string();
    assert!(error.contains("tokenizer.json cannot be used"), "{error}");

    std::fs::write(dir.path().join("tokenizer.json"), byte_level_json().to_string()).unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().specials, Specials::default());
    let config = r#"{"bos_token": null, "eos_token": {"content": "</s>"}, "pad_token": "<s>"}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let loaded = Tokenizer::load(dir.path()).unwrap().specials;
    assert_eq!(
        (loaded.bos, loaded.eos, loaded.pad),
        (None, Some("</s>".into()), Some("<s>".into()))
    );
}

fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(tokenizer.clone());
    let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    pieces.push(detokenizer.finish());
    pieces
}

#[test]
fn characters_are_never_split() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode_rendered("a🎉b").unwrap();
    let pieces = streamed(&tokenizer, &ids);
    assert_eq!(pieces.concat(), "a🎉b");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
    // Half a character at the end of an answer is shown as what it is.
    assert_eq!(streamed(&tokenizer, &[97, 0xf0, 0x9f]).concat(), "a\u{FFFD}");
}

#[test]
fn the_first_space_of_a_sentencepiece_text_is_dropped_once() {
    let tokenizer = byte_fallback();
    let a = tokenizer.id("▁a").unwrap();
    assert_eq!(streamed(&tokenizer, &[a, a, a]), ["a", " a", " a", ""]);
    // A character in byte tokens.
    let euro = [0xe2, 0x82, 0xac].map(|byte| byte + 1);
    assert_eq!(streamed(&tokenizer, &euro), ["", "", "€", ""]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn pieces_of_any_ids_join_to_the_decoded_whole(
        ids in prop::collection::vec(0u32..300, 0..60),
    ) {
        let tokenizer = byte_level();
        let pieces = streamed(&tokenizer, &ids);
        prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids));
    }

    #[test]
    fn pieces_of_any_text_join_to_it(text in "\\PC{0,40}") {
        let tokenizer = byte_level();
        let pieces = streamed(&tokenizer, &tokenizer.encode_rendered(&text).unwrap());
        let invented = !text.contains('\u{FFFD}') && pieces.concat().contains('\u{FFFD}');
        prop_assert!(!invented);
        prop_assert_eq!(pieces.concat(), text);
    }

    /// With byte fallback the decoded whole is no oracle for broken UTF-8 (one bad byte makes a
    /// whole run U+FFFD), so ids come from texts.
    #[test]
    fn byte_fallback_joins_too(text in "[ab é€🎉]{0,30}") {
        let tokenizer = byte_fallback();
        let ids = tokenizer.encode_rendered(&text.replace(' ', "▁")).unwrap();
        let pieces = streamed(&tokenizer, &ids);
        prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids));
    }

    #[test]
    fn byte_fallback_survives_any_ids(ids in prop::collection::vec(0u32..270, 0..40)) {
        streamed(&byte_fallback(), &ids);
    }
}
