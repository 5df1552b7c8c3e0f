//! One answer in the making: the engine's tokens become text, stop strings end it.

use crate::wishes::Wishes;
use krasis_engine::{Event, Finish, Logprob, Usage};
use krasis_text::{Detokenizer, Passage, StopStrings, Tokenizer};
use std::sync::Arc;

/// State of one answer.
pub(crate) struct Answer {
    detokenizer: Detokenizer,
    stops: StopStrings,
    stop_included: bool,
    /// Tokens that end the answer and are not part of its text.
    stop_tokens: Vec<u32>,
    /// Tokens whose text is withheld.
    held: Piece,
    /// Set once; tokens that come later are not part of the answer.
    finish: Option<&'static str>,
    /// Tokens of the answer so far.
    tokens: u32,
    /// Known at the end.
    usage: Option<Usage>,
}

/// Text that is certain, and the tokens that it came from.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub text: String,
    pub ids: Vec<u32>,
    pub logprobs: Vec<Logprob>,
    /// Why the answer ended, on its last piece.
    pub finish: Option<&'static str>,
}

impl Piece {
    /// The answer goes on with another piece.
    pub fn append(&mut self, next: Piece) {
        self.text.push_str(&next.text);
        self.ids.extend(next.ids);
        self.logprobs.extend(next.logprobs);
        self.finish = next.finish;
    }
}

/// What an event means for the client.
pub(crate) enum News {
    /// Nothing to send yet.
    Nothing,
    /// Log-probabilities of the prompt.
    Prompt(Vec<Logprob>),
    /// The answer goes on or ends.
    Piece(Piece),
    /// A stop string ended the answer: send the piece, and let the engine stop.
    Stopped(Piece),
    /// The engine could not go on.
    Failed(String),
}

impl Answer {
    pub fn new(tokenizer: &Arc<Tokenizer>, wishes: &Wishes) -> Answer {
        let detokenizer = match wishes.specials_hidden {
            true => Detokenizer::new(tokenizer.clone()),
            false => Detokenizer::with_specials(tokenizer.clone()),
        };
        Answer {
            detokenizer,
            stops: StopStrings::new(wishes.stops.clone()),
            stop_included: wishes.stop_included,
            stop_tokens: wishes.stop_tokens.clone(),
            held: Piece::default(),
            finish: None,
            tokens: 0,
            usage: None,
        }
    }

    /// Takes the next event.
    pub fn take(&mut self, event: Event) -> News {
        match event {
            Event::Prompt { logprobs } => News::Prompt(logprobs),
            Event::Token { .. } if self.finish.is_some() => News::Nothing,
            Event::Token { id, logprob } => self.token(id, logprob),
            Event::Done { finish, usage } => self.done(finish, usage),
            Event::Failed { message } => News::Failed(message),
        }
    }

    /// Tokens of the answer so far.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Prompt tokens that had been read before, once the engine has told.
    pub fn cached_tokens(&self) -> u32 {
        self.usage.map_or(0, |usage| usage.cached_tokens)
    }

    fn token(&mut self, id: u32, logprob: Option<Logprob>) -> News {
        self.tokens += 1;
        self.held.ids.push(id);
        self.held.logprobs.extend(logprob);
        if self.stop_tokens.contains(&id) {
            return News::Nothing;
        }
        let text = self.detokenizer.push(id);
        match self.stops.push(&text) {
            Passage::Open(text) if text.is_empty() => News::Nothing,
            Passage::Open(text) => News::Piece(self.release(text, None)),
            Passage::Stopped { text, stop } => {
                News::Stopped(self.release(self.ended(text, &stop), Some("stop")))
            }
        }
    }

    fn done(&mut self, finish: Finish, usage: Usage) -> News {
        self.usage = Some(usage);
        if self.finish.is_some() {
            return News::Nothing;
        }
        let reason = match finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => return News::Failed("the request was cancelled".into()),
        };
        // The withheld end may complete a stop string after all: half a character that is final
        // now is text like any other.
        let rest = self.detokenizer.finish();
        match self.stops.push(&rest) {
            Passage::Open(text) => {
                let text = text + &self.stops.finish();
                News::Piece(self.release(text, Some(reason)))
            }
            Passage::Stopped { text, stop } => {
                News::Piece(self.release(self.ended(text, &stop), Some("stop")))
            }
        }
    }

    fn ended(&self, text: String, stop: &str) -> String {
        if self.stop_included { text + stop } else { text }
    }

    fn release(&mut self, text: String, finish: Option<&'static str>) -> Piece {
        self.finish = finish;
        Piece { text, finish, ..std::mem::take(&mut self.held) }
    }
}
