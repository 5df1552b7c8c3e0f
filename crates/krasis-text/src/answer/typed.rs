//! Arguments that a model writes as text between tags, as the JSON object that they mean.

use super::calls::Calls;
use super::json::escaped;
use super::schema::{Tools, Types};
use std::sync::Arc;

/// The object of one call.
pub(super) struct Typed {
    tools: Arc<Tools>,
    function: String,
    key: String,
    types: Types,
    /// The value, if its type is not known before its end.
    value: String,
    count: usize,
}

impl Typed {
    pub fn new(tools: Arc<Tools>) -> Typed {
        Typed {
            tools,
            function: String::new(),
            key: String::new(),
            types: Types::default(),
            value: String::new(),
            count: 0,
        }
    }

    /// A call of a function begins.
    pub fn name(&mut self, name: &str, calls: &mut Calls) -> Option<()> {
        self.count = 0;
        name.clone_into(&mut self.function);
        calls.name(name, None)
    }

    /// An argument begins.
    pub fn begin(&mut self, key: &str, calls: &mut Calls) {
        key.clone_into(&mut self.key);
        self.value.clear();
        self.types = self.tools.types(&self.function, key);
        if self.types.are_text() {
            let opening = self.opening() + "\"";
            calls.arguments(&opening);
        }
    }

    /// More of its value.
    pub fn push(&mut self, c: char, calls: &mut Calls) {
        match self.types.are_text() {
            true => {
                let mut text = String::new();
                escaped(c, &mut text);
                calls.arguments(&text);
            }
            false => self.value.push(c),
        }
    }

    /// The argument is complete.
    pub fn end(&mut self, calls: &mut Calls) {
        match self.types.are_text() {
            true => calls.arguments("\""),
            false => {
                let opening = self.opening() + &self.types.json(&self.value);
                calls.arguments(&opening);
            }
        }
    }

    /// The call is complete.
    pub fn complete(&mut self, calls: &mut Calls) {
        if self.count > 0 {
            calls.arguments("}");
        }
        calls.complete();
    }

    fn opening(&mut self) -> String {
        let mut opening = String::from(if self.count == 0 { "{\"" } else { ", \"" });
        self.key.chars().for_each(|c| escaped(c, &mut opening));
        self.count += 1;
        opening + "\": "
    }
}
