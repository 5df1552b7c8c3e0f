//! What a request says about the form of its answer, in OpenAI's fields and in those of vLLM, SGLang
//! and llama.cpp.

use crate::error::ApiError;
use crate::fields::Fields;
use crate::{Loaded, structural};
use krasis_engine as engine;
use krasis_text::{Form, Grammar, GrammarError, Guide, Rules, Strictness};
use serde_json::Value;
use std::sync::Arc;

/// Each says one form: vLLM's older names, then llama.cpp's and SGLang's.
const GUIDED: [(&str, &str); 8] = [
    ("guided_json", "json"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
    ("json_schema", "json"),
    ("regex", "regex"),
    ("grammar", "grammar"),
    ("ebnf", "grammar"),
];

/// Settings of `structured_outputs` that would change the answer's form.
const UNSUPPORTED: [&str; 3] =
    ["whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"];

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
            // llama.cpp's clients send empty texts for none.
            if let Some(value) = fields.value(field).filter(|value| *value != "") {
                found.push(Constraint { field: field.into(), form: form(field, kind, &value)? });
            }
        }
        if fields.flag("grammar_lazy")? {
            let message = "grammar_lazy is not supported: send a response_format of type \
                           structural_tag, whose triggers say where the grammar begins";
            return Err(ApiError::unsupported("grammar_lazy", message));
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
        Some("structural_tag") => constraint(FIELD, structural::take(FIELD, format)?),
        Some(kind) => {
            let known = "text, json_object, json_schema and structural_tag are";
            let message = format!("response_format '{kind}' is not known: {known}");
            Err(ApiError::unsupported(FIELD, message))
        }
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
            // It may come as text, as schemas do.
            "structural_tag" => {
                let asked = match value.as_str().map(serde_json::from_str) {
                    None => value.clone(),
                    Some(asked) => asked.unwrap_or_default(),
                };
                let form = structural::take(&field, &asked)?;
                found.push(Constraint { field, form });
            }
            // There is one way here, and nothing to fall back to.
            "disable_fallback" => {}
            name if UNSUPPORTED.contains(&name) => {
                let message = format!("{field} is not supported: leave it out");
                return Err(ApiError::unsupported(&field, message));
            }
            _ => {
                let known = "json, regex, choice, grammar and structural_tag are";
                let message = format!("{field} is not known: {known}");
                return Err(ApiError::field(field, message));
            }
        }
    }
    if found.is_empty() {
        return Err(ApiError::field(FIELD, "structured_outputs gives no form"));
    }
    Ok(found)
}

/// A form of some kind, which a field gives.
pub(crate) fn form(field: &str, kind: &str, value: &Value) -> Result<Form, ApiError> {
    let refused = |what: &str| Err(ApiError::field(field, format!("{field} must be {what}")));
    let text = || value.as_str().map(str::to_owned);
    match kind {
        "json_object" => Ok(Form::Object),
        "json" => match value {
            Value::Null => refused("a schema"),
            // A schema may come as text, which is JSON itself.
            Value::String(text) => match serde_json::from_str(text) {
                Ok(schema) => Ok(Form::Schema(schema, Strictness::Strict)),
                Err(_) => refused("a schema, or the JSON of one"),
            },
            schema => Ok(Form::Schema(schema.clone(), Strictness::Strict)),
        },
        "regex" => text().map_or_else(|| refused("a string"), |text| Ok(Form::Regex(text))),
        "grammar" => text().map_or_else(|| refused("a string"), |text| Ok(Form::Grammar(text))),
        _ => match serde_json::from_value::<Vec<String>>(value.clone()) {
            Ok(choices) if !choices.is_empty() => Ok(Form::Choice(choices)),
            _ => refused("a list of strings"),
        },
    }
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
