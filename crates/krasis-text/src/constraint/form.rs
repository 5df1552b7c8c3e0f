//! Forms that an answer's text may have.

use super::error::GrammarError;
use super::gbnf;
use super::lark::{Lark, literal};
use llguidance::api::GrammarWithLexer;
use serde_json::{Value, json};

/// Longer regular expressions and grammars are refused. They are compiled by recursion, whose stack
/// is sized for it; schemas nest no deeper than the JSON that they came in.
const TEXT_BYTES_MAX: usize = 32 << 10;

/// Parts that a form may be put together of, tags times triggers included: each is compiled.
pub(super) const PARTS_MAX: usize = 256;
/// The words around a tag.
const TAG_BYTES_MAX: usize = 1024;

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
    /// A sentence of a grammar, in Lark's notation or in llama.cpp's.
    Grammar(String),
    /// One of these.
    Choice(Vec<String>),
    /// All of these in turn.
    Sequence(Vec<Form>),
    /// One of these forms.
    Either(Vec<Form>),
    /// Words, a form, and words.
    Tag(Tag),
    /// Free text with such tags in it.
    Tagged(Tags),
}

/// A form between words.
#[derive(Clone, Debug, PartialEq)]
pub struct Tag {
    /// Words before it.
    pub begin: String,
    /// What is between.
    pub content: Box<Form>,
    /// Words behind it.
    pub end: String,
}

/// Tags in a text: where a trigger is written, it goes on to be one of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Tags {
    /// What tags begin with.
    pub triggers: Vec<String>,
    /// Those there are.
    pub tags: Vec<Tag>,
    /// Whether there must be one.
    pub demanded: bool,
    /// Whether the answer ends behind the first.
    pub single: bool,
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
    /// Writes it as a part of a grammar; its name there.
    pub(super) fn write(&self, lark: &mut Lark) -> Result<String, GrammarError> {
        let (forms, between) = match self {
            Form::Sequence(forms) => (forms, " "),
            Form::Either(forms) => (forms, " | "),
            Form::Tag(tag) => return Ok(tag.after("", lark)?.expect("all texts begin with none")),
            _ if lark.others() == PARTS_MAX => {
                let reason = format!("it is put together of more than {PARTS_MAX} parts");
                return Err(GrammarError::Form(reason));
            }
            _ => return Ok(lark.other(self.grammar()?)),
        };
        if forms.is_empty() {
            return Err(GrammarError::Form("a list of forms is empty".into()));
        }
        let parts: Result<Vec<String>, _> = forms.iter().map(|form| form.write(lark)).collect();
        Ok(lark.rule(&parts?.join(between)))
    }

    fn grammar(&self) -> Result<GrammarWithLexer, GrammarError> {
        Ok(match self {
            Form::Object => json_grammar(json!({"type": "object"}), Strictness::Strict),
            Form::Schema(schema, strictness) => json_grammar(schema.clone(), *strictness),
            Form::Regex(regex) => {
                fits(regex, "regular expression")?;
                GrammarWithLexer::from_regex(unanchored(regex))
            }
            Form::Grammar(grammar) => {
                fits(grammar, "grammar")?;
                let lark = match gbnf::is_gbnf(grammar) {
                    true => gbnf::to_lark(grammar).map_err(GrammarError::Form)?,
                    false => grammar.clone(),
                };
                GrammarWithLexer::from_lark(lark)
            }
            Form::Choice(choices) if choices.is_empty() => {
                return Err(GrammarError::Form("there is nothing to choose from".into()));
            }
            Form::Choice(choices) => {
                let choices: Vec<String> = choices.iter().map(|text| literal(text)).collect();
                GrammarWithLexer::from_lark(format!("start: {}", choices.join(" | ")))
            }
            Form::Sequence(_) | Form::Either(_) | Form::Tag(_) => {
                unreachable!("they are written as parts")
            }
            Form::Tagged(_) => {
                let reason = "free text with tags cannot be a part of another form";
                return Err(GrammarError::Form(reason.into()));
            }
        })
    }
}

impl Tag {
    /// What is still to come where a part of its beginning is written; `None` if it begins otherwise.
    pub(super) fn after(
        &self,
        before: &str,
        lark: &mut Lark,
    ) -> Result<Option<String>, GrammarError> {
        let Some(rest) = self.begin.strip_prefix(before) else { return Ok(None) };
        if self.begin.len() + self.end.len() > TAG_BYTES_MAX {
            let reason = format!("the words around a tag have more than {TAG_BYTES_MAX} bytes");
            return Err(GrammarError::Form(reason));
        }
        let inside = match &*self.content {
            // Whatever a lexeme takes, it ends with the first of the words behind it.
            Form::Regex(regex) if !self.end.is_empty() && !lark.has_token(&self.end) => {
                fits(regex, "regular expression")?;
                let end = self.end.chars().map(|c| format!("\\x{{{:x}}}", u32::from(c)));
                lark.lazy(&format!("(?:{}){}", unanchored(regex), end.collect::<String>()))
            }
            content => format!("{} {}", content.write(lark)?, lark.text(&self.end)),
        };
        Ok(Some(lark.rule(&format!("{} {inside}", lark.text(rest)))))
    }
}

fn fits(text: &str, what: &str) -> Result<(), GrammarError> {
    match text.len() > TEXT_BYTES_MAX {
        true => {
            let reason = format!("the {what} has {} bytes, at most {TEXT_BYTES_MAX}", text.len());
            Err(GrammarError::Form(reason))
        }
        false => Ok(()),
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
