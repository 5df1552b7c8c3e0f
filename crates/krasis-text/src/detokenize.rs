//! Token ids, one by one, to text that never splits a character.

use crate::Tokenizer;
use std::sync::Arc;

/// What one invalid or incomplete sequence of bytes decodes to.
const REPLACEMENT: char = '\u{FFFD}';

/// An incomplete character is completed by three more bytes at most. A longer wait means that the
/// model writes garbage (or really U+FFFD), and the window must not grow for ever.
const WINDOW_MAX: usize = 64;

/// Turns a stream of token ids into pieces of text whose concatenation is the decoded whole.
///
/// Decoders look at neighbours (SentencePiece drops the first space of a text; a character may be
/// spread over several tokens), so a window is decoded instead of a token: some tokens of context
/// whose text has been sent, then the new ones. What the window says beyond its context is new.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    spelled: Special,
    window: Vec<u32>,
    /// How many tokens of the window are context.
    known: usize,
    /// What the context decodes to.
    context: String,
    /// Bytes beyond the context that have been sent already.
    sent: usize,
}

/// What becomes of special tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Special {
    /// They are left out, but for these.
    Hidden(Vec<u32>),
    Spelled,
}

impl Detokenizer {
    /// Leaves special tokens out.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Detokenizer {
        Detokenizer {
            tokenizer,
            spelled: Special::Hidden(Vec::new()),
            window: Vec::new(),
            known: 0,
            context: String::new(),
            sent: 0,
        }
    }

    /// Leaves special tokens out, but for those of an answer's format, which a parser must see.
    pub fn with_markers(tokenizer: Arc<Tokenizer>, markers: &[&str]) -> Detokenizer {
        let ids = markers.iter().filter_map(|marker| tokenizer.id(marker)).collect();
        Detokenizer { spelled: Special::Hidden(ids), ..Detokenizer::new(tokenizer) }
    }

    /// Spells special tokens out.
    pub fn with_specials(tokenizer: Arc<Tokenizer>) -> Detokenizer {
        Detokenizer { spelled: Special::Spelled, ..Detokenizer::new(tokenizer) }
    }

    /// Takes a token; returns the text that is certain now, which may be none.
    pub fn push(&mut self, id: u32) -> String {
        let hidden = match &self.spelled {
            Special::Hidden(shown) => self.tokenizer.is_special(id) && !shown.contains(&id),
            Special::Spelled => false,
        };
        if hidden || !self.tokenizer.knows(id) {
            return String::new();
        }
        self.window.push(id);
        let (fresh, undecided) = self.fresh();
        let waiting = undecided > 0 && self.window.len() - self.known < WINDOW_MAX;
        let certain = fresh.len() - if waiting { undecided } else { 0 };
        let piece = fresh.get(self.sent..certain).unwrap_or_default().to_owned();
        if waiting {
            self.sent = self.sent.max(certain);
        } else {
            self.slide(&fresh);
        }
        piece
    }

    /// The end of the answer: what is left, with half a character as U+FFFD.
    pub fn finish(&mut self) -> String {
        let (fresh, _) = self.fresh();
        let piece = fresh.get(self.sent..).unwrap_or_default().to_owned();
        self.slide(&fresh);
        piece
    }

    /// What the window says beyond its context, and how many bytes of its end more tokens may
    /// change. An incomplete character has three bytes at most, which one U+FFFD stands for in
    /// byte-level vocabularies and one each with byte fallback.
    fn fresh(&self) -> (String, usize) {
        let whole = self.tokenizer.decode_all(&self.window);
        if let Some(fresh) = whole.strip_prefix(&self.context) {
            let broken = fresh.chars().rev().take(3).take_while(|&c| c == REPLACEMENT);
            return (fresh.to_owned(), broken.map(char::len_utf8).sum());
        }
        // With byte fallback, one incomplete character turns the whole run of byte tokens into
        // U+FFFD, one per byte, also those that made characters before. Either the next token
        // mends the run or it stays broken; what has been sent is not taken back.
        let fresh: String = whole.chars().skip(self.context.chars().count()).collect();
        let undecided = if whole.ends_with(REPLACEMENT) { fresh.len() } else { 0 };
        (fresh, undecided)
    }

    /// All of the window has been sent: its new part becomes the context. A part without text is
    /// no context (a lone SentencePiece space vanishes), so the old one stays in front of it.
    fn slide(&mut self, fresh: &str) {
        if !fresh.is_empty() || self.window.len() > WINDOW_MAX {
            self.window.drain(..self.known);
        }
        self.known = self.window.len();
        self.context = self.tokenizer.decode_all(&self.window);
        self.sent = 0;
    }
}
