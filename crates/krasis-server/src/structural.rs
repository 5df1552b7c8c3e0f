//! Structural tags: forms put together, in the notation that vLLM and SGLang have of XGrammar, and in
//! their older one.

use crate::constraint::form;
use crate::error::ApiError;
use krasis_text::{Form, Tag, Tags};
use serde_json::Value;

/// More are refused.
const PARTS_MAX: usize = 256;

/// The form that a `response_format` of type `structural_tag` asks for.
pub(crate) fn take(field: &str, asked: &Value) -> Result<Form, ApiError> {
    let reader = Reader { field };
    match (&asked["format"], &asked["structures"]) {
        (Value::Null, Value::Null) => {
            reader.refuse("needs a format, or structures and triggers".into())
        }
        (Value::Null, _) => reader.tags(asked, "structures", true),
        (format, _) => reader.format(format),
    }
}

struct Reader<'a> {
    field: &'a str,
}

impl Reader<'_> {
    fn refuse<T>(&self, reason: String) -> Result<T, ApiError> {
        Err(ApiError::field(self.field, format!("{} {reason}", self.field)))
    }

    fn format(&self, format: &Value) -> Result<Form, ApiError> {
        let all = |of: &str| -> Result<Vec<Form>, ApiError> {
            self.list(format, of)?.iter().map(|part| self.format(part)).collect()
        };
        let part = |of: &str, kind: &str| form(&format!("{}.{of}", self.field), kind, &format[of]);
        match format["type"].as_str() {
            Some("json_schema") => part("json_schema", "json"),
            Some("regex") => part("pattern", "regex"),
            Some("grammar") => part("grammar", "grammar"),
            Some("const_string") => Ok(Form::Choice(vec![self.text(format, "value")?.to_owned()])),
            Some("any_text") => Ok(Form::Regex("(?s:.*)".into())),
            Some("sequence") => Ok(Form::Sequence(all("elements")?)),
            Some("or") => Ok(Form::Either(all("elements")?)),
            Some("tag") => Ok(Form::Tag(self.tag(format)?)),
            Some("triggered_tags") => self.tags(format, "tags", false),
            Some(kind) => {
                let known = "json_schema, regex, grammar, const_string, any_text, sequence, or, tag \
                             and triggered_tags are";
                let message = format!("{}: '{kind}' is not known here: {known}", self.field);
                Err(ApiError::unsupported(self.field, message))
            }
            None => self.refuse("has a format without a type".into()),
        }
    }

    /// Text with tags; the older notation has schemas in them only.
    fn tags(&self, asked: &Value, list: &str, schemas: bool) -> Result<Form, ApiError> {
        let tag = |tag: &Value| match schemas {
            true => Ok(Tag {
                begin: self.text(tag, "begin")?.to_owned(),
                content: Box::new(form(&format!("{}.schema", self.field), "json", &tag["schema"])?),
                end: self.text(tag, "end")?.to_owned(),
            }),
            false => self.tag(tag),
        };
        let triggers = self.list(asked, "triggers")?.iter().map(|trigger| match trigger.as_str() {
            Some(trigger) => Ok(trigger.to_owned()),
            None => self.refuse("has a trigger that is no text".into()),
        });
        Ok(Form::Tagged(Tags {
            triggers: triggers.collect::<Result<_, _>>()?,
            tags: self.list(asked, list)?.iter().map(tag).collect::<Result<_, ApiError>>()?,
            demanded: asked["at_least_one"] == true,
            single: asked["stop_after_first"] == true,
        }))
    }

    fn tag(&self, tag: &Value) -> Result<Tag, ApiError> {
        // Some ends are lists of alternatives.
        let end = match &tag["end"] {
            Value::Array(ends) if ends.len() == 1 => ends[0].as_str(),
            end => end.as_str(),
        };
        let Some(end) = end else {
            return self.refuse("has a tag whose end is not one text".into());
        };
        let content = Box::new(self.format(&tag["content"])?);
        Ok(Tag { begin: self.text(tag, "begin")?.to_owned(), content, end: end.to_owned() })
    }

    fn text<'a>(&self, of: &'a Value, name: &str) -> Result<&'a str, ApiError> {
        match of[name].as_str() {
            Some(text) => Ok(text),
            None => self.refuse(format!("has a part without '{name}'")),
        }
    }

    fn list<'a>(&self, of: &'a Value, name: &str) -> Result<&'a [Value], ApiError> {
        match of[name].as_array() {
            Some(list) if (1..=PARTS_MAX).contains(&list.len()) => Ok(list),
            _ => self.refuse(format!("needs '{name}', a list of 1 to {PARTS_MAX}")),
        }
    }
}
