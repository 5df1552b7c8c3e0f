//! What a request says about the form of its answer, in OpenAI's fields and in vLLM's.

use crate::Loaded;
use crate::error::ApiError;
use crate::fields::Fields;
use krasis_engine as engine;
use krasis_text::{Form, Grammar, GrammarError, Guide, Rules, Strictness};
use serde_json::Value;
use std::sync::Arc;

/// vLLM's older names: each says one form.
const GUIDED: [(&str, &str); 4] = [
    ("guided_json", "json"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
];

/// Settings of `structured_outputs` that would change the answer's form.
const UNSUPPORTED: [&str; 4] = [
    "structural_tag",
    "whitespace_pattern",
    "disable_any_whitespace",
    "disable_additional_properties",
];

/// The form of an answer's text, and the field that asks for it.
#[derive(Clone, Debug)]
pub(crate) struct Constraint {
    field: String,
    form: Form,
}

impl Constraint {
    /// Takes the fields. More than one form would be a contradiction.
    pub fn take(fields: &mut Fields) -> Result<Option<Constraint>, ApiError> {
        let mut found = Vec::new();
        if let Some(format) = fields.value("response_format") {
            found.extend(response_format(&format)?);
        }
        if let Some(wishes) = fields.value("structured_outputs") {
            found.extend(structured_outputs(&wishes)?);
        }
        for (field, kind) in GUIDED {
            if let Some(value) = fields.value(field) {
                found.push(Constraint { field: field.into(), form: form(field, kind, &value)? });
            }
        }
        if fields.value("grammar").is_some() {
            let message = "grammar is another server's field: send structured_outputs with a \
                           grammar in Lark's notation";
            return Err(ApiError::unsupported("grammar", message));
        }
        if let [first, second, ..] = &found[..] {
            let message =
                format!("{} and {} both give the answer a form", first.field, second.field);
            return Err(ApiError::field(second.field.clone(), message));
        }
        Ok(found.pop())
    }

    /// What the text must be.
    pub fn form(&self) -> &Form {
        &self.form
    }
}

fn response_format(format: &Value) -> Result<Option<Constraint>, ApiError> {
    const FIELD: &str = "response_format";
    let constraint = |field: &str, form| Ok(Some(Constraint { field: field.into(), form }));
    match format["type"].as_str() {
        None => Err(ApiError::field(FIELD, "response_format has no type")),
        Some("text") => Ok(None),
        // A schema here is an extension that several servers know.
        Some("json_object") => match &format["schema"] {
            Value::Null => constraint(FIELD, Form::Object),
            schema => constraint(FIELD, Form::Schema(schema.clone(), Strictness::Strict)),
        },
        Some("json_schema") => {
            // OpenAI's other API has the fields without their envelope.
            let inner =
                if format["json_schema"].is_object() { &format["json_schema"] } else { format };
            let strictness = match inner["strict"] == true {
                true => Strictness::Strict,
                false => Strictness::Lenient,
            };
            match &inner["schema"] {
                Value::Null => constraint(FIELD, Form::Object),
                schema => constraint(FIELD, Form::Schema(schema.clone(), strictness)),
            }
        }
        Some(kind) => Err(ApiError::unsupported(
            FIELD,
            format!("response_format '{kind}' is not known: text, json_object and json_schema are"),
        )),
    }
}

fn structured_outputs(wishes: &Value) -> Result<Vec<Constraint>, ApiError> {
    const FIELD: &str = "structured_outputs";
    let Some(wishes) = wishes.as_object() else {
        return Err(ApiError::field(FIELD, "structured_outputs must be an object"));
    };
    let mut found = Vec::new();
    for (name, value) in wishes.iter().filter(|(_, value)| !value.is_null() && **value != false) {
        let field = format!("{FIELD}.{name}");
        match name.as_str() {
            "json" | "regex" | "choice" | "grammar" | "json_object" => {
                let form = form(&field, name, value)?;
                found.push(Constraint { field, form });
            }
            // There is one way here, and nothing to fall back to.
            "disable_fallback" => {}
            name if UNSUPPORTED.contains(&name) => {
                let message = format!("{field} is not supported: leave it out");
                return Err(ApiError::unsupported(&field, message));
            }
            _ => {
                let message = format!("{field} is not known: json, regex, choice and grammar are");
                return Err(ApiError::field(field, message));
            }
        }
    }
    if found.is_empty() {
        return Err(ApiError::field(FIELD, "structured_outputs gives no form"));
    }
    Ok(found)
}

fn form(field: &str, kind: &str, value: &Value) -> Result<Form, ApiError> {
    let refused = |what: &str| Err(ApiError::field(field, format!("{field} must be {what}")));
    let text = || value.as_str().map(str::to_owned);
    match kind {
        "json_object" => Ok(Form::Object),
        "json" => match value {
            // A schema may come as text, which is JSON itself.
            Value::String(text) => match serde_json::from_str(text) {
                Ok(schema) => Ok(Form::Schema(schema, Strictness::Strict)),
                Err(_) => refused("a schema, or the JSON of one"),
            },
            schema => Ok(Form::Schema(schema.clone(), Strictness::Strict)),
        },
        "regex" => text().map_or_else(|| refused("a string"), |text| Ok(Form::Regex(text))),
        "grammar" => match text() {
            None => refused("a string"),
            Some(text) if text.lines().any(is_gbnf) => {
                refused("in Lark's notation (`start: \"a\" | \"b\"`), not in llama.cpp's")
            }
            Some(text) => Ok(Form::Lark(text)),
        },
        _ => match serde_json::from_value::<Vec<String>>(value.clone()) {
            Ok(choices) if !choices.is_empty() => Ok(Form::Choice(choices)),
            _ => refused("a list of strings"),
        },
    }
}

/// Whether a line of a grammar defines a rule as llama.cpp has them.
fn is_gbnf(line: &str) -> bool {
    let named = |(name, _): (&str, &str)| {
        let name = name.trim();
        !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "-_".contains(c))
    };
    line.split_once("::=").is_some_and(named)
}

