//! One answer in the making: the engine's tokens become text, stop strings end it.

use crate::openai::ReasoningField;
use crate::wishes::Wishes;
use krasis_engine::{Event, Finish, Logprob, Usage};
use krasis_text::{
    Detokenizer, End, Event as Said, Format, Parser, Passage, StopStrings, Tokenizer,
};
use std::sync::Arc;

/// How answers of a model are read and told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answers {
    /// How the model writes calls and reasoning.
    pub format: Format,
    /// Where clients find reasoning.
    pub reasoning_field: ReasoningField,
}

/// How one answer is read.
pub(crate) struct Reading {
    pub parser: Parser,
    /// Tokens that the parser must see.
    pub markers: Vec<&'static str>,
    /// What has been written of the answer already, as part of the prompt.
    pub opening: String,
    /// The answer ends after so many calls.
    pub calls_max: usize,
}

impl Reading {
    /// Everything is text.
    pub fn plain() -> Reading {
        Reading {
            parser: Parser::plain(),
            markers: Vec::new(),
            opening: String::new(),
            calls_max: usize::MAX,
        }
    }
}

/// Tokens of a request. Each prompt counts once, however many answers it gets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub prompt: u32,
    pub completion: u32,
    /// Of the prompt, found and not computed: known at the end.
    pub cached: u32,
    /// Of the completion.
    pub reasoning: u32,
}

/// State of one answer.
pub(crate) struct Answer {
    detokenizer: Detokenizer,
    stops: StopStrings,
    parser: Parser,
    /// Calls that are still wanted.
    calls_left: usize,
    called: bool,
    stop_included: bool,
    /// Tokens that end the answer and are not part of its text.
    stop_tokens: Vec<u32>,
    /// Tokens whose text is withheld.
    held: Piece,
    /// Set once; tokens that come later are not part of the answer.
    finish: Option<&'static str>,
    /// Tokens of the answer so far, and those of them that are reasoning.
    tokens: u32,
    reasoning_tokens: u32,
    /// Known at the end.
    usage: Option<Usage>,
}

/// What is certain, and the tokens that it came from.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub said: Vec<Said>,
    pub ids: Vec<u32>,
    pub logprobs: Vec<Logprob>,
    /// Why the answer ended, on its last piece.
    pub finish: Option<&'static str>,
    /// The stop string that ended it.
    pub stopped_by: Option<String>,
}

impl Piece {
    /// The answer goes on with another piece.
    pub fn append(&mut self, next: Piece) {
        self.said.extend(next.said);
        self.ids.extend(next.ids);
        self.logprobs.extend(next.logprobs);
        self.finish = next.finish;
        self.stopped_by = next.stopped_by;
    }

    /// Its text.
    pub fn text(&self) -> String {
        let text = |said: &Said| match said {
            Said::Text(text) => Some(text.clone()),
            _ => None,
        };
        self.said.iter().filter_map(text).collect()
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
    /// A stop string or the last call ended the answer: send the piece, and let the engine stop.
    Stopped(Piece),
    /// The answer cannot keep to its grammar.
    Refused(String),
    /// The engine could not go on.
    Failed(String),
}

impl Answer {
    pub fn new(tokenizer: &Arc<Tokenizer>, wishes: &Wishes, mut reading: Reading) -> Answer {
        let detokenizer = match wishes.specials_hidden {
            true => Detokenizer::with_markers(tokenizer.clone(), &reading.markers),
            false => Detokenizer::with_specials(tokenizer.clone()),
        };
        let opening = reading.parser.push(&reading.opening);
        let mut answer = Answer {
            detokenizer,
            stops: StopStrings::new(wishes.stops.clone()),
            parser: reading.parser,
            calls_left: reading.calls_max,
            called: false,
            stop_included: wishes.stop_included,
            stop_tokens: wishes.stop_tokens.clone(),
            held: Piece::default(),
            finish: None,
            tokens: 0,
            reasoning_tokens: 0,
            usage: None,
        };
        answer.hold(opening);
        answer
    }

    /// Takes the next event.
    pub fn take(&mut self, event: Event) -> News {
        match event {
            Event::Prompt { logprobs } => News::Prompt(logprobs),
            Event::Token { .. } if self.finish.is_some() => News::Nothing,
            Event::Token { id, logprob } => self.token(id, logprob),
            Event::Done { finish, usage } => self.done(finish, usage),
            Event::Refused { message } => News::Refused(message),
            Event::Failed { message } => News::Failed(message),
        }
    }

    /// Tokens of the answer so far.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Those of them that are reasoning.
    pub fn reasoning_tokens(&self) -> u32 {
        self.reasoning_tokens
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
            Passage::Open(text) => {
                let thought = self.parser.is_reasoning();
                self.say(&text);
                self.reasoning_tokens += u32::from(thought || self.parser.is_reasoning());
                match (self.calls_left, self.held.said.is_empty()) {
                    (0, _) => News::Stopped(self.release("stop")),
                    (_, true) => News::Nothing,
                    (_, false) => News::Piece(std::mem::take(&mut self.held)),
                }
            }
            Passage::Stopped { text, stop } => {
                self.end(&text, &stop);
                News::Stopped(self.release("stop"))
            }
        }
    }

    fn done(&mut self, finish: Finish, usage: Usage) -> News {
        self.usage = Some(usage);
        if self.finish.is_some() {
            return News::Nothing;
        }
        let (reason, end) = match finish {
            Finish::Stop => ("stop", End::Stop),
            Finish::Length => ("length", End::Length),
            Finish::Cancelled => return News::Failed("the request was cancelled".into()),
        };
        // The withheld end may complete a stop string after all: half a character that is final
        // now is text like any other.
        let rest = self.detokenizer.finish();
        match self.stops.push(&rest) {
            Passage::Open(text) => {
                let text = text + &self.stops.finish();
                self.say(&text);
                if self.calls_left > 0 {
                    let rest = self.parser.finish(end);
                    self.hold(rest);
                }
                News::Piece(self.release(reason))
            }
            Passage::Stopped { text, stop } => {
                self.end(&text, &stop);
                News::Piece(self.release("stop"))
            }
        }
    }

    /// The answer goes on with this text.
    fn say(&mut self, text: &str) {
        let said = self.parser.push(text);
        self.hold(said);
    }

    /// The answer ends with this text and a stop string.
    fn end(&mut self, text: &str, stop: &str) {
        self.say(text);
        if self.stop_included {
            self.say(stop);
        }
        self.held.stopped_by = Some(stop.to_owned());
        let rest = self.parser.finish(End::Stop);
        self.hold(rest);
    }

    /// Keeps what the parser says, up to the end of the last call that is wanted.
    fn hold(&mut self, said: Vec<Said>) {
        for said in said {
            if self.calls_left == 0 {
                return;
            }
            match said {
                Said::Call { .. } => self.called = true,
                Said::End { .. } => self.calls_left -= 1,
                _ => {}
            }
            self.held.said.push(said);
        }
    }

    fn release(&mut self, reason: &'static str) -> Piece {
        let reason = match reason {
            "stop" if self.called => "tool_calls",
            reason => reason,
        };
        self.finish = Some(reason);
        Piece { finish: Some(reason), ..std::mem::take(&mut self.held) }
    }
}
