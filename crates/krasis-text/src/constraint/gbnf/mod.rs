//! Grammars in llama.cpp's notation (GBNF), told in llguidance's.
//!
//! The first speaks of characters only. llguidance reads lexemes, each as long as it can be, which is
//! fast, but another language wherever what follows could also be a part of the lexeme: `[a-z]+ "x"`
//! would never come to its `x`. So what is no recursion is first taken for lexemes, as large as
//! possible. A lexeme that might swallow what belongs behind another is then taken apart, until there
//! is none: single characters swallow nothing. So the language is always the same, and how it is cut
//! is a matter of speed.

mod chars;
mod facts;
mod lexemes;
mod parse;

/// A grammar in Lark's notation that describes the same texts. What is wrong is a sentence.
pub(super) fn to_lark(text: &str) -> Result<String, String> {
    lexemes::to_lark(&parse::parse(text)?)
}

/// Whether a text is meant to be a grammar in this notation: some line defines a rule.
pub(super) fn is_gbnf(text: &str) -> bool {
    let named = |(name, _): (&str, &str)| {
        let name = name.trim();
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    text.lines().any(|line| line.split_once("::=").is_some_and(named))
}

#[cfg(test)]
mod tests;
