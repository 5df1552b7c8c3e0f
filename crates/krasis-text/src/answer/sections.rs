//! Calls in a section of special tokens (DeepSeek V3, R1 and V3.1; Kimi K2):
//!
//! ```text
//! <|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>
//! {"city": "Oslo"}<|tool_call_end|><|tool_calls_section_end|>
//! ```
//!
//! DeepSeek V3 writes the word `function` before the separator, then the name and the arguments
//! in a fence; V3.1 writes the name before it and the arguments behind.

use super::calls::{Calls, fits_name};
use super::json::{Json, Step};
use super::tagged::{Block, Flow};

/// The words of a family.
pub(crate) struct Words {
    pub open: &'static str,
    pub close: &'static str,
    pub call_open: &'static str,
    pub call_close: &'static str,
    /// Between head and arguments.
    pub separator: &'static str,
    /// All that may follow a call or its arguments.
    outside: &'static [&'static str],
    within_head: &'static [&'static str],
    /// Name and id from a call's head.
    named: fn(&str) -> (&str, Option<&str>),
}

/// DeepSeek's.
pub(crate) const DEEPSEEK: Words = Words {
    open: "<｜tool▁calls▁begin｜>",
    close: "<｜tool▁calls▁end｜>",
    call_open: "<｜tool▁call▁begin｜>",
    call_close: "<｜tool▁call▁end｜>",
    separator: "<｜tool▁sep｜>",
    outside: &["<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
    within_head: &["<｜tool▁sep｜>"],
    named: |head| (head, None),
};

/// Kimi's, whose ids say the name and count the conversation's calls.
pub(crate) const KIMI: Words = Words {
    open: "<|tool_calls_section_begin|>",
    close: "<|tool_calls_section_end|>",
    call_open: "<|tool_call_begin|>",
    call_close: "<|tool_call_end|>",
    separator: "<|tool_call_argument_begin|>",
    outside: &["<|tool_call_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"],
    within_head: &["<|tool_call_argument_begin|>"],
    named: |head| {
        let name = head.strip_prefix("functions.").unwrap_or(head);
        (name.rsplit_once(':').map_or(name, |(name, _)| name), Some(head))
    },
};

/// The inside of a section.
pub(super) struct Section {
    words: &'static Words,
    state: State,
    head: String,
    json: Json,
    /// Whether the section has had a call.
    called: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between calls.
    Between,
    /// Before the separator.
    Head,
    /// Behind it, where it is seen whether the head was the name.
    Behind,
    /// The name on its line, of DeepSeek V3.
    Line,
    /// The fence's first line.
    Fence,
    Arguments,
    /// Behind the arguments: the fence's end.
    Tail,
}

impl Section {
    /// After the marker that opens a section, or a call without one.
    pub fn new(words: &'static Words, marker: &'static str) -> Section {
        let state = if marker == words.call_open { State::Head } else { State::Between };
        Section { words, state, head: String::new(), json: Json::default(), called: false }
    }

    fn name(&mut self, calls: &mut Calls) -> Option<()> {
        let (name, id) = (self.words.named)(self.head.trim());
        calls.name(name, id)
    }

    fn argument(&mut self, c: char, calls: &mut Calls) -> Option<()> {
        let mut text = String::new();
        let step = self.json.push(c, &mut text)?;
        calls.arguments(&text);
        self.state = State::Arguments;
        if step == Step::Done {
            calls.complete();
            self.state = State::Tail;
        }
        Some(())
    }

    fn character(&mut self, c: char, calls: &mut Calls) -> Option<()> {
        match (self.state, c) {
            (State::Head, _) | (State::Line, _) if c != '\n' || self.state == State::Head => {
                self.head.push(c);
                fits_name(&self.head).then_some(())
            }
            (State::Line, _) => {
                self.state = State::Fence;
                self.name(calls)
            }
            (State::Behind, '{') => {
                self.name(calls)?;
                self.argument(c, calls)
            }
            (State::Behind, _) if c.is_whitespace() => Some(()),
            (State::Behind, _) if self.head.trim() == "function" => {
                self.head = c.into();
                self.state = State::Line;
                Some(())
            }
            (State::Fence, '{') | (State::Arguments, _) => self.argument(c, calls),
            (State::Fence, _) => "`json \n".contains(c).then_some(()),
            _ => None,
        }
    }

    /// The model closed a call whose arguments it did not.
    fn close(&mut self, calls: &mut Calls) -> Option<()> {
        match self.state {
            State::Between | State::Tail => return Some(()),
            State::Arguments => calls.arguments(&self.json.closers()?),
            // Without arguments.
            State::Behind => self.name(calls)?,
            State::Fence => {}
            State::Head | State::Line => return None,
        }
        calls.complete();
        Some(())
    }
}

impl Block for Section {
    fn markers(&self) -> &'static [&'static str] {
        match self.state {
            State::Head => self.words.within_head,
            _ if self.json.in_string() => &[],
            _ => self.words.outside,
        }
    }

    fn marker(&mut self, marker: &'static str, calls: &mut Calls) -> Flow {
        if marker == self.words.separator {
            self.state = State::Behind;
            return Flow::Inside;
        }
        if self.close(calls).is_none() {
            return Flow::Fault;
        }
        if marker == self.words.close {
            return Flow::Over;
        }
        let called = self.called || self.state != State::Between;
        *self = Section { called, ..Section::new(self.words, marker) };
        if marker == self.words.call_open && called {
            calls.begin(marker);
        }
        Flow::Inside
    }

    fn plain(&mut self, c: char, calls: &mut Calls) -> Flow {
        match self.state {
            State::Between if c.is_whitespace() => Flow::Inside,
            State::Tail if c.is_whitespace() || c == '`' => Flow::Inside,
            State::Between if !self.called => Flow::Fault,
            State::Between | State::Tail => Flow::Before,
            _ => self.character(c, calls).map_or(Flow::Fault, |()| Flow::Inside),
        }
    }

    fn stop(&mut self, _: &mut Calls) -> Flow {
        match self.state {
            State::Between | State::Tail => Flow::Over,
            _ => Flow::Fault,
        }
    }
}
