//! What a model writes, told apart: text, reasoning and tool calls, as it streams.
//!
//! A [`Parser`] is fed text in pieces and answers with [`Event`]s. It works character by
//! character, so the events do not depend on where pieces end. Its promises:
//!
//! - Markers of a call that is well formed are never part of any text.
//! - Arguments of a call that has its [`Event::End`] are a JSON object.
//! - A call that is malformed is text, word for word, as long as it is short: beyond
//!   [`calls::HELD_BYTES`] of arguments it is on its way, and what follows the fault is text.
//! - A call that the answer's length cuts off keeps the arguments that it has, without an `End`.
//!   They are not closed: half a file must not look like a file.
//! - A call inside reasoning is reasoning.

mod calls;
mod format;
mod glm;
mod harmony;
mod hermes;
mod json;
mod lexer;
mod qwen_coder;
mod schema;
mod sections;
mod tagged;
mod typed;

pub use format::{Format, Reasoning, ToolFormat};

/// What grammars of answers are written with.
pub(crate) mod words {
    pub(crate) use super::format::{HARMONY, THINK, THINK_END};
    pub(crate) use super::glm::{KEY, KEY_END, VALUE, VALUE_END};
    pub(crate) use super::hermes::{CLOSE, OPEN};
    pub(crate) use super::qwen_coder::{FUNCTION, PARAMETER, PARAMETER_END};
    pub(crate) use super::schema::{Tools, Types, resolved};
    pub(crate) use super::sections::{DEEPSEEK, KIMI};

    /// Tags within calls that some vocabularies have as tokens.
    pub(crate) const TAGS: [&str; 4] = [KEY, KEY_END, VALUE, VALUE_END];
}

use harmony::Harmony;
use schema::Tools;
use serde_json::Value;
use tagged::Tagged;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// For the reader.
    Text(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// A tool call begins; calls never overlap.
    Call {
        /// Counts the answer's calls.
        index: usize,
        /// Its id, where the format has one.
        id: Option<String>,
        /// The function.
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        /// Of which call.
        index: usize,
        /// A piece of JSON.
        json: String,
    },
    /// A call is complete.
    End {
        /// Which.
        index: usize,
    },
}

/// Why an answer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model had nothing more to say.
    Stop,
    /// It was cut off.
    Length,
}

/// What stands before an answer.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// A prompt that opens the assistant's turn. Whether it opens reasoning too is seen at its
    /// end, never guessed from the answer.
    Prompt(&'a str),
    /// A message of the assistant's that the answer continues.
    Continued(&'a str),
}

/// Tells the parts of one answer apart.
pub struct Parser(Machine);

enum Machine {
    Plain,
    Tagged(Box<Tagged>),
    Harmony(Box<Harmony>),
}

impl Parser {
    /// Everything is text.
    pub fn plain() -> Parser {
        Parser(Machine::Plain)
    }

    /// For an answer in a format. `tools` are OpenAI's objects, whose schemas tell the types of
    /// arguments in formats that do not.
    pub fn new(format: Format, tools: &[Value], start: Start) -> Parser {
        let harmony = format.tools == Some(ToolFormat::Harmony)
            || format.reasoning == Some(Reasoning::Harmony);
        Parser(match format {
            Format { tools: None, reasoning: None } => Machine::Plain,
            format if harmony => Machine::Harmony(Box::new(Harmony::new(format, start))),
            format => Machine::Tagged(Box::new(Tagged::new(format, Tools::new(tools), start))),
        })
    }

    /// Behind thoughts, all is text as it stands: for texts that are held to a form, within which
    /// nothing is a marker.
    pub fn literal(mut self) -> Parser {
        if let Machine::Tagged(tagged) = &mut self.0 {
            tagged.read_text_literally();
        }
        self
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Event> {
        match &mut self.0 {
            Machine::Plain if text.is_empty() => Vec::new(),
            Machine::Plain => vec![Event::Text(text.into())],
            Machine::Tagged(tagged) => tagged.push(text),
            Machine::Harmony(harmony) => harmony.push(text),
        }
    }

    /// The answer is over: what was withheld.
    pub fn finish(&mut self, end: End) -> Vec<Event> {
        match &mut self.0 {
            Machine::Plain => Vec::new(),
            Machine::Tagged(tagged) => tagged.finish(end),
            Machine::Harmony(harmony) => harmony.finish(end),
        }
    }

    /// Whether the model is thinking now.
    pub fn is_reasoning(&self) -> bool {
        match &self.0 {
            Machine::Plain => false,
            Machine::Tagged(tagged) => tagged.is_reasoning(),
            Machine::Harmony(harmony) => harmony.is_reasoning(),
        }
    }
}
