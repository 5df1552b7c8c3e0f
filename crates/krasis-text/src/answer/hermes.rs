//! Calls as JSON objects, one or more to a block (Hermes, Qwen3):
//!
//! ```text
//! <tool_call>
//! {"name": "weather", "arguments": {"city": "Oslo"}}
//! </tool_call>
//! ```

use super::calls::Calls;
use super::json::{Json, Place, Step};
use super::tagged::{Block, Flow};

pub(crate) const OPEN: &str = "<tool_call>";
pub(crate) const CLOSE: &str = "</tool_call>";

/// The inside of a block.
#[derive(Default)]
pub(super) struct Hermes {
    /// The object with name and arguments.
    object: Json,
    state: State,
    key: String,
    /// The value of the key, unless it streams.
    value: String,
    arguments: Arguments,
    /// Whether the block has had a call.
    called: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Before,
    Inside,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Arguments {
    #[default]
    Awaited,
    Streaming,
    Complete,
}

impl Hermes {
    fn character(&mut self, c: char, calls: &mut Calls) -> Option<Step> {
        let before = self.object.place();
        let mut text = String::new();
        let step = self.object.push(c, &mut text)?;
        let after = self.object.place();
        let is_value = |place| matches!(place, Place::Value | Place::Number);
        match (before, after) {
            (Place::Between, Place::Key) => text.clone_into(&mut self.key),
            (Place::Key, _) => self.key.push_str(&text),
            (Place::Between, after) if is_value(after) => self.begin(&text, calls)?,
            (Place::Number, Place::Between) => self.end(calls)?,
            (before, after) if is_value(before) => {
                self.more(&text, calls);
                if after == Place::Between {
                    self.end(calls)?;
                }
            }
            _ => {}
        }
        Some(step)
    }

    /// A value begins.
    fn begin(&mut self, text: &str, calls: &mut Calls) -> Option<()> {
        self.key = serde_json::from_str(&self.key).ok()?;
        self.value.clear();
        if matches!(self.key.as_str(), "arguments" | "parameters") {
            if self.arguments != Arguments::Awaited {
                return None;
            }
            self.arguments = match text {
                "{" => Arguments::Streaming,
                _ => Arguments::Complete,
            };
        }
        self.more(text, calls);
        Some(())
    }

    fn more(&mut self, text: &str, calls: &mut Calls) {
        match self.arguments {
            Arguments::Streaming => calls.arguments(text),
            _ => self.value.push_str(text),
        }
    }

    /// A value is complete.
    fn end(&mut self, calls: &mut Calls) -> Option<()> {
        if self.arguments == Arguments::Streaming {
            self.arguments = Arguments::Complete;
            return Some(());
        }
        match self.key.as_str() {
            "name" => calls.name(&serde_json::from_str::<String>(&self.value).ok()?, None),
            "arguments" | "parameters" => {
                let text: Option<String> = serde_json::from_str(&self.value).ok()?;
                calls.arguments(&object(text.as_deref().unwrap_or_default())?);
                Some(())
            }
            _ => Some(()),
        }
    }

    fn complete(&mut self, calls: &mut Calls) -> Option<()> {
        if !calls.is_named() {
            return None;
        }
        calls.complete();
        *self = Hermes { called: true, ..Hermes::default() };
        Some(())
    }

    /// The model closed the block: at most, braces are missing.
    fn close(&mut self, calls: &mut Calls) -> Option<()> {
        if self.state == State::Before {
            return self.called.then_some(());
        }
        let closers = self.object.closers()?;
        if self.arguments == Arguments::Streaming {
            calls.arguments(&closers[..closers.len() - 1]);
        } else if matches!(self.object.place(), Place::Number | Place::Value) {
            return None;
        }
        self.complete(calls)
    }
}

impl Block for Hermes {
    fn markers(&self) -> &'static [&'static str] {
        match self.object.in_string() {
            true => &[],
            false => &[CLOSE, OPEN],
        }
    }

    fn marker(&mut self, marker: &'static str, calls: &mut Calls) -> Flow {
        match (self.close(calls), marker) {
            (None, _) => Flow::Fault,
            (Some(()), CLOSE) => Flow::Over,
            (Some(()), marker) => {
                calls.begin(marker);
                *self = Hermes::default();
                Flow::Inside
            }
        }
    }

    fn plain(&mut self, c: char, calls: &mut Calls) -> Flow {
        match (self.state, c) {
            (State::Before, c) if c.is_whitespace() => return Flow::Inside,
            (State::Before, c) if c != '{' => {
                return if self.called { Flow::Before } else { Flow::Fault };
            }
            _ => self.state = State::Inside,
        }
        let went = match self.character(c, calls) {
            Some(Step::Done) => self.complete(calls),
            step => step.map(drop),
        };
        went.map_or(Flow::Fault, |()| Flow::Inside)
    }

    fn stop(&mut self, _: &mut Calls) -> Flow {
        match self.state == State::Before && self.called {
            true => Flow::Over,
            false => Flow::Fault,
        }
    }
}

/// An object that is all of a text; nothing is an empty one.
fn object(text: &str) -> Option<String> {
    if text.trim().is_empty() {
        return Some("{}".into());
    }
    let (mut json, mut out, mut done) = (Json::default(), String::new(), false);
    for c in text.chars() {
        match done {
            true if c.is_whitespace() => {}
            true => return None,
            false => done = json.push(c, &mut out)? == Step::Done,
        }
    }
    done.then_some(out)
}
