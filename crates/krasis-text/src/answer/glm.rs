//! Calls in tags (GLM-4.5 to 4.7):
//!
//! ```text
//! <tool_call>weather
//! <arg_key>city</arg_key>
//! <arg_value>Oslo</arg_value>
//! </tool_call>
//! ```
//!
//! From 4.7 on, the name is followed by a tag, without a line break.

use super::calls::{Calls, fits_name};
use super::hermes::CLOSE;
use super::schema::Tools;
use super::tagged::{Block, Flow};
use super::typed::Typed;
use std::sync::Arc;

pub(crate) const KEY: &str = "<arg_key>";
pub(crate) const KEY_END: &str = "</arg_key>";
pub(crate) const VALUE: &str = "<arg_value>";
pub(crate) const VALUE_END: &str = "</arg_value>";

/// The inside of a block.
pub(super) struct Glm {
    state: State,
    /// A name or key so far, or what followed what may be the end of a value.
    text: String,
    typed: Typed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Name,
    Between,
    Key,
    KeyEnd,
    Value,
    /// As in Qwen3-Coder's format: the end of a value if another tag follows.
    ValueEnd,
}

impl Glm {
    pub fn new(tools: Arc<Tools>) -> Glm {
        Glm { state: State::Name, text: String::new(), typed: Typed::new(tools) }
    }

    fn name(&mut self, calls: &mut Calls) -> Option<()> {
        self.state = State::Between;
        self.typed.name(std::mem::take(&mut self.text).trim(), calls)
    }

    fn resume(&mut self, calls: &mut Calls) {
        let text = std::mem::take(&mut self.text);
        VALUE_END.chars().chain(text.chars()).for_each(|c| self.typed.push(c, calls));
    }
}

impl Block for Glm {
    fn markers(&self) -> &'static [&'static str] {
        match self.state {
            State::Name | State::Between => &[KEY, CLOSE],
            State::Key => &[KEY_END],
            State::KeyEnd => &[VALUE],
            State::Value => &[VALUE_END],
            State::ValueEnd => &[KEY, CLOSE, VALUE_END],
        }
    }

    fn marker(&mut self, marker: &'static str, calls: &mut Calls) -> Flow {
        match (self.state, marker) {
            (State::Name, _) if self.name(calls).is_none() => return Flow::Fault,
            (State::ValueEnd, VALUE_END) => {
                self.resume(calls);
                return Flow::Inside;
            }
            (State::ValueEnd, _) => self.typed.end(calls),
            _ => {}
        }
        if marker == CLOSE {
            self.typed.complete(calls);
            return Flow::Over;
        }
        if marker == KEY_END {
            self.typed.begin(self.text.trim(), calls);
        }
        self.text.clear();
        self.state = match marker {
            KEY => State::Key,
            KEY_END => State::KeyEnd,
            VALUE => State::Value,
            _ => State::ValueEnd,
        };
        Flow::Inside
    }

    fn plain(&mut self, c: char, calls: &mut Calls) -> Flow {
        match self.state {
            State::Name if c == '\n' && !self.text.trim().is_empty() => {
                return self.name(calls).map_or(Flow::Fault, |()| Flow::Inside);
            }
            State::Name | State::Key => {
                self.text.push(c);
                if !fits_name(&self.text) {
                    return Flow::Fault;
                }
            }
            State::Between | State::KeyEnd if c.is_whitespace() => {}
            State::Between | State::KeyEnd => return Flow::Fault,
            State::Value => self.typed.push(c, calls),
            State::ValueEnd if c.is_whitespace() => self.text.push(c),
            State::ValueEnd => {
                self.resume(calls);
                self.typed.push(c, calls);
                self.state = State::Value;
            }
        }
        Flow::Inside
    }

    fn stop(&mut self, calls: &mut Calls) -> Flow {
        match self.state {
            State::ValueEnd => self.typed.end(calls),
            State::Between => {}
            _ => return Flow::Fault,
        }
        self.typed.complete(calls);
        Flow::Over
    }
}
