//! A tokenizer's tokens as llguidance takes them: a trie of bytes.
//!
//! Tokens beside the vocabulary proper (`<|im_end|>`, `<tool_call>`) are no text to a grammar: it
//! names them by their ids, so that nothing within a string is a marker.

use super::error::{GrammarError, sentence};
use super::workers::Workers;
use crate::Tokenizer;
use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Steps of work that building a grammar's lexer may take; a second is about 50 million.
const LEXER_FUEL: u64 = 4_000_000;
/// States that a grammar's lexer may come to have, of up to 2 KiB each.
const LEXER_STATES: usize = 50_000;
/// A trie is no deeper; what is longer is never written under a grammar.
const TOKEN_BYTES_MAX: usize = 1000;

/// What all grammars of a tokenizer share.
pub(super) struct Vocabulary {
    /// Compiles one grammar at a time, so that many large ones cannot take all processors.
    pub factory: Mutex<ParserFactory>,
    pub workers: Workers,
    /// Bytes of each token, those of markers without llguidance's mark.
    pub tokens: Vec<Vec<u8>>,
    /// Tokens beside the vocabulary proper, by their texts.
    markers: HashMap<String, u32>,
}

impl Vocabulary {
    pub fn new(tokenizer: &Tokenizer) -> Result<Vocabulary, GrammarError> {
        let size = tokenizer.size();
        let mut tokens = Vec::with_capacity(size as usize);
        let mut words = Vec::with_capacity(size as usize);
        let mut markers = HashMap::new();
        for id in 0..size {
            let bytes = tokenizer.token_bytes(id);
            words.push(match tokenizer.is_added(id) {
                true => {
                    markers.insert(String::from_utf8_lossy(&bytes).into_owned(), id);
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat()
                }
                // The byte 0xff marks markers, and is part of no text.
                false if bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
                false => bytes.clone(),
            });
            if bytes.len() > TOKEN_BYTES_MAX {
                words.last_mut().expect("it was just pushed").clear();
            }
            tokens.push(bytes);
        }
        // Tries have bounds that are asserted, and a vocabulary may come from anywhere.
        let factory = std::panic::catch_unwind(|| factory(size, &words));
        let mut factory = factory
            .map_err(|_| GrammarError::Tokenizer("its vocabulary is too large".into()))??;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.initial_lexer_fuel = LEXER_FUEL;
        limits.max_lexer_states = LEXER_STATES;
        limits.verbose_errors = false;
        Ok(Vocabulary { factory: Mutex::new(factory), workers: Workers::start(), tokens, markers })
    }

    /// All markers that are tokens.
    pub fn markers(&self) -> Vec<&str> {
        self.markers.keys().map(String::as_str).filter(|marker| !marker.is_empty()).collect()
    }

    /// The token that is this marker.
    pub fn marker(&self, text: &str) -> Option<u32> {
        self.markers.get(text).copied()
    }
}

fn factory(size: u32, words: &[Vec<u8>]) -> Result<ParserFactory, GrammarError> {
    let info = TokRxInfo::new(size, INVALID_TOKEN);
    let tokens_as_they_come = ApproximateTokEnv::new(TokTrie::from(&info, words));
    let environment: TokEnv = Arc::new(tokens_as_they_come);
    let capabilities = InferenceCapabilities::default();
    let slices = SlicedBiasComputer::general_slices();
    ParserFactory::new(&environment, capabilities, &slices)
        .map_err(|error| GrammarError::Tokenizer(sentence(error)))
}