/// The grammar of an answer, if it is held to one. Takes its time.
pub(crate) fn compiled(
    loaded: &Loaded,
    constraint: Option<&Constraint>,
    rules: Rules,
) -> Result<Option<Arc<dyn engine::Grammar>>, ApiError> {
    let field = constraint.map_or("tools", |constraint| &constraint.field);
    let rules = Rules { form: constraint.map(Constraint::form), ..rules };
    match loaded.grammars.compile(&rules) {
        Ok(grammar) => Ok(grammar.map(|grammar| Arc::new(Bound(grammar)) as _)),
        Err(GrammarError::Form(reason)) => {
            Err(ApiError::field(field, format!("{field} cannot be kept to: {reason}")))
        }
        Err(GrammarError::Tool { index, reason }) => {
            let name = rules.tools[index]["function"]["name"].as_str().unwrap_or_default();
            let message = format!("tools: the schema of '{name}' cannot be kept to: {reason}");
            Err(ApiError::field("tools", message))
        }
        Err(error @ GrammarError::Tokenizer(_)) => {
            Err(ApiError::unsupported(field, format!("{field}: {error}")))
        }
    }
}

/// A grammar of text, as the engine asks for it.
#[derive(Debug)]
struct Bound(Grammar);

struct Guided(Guide);

impl engine::Grammar for Bound {
    fn begin(&self) -> Box<dyn engine::Constraint> {
        Box::new(Guided(self.0.begin()))
    }
}

impl engine::Constraint for Guided {
    fn allowed(&mut self) -> Result<engine::Allowed<'_>, String> {
        let krasis_text::Allowed { tokens, may_end } = self.0.allowed()?;
        Ok(engine::Allowed { tokens, may_end })
    }

    fn accept(&mut self, token: u32) {
        self.0.accept(token);
    }

    fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}
