//! Calls in tags (Qwen3-Coder):
//!
//! ```text
//! <tool_call>
//! <function=weather>
//! <parameter=city>
//! Oslo
//! </parameter>
//! </function>
//! </tool_call>
//! ```
//!
//! Values are taken as they stand: the template writes `&lt;` and `<` as they are, so a file
//! that holds one of them arrives with it. One line break on each side belongs to the tags.

use super::calls::{Calls, fits_name};
use super::hermes::{CLOSE, OPEN};
use super::schema::Tools;
use super::tagged::{Block, Flow};
use super::typed::Typed;
use std::sync::Arc;

pub(crate) const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
pub(crate) const PARAMETER: &str = "<parameter=";
pub(crate) const PARAMETER_END: &str = "</parameter>";
/// The end of a call whose last parameter was not closed.
const CALL_END: &str = "</function>\n</tool_call>";

/// The inside of a block.
pub(super) struct QwenCoder {
    state: State,
    /// A name or key so far, or what followed what may be the end of a value.
    text: String,
    typed: Typed,
    /// A line break of the value that may belong to the tag behind it.
    line: Line,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Name,
    Parameters,
    Key,
    Value,
    /// Behind the end of a value, which it only is if another tag follows: a value may hold
    /// these very tags.
    ValueEnd,
    After,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    First,
    Ended,
    Inside,
}

impl QwenCoder {
    /// After the marker that opens a block, or a function without one.
    pub fn new(tools: Arc<Tools>, marker: &'static str) -> QwenCoder {
        let state = if marker == FUNCTION { State::Name } else { State::Before };
        QwenCoder { state, text: String::new(), typed: Typed::new(tools), line: Line::First }
    }

    fn value(&mut self, c: char, calls: &mut Calls) {
        if self.line == Line::Ended {
            self.typed.push('\n', calls);
        }
        self.line = match (self.line, c) {
            (Line::First, '\n') => Line::Inside,
            (_, '\n') => Line::Ended,
            _ => {
                self.typed.push(c, calls);
                Line::Inside
            }
        };
    }

    /// What looked like the end of a value was part of it.
    fn resume(&mut self, calls: &mut Calls) {
        let text = std::mem::take(&mut self.text);
        PARAMETER_END.chars().chain(text.chars()).for_each(|c| self.value(c, calls));
    }
}

impl Block for QwenCoder {
    fn markers(&self) -> &'static [&'static str] {
        match self.state {
            State::Before | State::After => &[FUNCTION, CLOSE, OPEN],
            State::Name | State::Key => &[],
            State::Parameters => &[PARAMETER, FUNCTION_END, CLOSE],
            State::Value => &[PARAMETER_END, CALL_END],
            State::ValueEnd => &[PARAMETER, FUNCTION_END, CLOSE, PARAMETER_END],
        }
    }

    fn marker(&mut self, marker: &'static str, calls: &mut Calls) -> Flow {
        if self.state == State::ValueEnd {
            if marker == PARAMETER_END {
                self.resume(calls);
                return Flow::Inside;
            }
            self.typed.end(calls);
            self.state = State::Parameters;
        }
        self.text.clear();
        match (self.state, marker) {
            (State::Value, CALL_END) => {
                self.typed.end(calls);
                self.typed.complete(calls);
                return Flow::Over;
            }
            (State::Value, _) => self.state = State::ValueEnd,
            (State::Parameters, PARAMETER) => self.state = State::Key,
            (State::Parameters, FUNCTION_END) => {
                self.typed.complete(calls);
                self.state = State::After;
            }
            (State::Parameters, _) => {
                self.typed.complete(calls);
                return Flow::Over;
            }
            (_, FUNCTION) => {
                if self.state == State::After {
                    calls.begin(marker);
                }
                self.state = State::Name;
            }
            (State::After, CLOSE) => return Flow::Over,
            (State::After, _) => {
                calls.begin(marker);
                self.state = State::Before;
            }
            _ => return Flow::Fault,
        }
        Flow::Inside
    }

    fn plain(&mut self, c: char, calls: &mut Calls) -> Flow {
        match self.state {
            State::Before | State::Parameters | State::After if c.is_whitespace() => {}
            State::Before | State::Parameters => return Flow::Fault,
            State::After => return Flow::Before,
            State::Name | State::Key if c == '>' => {
                let text = std::mem::take(&mut self.text);
                match self.state {
                    State::Name if self.typed.name(text.trim(), calls).is_none() => {
                        return Flow::Fault;
                    }
                    State::Name => self.state = State::Parameters,
                    _ => {
                        self.typed.begin(text.trim(), calls);
                        (self.state, self.line) = (State::Value, Line::First);
                    }
                }
            }
            State::Name | State::Key => {
                self.text.push(c);
                if c == '\n' || !fits_name(&self.text) {
                    return Flow::Fault;
                }
            }
            State::Value => self.value(c, calls),
            State::ValueEnd if c.is_whitespace() => self.text.push(c),
            State::ValueEnd => {
                self.resume(calls);
                self.value(c, calls);
                self.state = State::Value;
            }
        }
        Flow::Inside
    }

    fn stop(&mut self, calls: &mut Calls) -> Flow {
        match self.state {
            State::After => return Flow::Over,
            State::ValueEnd => self.typed.end(calls),
            State::Parameters => {}
            _ => return Flow::Fault,
        }
        self.typed.complete(calls);
        Flow::Over
    }
}
