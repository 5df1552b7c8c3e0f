//! Grammars in llguidance's dialect of Lark, as they are put together.

use super::form::{Strictness, json_grammar};
use super::vocabulary::Vocabulary;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::Value;
use std::fmt::Write;

/// A grammar in the making: rules, and grammars of their own that they name.
pub(super) struct Lark<'a> {
    vocabulary: &'a Vocabulary,
    /// Markers that are tokens where the vocabulary has them.
    markers: Vec<&'a str>,
    rules: String,
    count: usize,
    others: Vec<GrammarWithLexer>,
}

impl<'a> Lark<'a> {
    pub fn new(vocabulary: &'a Vocabulary, markers: Vec<&'a str>) -> Lark<'a> {
        Lark { vocabulary, markers, rules: String::new(), count: 0, others: Vec::new() }
    }

    /// A text, in which markers are tokens if they have one.
    pub fn text(&self, text: &str) -> String {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((at, marker, id)) = self.first_token(rest) {
            parts.push(literal(&rest[..at]));
            parts.push(format!("<[{id}]>"));
            rest = &rest[at + marker.len()..];
        }
        parts.push(literal(rest));
        parts.retain(|part| part != "\"\"");
        match parts.is_empty() {
            true => "\"\"".into(),
            false => parts.join(" "),
        }
    }

    fn first_token(&self, text: &str) -> Option<(usize, &'a str, u32)> {
        let found = self.markers.iter().filter_map(|marker| {
            Some((text.find(marker)?, *marker, self.vocabulary.marker(marker)?))
        });
        // Of markers that begin alike, the longest.
        found.min_by_key(|(at, marker, _)| (*at, usize::MAX - marker.len()))
    }

    /// Whether a marker within the text is a token.
    pub fn has_token(&self, text: &str) -> bool {
        self.first_token(text).is_some()
    }

    /// A terminal; its name.
    pub fn terminal(&mut self, body: &str) -> String {
        self.count += 1;
        let name = format!("T{}", self.count);
        let _ = writeln!(self.rules, "{name}: {body}");
        name
    }

    /// A rule; its name.
    pub fn rule(&mut self, body: &str) -> String {
        self.count += 1;
        let name = format!("r{}", self.count);
        let _ = writeln!(self.rules, "{name}: {body}");
        name
    }

    /// A rule for the shortest match of a regular expression; its name.
    pub fn lazy(&mut self, regex: &str) -> String {
        self.count += 1;
        let name = format!("r{}", self.count);
        let mut quoted = String::with_capacity(regex.len());
        let mut escaped = false;
        for c in regex.chars() {
            if c == '/' && !escaped {
                quoted.push('\\');
            }
            quoted.push(c);
            escaped = c == '\\' && !escaped;
        }
        let _ = writeln!(self.rules, "{name}[lazy]: /{quoted}/");
        name
    }

    /// JSON under a schema.
    pub fn json(&mut self, schema: Value, strictness: Strictness) -> String {
        self.other(json_grammar(schema, strictness))
    }

    /// A grammar of its own.
    pub fn other(&mut self, grammar: GrammarWithLexer) -> String {
        let name = format!("g{}", self.others.len());
        let reference = format!("@{name}");
        self.others.push(GrammarWithLexer { name: Some(name), ..grammar });
        reference
    }

    /// How many of these there are.
    pub fn others(&self) -> usize {
        self.others.len()
    }

    /// All of it, from a start.
    pub fn finish(self, start: &str) -> TopLevelGrammar {
        let text = format!("start: {start}\n{}", self.rules);
        let mut grammars = vec![GrammarWithLexer::from_lark(text)];
        grammars.extend(self.others);
        TopLevelGrammar { grammars, max_tokens: None }
    }
}

/// A text as Lark quotes it.
pub(super) fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
