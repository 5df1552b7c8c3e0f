//! Forms that an answer's text may have.

use super::error::GrammarError;
use super::lark::literal;
use llguidance::api::GrammarWithLexer;
use serde_json::{Value, json};

/// Longer regular expressions and grammars are refused. They are compiled by recursion, whose stack
/// is sized for it; schemas nest no deeper than the JSON that they came in.
const TEXT_BYTES_MAX: usize = 32 << 10;

/// White space within JSON: a line with its indentation, or up to two spaces. A model that has nothing
/// to say would otherwise write blanks for ever.
const BLANKS: &str = r"\n[\x20\x09]{0,64}|\x20{1,2}";

/// What a text must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// A JSON object.
    Object,
    /// JSON under a schema.
    Schema(Value, Strictness),
    /// A match of a whole regular expression.
    Regex(String),
    /// A sentence of a grammar in Lark's notation.
    Lark(String),
    /// One of these.
    Choice(Vec<String>),
}

/// What becomes of a schema's keywords that no grammar can express.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// The schema is refused.
    Strict,
    /// They are left to the model.
    Lenient,
}

impl Form {
    pub(super) fn grammar(&self) -> Result<GrammarWithLexer, GrammarError> {
        let fits = |text: &str, what: &str| match text.len() > TEXT_BYTES_MAX {
            true => {
                let reason =
                    format!("the {what} has {} bytes, at most {TEXT_BYTES_MAX}", text.len());
                Err(GrammarError::Form(reason))
            }
            false => Ok(()),
        };
        Ok(match self {
            Form::Object => json_grammar(json!({"type": "object"}), Strictness::Strict),
            Form::Schema(schema, strictness) => json_grammar(schema.clone(), *strictness),
            Form::Regex(regex) => {
                fits(regex, "regular expression")?;
                GrammarWithLexer::from_regex(unanchored(regex))
            }
            Form::Lark(grammar) => {
                fits(grammar, "grammar")?;
                GrammarWithLexer::from_lark(grammar.clone())
            }
            Form::Choice(choices) if choices.is_empty() => {
                return Err(GrammarError::Form("there is nothing to choose from".into()));
            }
            Form::Choice(choices) => {
                let choices: Vec<String> = choices.iter().map(|text| literal(text)).collect();
                GrammarWithLexer::from_lark(format!("start: {}", choices.join(" | ")))
            }
        })
    }
}

/// All of the text must match, so marks of its ends say nothing; llguidance knows none.
fn unanchored(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0 => rest,
        _ => regex,
    }
}

/// JSON under a schema. Options of llguidance's are ours to set, not the schema's.
pub(super) fn json_grammar(mut schema: Value, strictness: Strictness) -> GrammarWithLexer {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Some(schema) = schema.as_object_mut() {
        let lenient = strictness == Strictness::Lenient;
        let options = json!({"whitespace_pattern": BLANKS, "lenient": lenient});
        schema.insert("x-guidance".into(), options);
    }
    GrammarWithLexer::from_json_schema(schema)
}
