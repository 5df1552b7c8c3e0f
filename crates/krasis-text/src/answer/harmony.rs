//! Answers of gpt-oss: messages in channels, each with a header.
//!
//! ```text
//! <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.weather
//! <|constrain|>json<|message|>{"city": "Oslo"}<|call|>
//! ```

use super::calls::{Calls, Fault};
use super::format::HARMONY;
use super::json::{Json, Step};
use super::lexer::{Lexer, Reader, Symbol};
use super::{End, Event, Format, Start};

/// Headers are a dozen words at most; what is longer is an answer without any.
const HEADER_BYTES_MAX: usize = 512;

const START: &str = HARMONY[0];
const MESSAGE: &str = HARMONY[2];
const CHANNEL: &str = HARMONY[3];
const CONSTRAIN: &str = HARMONY[4];

/// An answer's state.
pub(super) struct Harmony {
    lexer: Lexer,
    format: Format,
    mode: Mode,
    /// As it stands.
    header: String,
    calls: Calls,
    /// Arguments of the current call.
    json: Json,
    /// What the last message was, if there was one: the next of its kind begins a new line.
    last: Option<Mode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Header,
    Text,
    Reasoning,
    Call,
    /// Behind a call's arguments.
    Called,
}

impl Harmony {
    pub fn new(format: Format, start: Start) -> Harmony {
        let (Start::Prompt(before) | Start::Continued(before)) = start;
        let mut harmony = Harmony {
            lexer: Lexer::default(),
            format,
            mode: Mode::Text,
            header: String::new(),
            calls: Calls::default(),
            json: Json::default(),
            last: None,
        };
        // The prompt ends in the middle of a message, whose header says what it is.
        if let Some(at) = before.rfind(START) {
            harmony.mode = Mode::Header;
            harmony.push(&before[at + START.len()..]);
            if !harmony.header.contains(CHANNEL) {
                harmony.header.clear();
            }
            harmony.last = None;
        }
        harmony
    }

    pub fn is_reasoning(&self) -> bool {
        self.mode == Mode::Reasoning
    }

    pub fn push(&mut self, text: &str) -> Vec<Event> {
        self.read(text);
        self.calls.events.take()
    }

    pub fn finish(&mut self, end: End) -> Vec<Event> {
        let cut = end == End::Length && self.mode == Mode::Call;
        if !cut {
            self.read_rest();
        }
        match self.mode {
            Mode::Call if cut => self.calls.cut(),
            Mode::Call => self.close(),
            // An answer without any header.
            Mode::Header if !self.header.contains(CHANNEL) && self.last.is_none() => {
                self.calls.events.text(&self.header);
            }
            _ => {}
        }
        self.calls.events.take()
    }

    /// A header is complete.
    fn message(&mut self) {
        let header = std::mem::take(&mut self.header);
        let channel = header.split(CHANNEL).nth(1).unwrap_or_default();
        let channel = channel.trim_start().split(|c: char| !c.is_alphanumeric()).next();
        let words = header.split(|c: char| c.is_whitespace() || c == '<');
        let recipient = words.filter_map(|word| word.strip_prefix("to=")).next();
        if let Some(recipient) = recipient.filter(|_| self.format.tools.is_some()) {
            self.calls.begin(&format!("{header}{MESSAGE}"));
            self.json = Json::default();
            let name = recipient.strip_prefix("functions.").unwrap_or(recipient);
            if self.calls.name(name, None).is_some() {
                self.mode = Mode::Call;
                return;
            }
        }
        match channel {
            Some("analysis") if self.format.reasoning.is_some() => self.begin(Mode::Reasoning),
            _ => self.begin(Mode::Text),
        }
    }

    /// A message for the reader, or one of thoughts.
    fn begin(&mut self, mode: Mode) {
        if self.last == Some(mode) {
            match mode {
                Mode::Reasoning => self.calls.events.reasoning("\n"),
                _ => self.calls.events.text("\n"),
            }
        }
        self.mode = mode;
        self.last = Some(mode);
    }

    fn argument(&mut self, c: char) {
        self.calls.record(c.encode_utf8(&mut [0; 4]));
        let mut text = String::new();
        let step = self.json.push(c, &mut text);
        self.calls.arguments(&text);
        match step {
            None => {
                let fault = self.calls.fault();
                (self.mode, self.last) = (Mode::Text, Some(Mode::Text));
                if fault == Fault::Late {
                    self.calls.events.text(c.encode_utf8(&mut [0; 4]));
                }
            }
            Some(Step::Done) => {
                self.calls.complete();
                self.mode = Mode::Called;
            }
            Some(Step::More) => {}
        }
    }

    /// The model closed a call whose arguments it did not.
    fn close(&mut self) {
        match self.json.closers() {
            Some(closers) => {
                self.calls.arguments(&closers);
                self.calls.complete();
            }
            None if self.json.is_empty() => self.calls.complete(),
            None => drop(self.calls.fault()),
        }
        self.mode = Mode::Called;
    }
}

impl Reader for Harmony {
    fn lexer(&mut self) -> &mut Lexer {
        &mut self.lexer
    }

    fn next(&mut self) -> Option<Symbol> {
        let literal = self.mode == Mode::Call && self.json.in_string();
        self.lexer.next(if literal { &[] } else { &HARMONY })
    }

    fn symbol(&mut self, symbol: Symbol) {
        match (self.mode, symbol) {
            (Mode::Header, Symbol::Marker(MESSAGE)) => self.message(),
            (Mode::Header, Symbol::Marker(marker @ (CHANNEL | CONSTRAIN))) => {
                self.header.push_str(marker);
            }
            (Mode::Header, Symbol::Marker(_)) => self.header.clear(),
            (Mode::Header, Symbol::Char(c)) => {
                self.header.push(c);
                if self.header.len() > HEADER_BYTES_MAX {
                    let header = std::mem::take(&mut self.header);
                    self.begin(Mode::Text);
                    self.calls.events.text(&header);
                }
            }
            (_, Symbol::Marker(MESSAGE | CONSTRAIN)) => {}
            (mode, Symbol::Marker(marker)) => {
                if mode == Mode::Call {
                    self.close();
                }
                self.mode = Mode::Header;
                self.header.clear();
                if marker == CHANNEL {
                    self.header.push_str(marker);
                }
            }
            (Mode::Text, Symbol::Char(c)) => self.calls.events.text(c.encode_utf8(&mut [0; 4])),
            (Mode::Reasoning, Symbol::Char(c)) => {
                self.calls.events.reasoning(c.encode_utf8(&mut [0; 4]));
            }
            (Mode::Call, Symbol::Char(c)) => self.argument(c),
            (Mode::Called, Symbol::Char(c)) if c.is_whitespace() => {}
            (Mode::Called, symbol) => {
                self.begin(Mode::Text);
                self.symbol(symbol);
            }
        }
    }
}
