//! The model's own tokenizer: text to token ids and back.

use crate::TextError;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;
use tokenizers::DecoderWrapper;

/// Texts of the tokens that templates and prompts need by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Specials {
    /// Begin of sequence.
    pub bos: Option<String>,
    /// End of sequence.
    pub eos: Option<String>,
    /// Unknown.
    pub unk: Option<String>,
    /// Padding.
    pub pad: Option<String>,
}

/// Text to token ids and back, as the model was trained.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Tokens that have a name.
    pub specials: Specials,
    /// Longer texts are refused before any work; 32 MiB until the context is known. Tokens are rarely
    /// longer than 32 bytes, so 32 times the context is a bound that no honest prompt meets.
    pub bytes_max: OnceLock<usize>,
    bytes: Bytes,
    /// Tokens beside the vocabulary proper, and whether an answer's text leaves them out.
    added: HashMap<u32, bool>,
}

/// How a vocabulary entry spells bytes.
enum Bytes {
    /// GPT-2: every byte is one printable character.
    Level(HashMap<char, u8>),
    /// SentencePiece: `▁` is a space, `<0x0A>` is a byte.
    Fallback,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, if there, `tokenizer_config.json`.
    pub fn load(dir: &Path) -> Result<Tokenizer, TextError> {
        let file = dir.join("tokenizer.json");
        if !file.is_file() {
            return Err(TextError::NoTokenizer { file });
        }
        let json = std::fs::read(&file)
            .map_err(|source| TextError::Unreadable { file: file.clone(), source })?;
        let inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| TextError::Malformed { file, reason: error.to_string() })?;
        let specials = match read_json(&dir.join("tokenizer_config.json"))? {
            Some(config) => Specials::from_config(&config),
            None => Specials::default(),
        };
        Ok(Tokenizer::new(inner, specials))
    }

    /// Reads the text of a `tokenizer.json`.
    pub fn from_json(json: &str, specials: Specials) -> Result<Tokenizer, TextError> {
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(|error| {
            TextError::Malformed { file: "tokenizer.json".into(), reason: error.to_string() }
        })?;
        Ok(Tokenizer::new(inner, specials))
    }

    fn new(mut inner: tokenizers::Tokenizer, specials: Specials) -> Tokenizer {
        // Both belong to training; a prompt that was silently cut or padded would be wrong.
        // Switching truncation off cannot fail: only a stride beyond a maximum length can.
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        let bytes = match inner.get_decoder().is_some_and(has_byte_level) {
            true => Bytes::Level(byte_level_alphabet()),
            false => Bytes::Fallback,
        };
        let added = inner.get_added_tokens_decoder();
        let added = added.into_iter().map(|(id, token)| (id, token.special)).collect();
        Tokenizer { inner, specials, bytes_max: OnceLock::new(), bytes, added }
    }

    /// Ids of a plain prompt: with the BOS (or whatever else) that the model expects around a
    /// text, but never two of them when the text brings its own.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = self.ids(text, true)?;
        let bos = self.specials.bos.as_deref().filter(|bos| text.starts_with(*bos));
        if let Some(bos) = bos.and_then(|bos| self.id(bos))
            && ids.starts_with(&[bos, bos])
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Ids of a text that spells its special tokens itself, such as a rendered chat template.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let bytes_max = self.bytes_max.get().copied().unwrap_or(32 << 20);
        if text.len() > bytes_max {
            return Err(TextError::TooLong { bytes: text.len(), bytes_max });
        }
        match self.inner.encode_fast(text, add_special_tokens) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(TextError::Untokenizable { reason: error.to_string() }),
        }
    }

    /// Text of a whole answer: without special tokens. Ids without a token have no text.
    pub fn decode(&self, ids: &[u32]) -> String {
        let visible: Vec<u32> = ids.iter().copied().filter(|&id| !self.is_special(id)).collect();
        self.decode_all(&visible)
    }

    /// Text with special tokens spelled out. Broken UTF-8 becomes U+FFFD.
    pub fn decode_all(&self, ids: &[u32]) -> String {
        // Decoders fail on nothing that a vocabulary holds; an empty piece is the only answer
        // that keeps a stream alive if one should.
        self.inner.decode(ids, false).unwrap_or_default()
    }

    /// The exact bytes that a token stands for, which need not be UTF-8 by themselves.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        if self.added.contains_key(&id) {
            return token.into_bytes();
        }
        match &self.bytes {
            Bytes::Level(alphabet) => token
                .chars()
                .map(|c| alphabet.get(&c).copied())
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| token.clone().into_bytes()),
            Bytes::Fallback => match byte_of(&token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
        }
    }

    /// A token's text by itself. Part of a character is U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// The id of a token given by its exact text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the vocabulary names this id. Models have rows without a token.
    pub fn knows(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some()
    }

    /// One more than the largest id with a token.
    pub fn size(&self) -> u32 {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id + 1)
    }

    /// Whether a token stands beside the vocabulary proper, special or not.
    pub fn is_added(&self, id: u32) -> bool {
        self.added.contains_key(&id)
    }

    /// Whether a token is left out of an answer's text, such as `<|im_end|>`.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(&id) == Some(&true)
    }
}

impl Specials {
    /// From `tokenizer_config.json`, where a token is a string or `{"content": string}`.
    pub fn from_config(config: &Value) -> Specials {
        let token = |name: &str| match config.get(name) {
            Some(Value::String(token)) => Some(token.clone()),
            Some(Value::Object(token)) => token.get("content")?.as_str().map(str::to_owned),
            _ => None,
        };
        Specials {
            bos: token("bos_token"),
            eos: token("eos_token"),
            unk: token("unk_token"),
            pad: token("pad_token"),
        }
    }
}

/// A JSON file that need not exist.
pub(crate) fn read_json(file: &Path) -> Result<Option<Value>, TextError> {
    let Some(text) = read_text(file)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| TextError::Malformed {
        file: file.to_owned(),
        reason: format!("it is not JSON: {error}"),
    })
}

/// A text file that need not exist.
pub(crate) fn read_text(file: &Path) -> Result<Option<String>, TextError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Unreadable { file: file.to_owned(), source }),
    }
}

fn has_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(has_byte_level),
        _ => false,
    }
}

/// `<0x0A>` is the byte 10.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// GPT-2's spelling of bytes: printable Latin-1 characters stand for themselves, the 68 others
/// for U+0100 and on, in order.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => (byte as char, byte),
            _ => {
                next += 1;
                (char::from_u32(next - 1).expect("U+0100 to U+0143 are characters"), byte)
            }
        })
        .collect()
}
