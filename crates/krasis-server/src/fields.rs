//! A request's body, taken field by field so that each complaint names its field.
//!
//! Null means absent everywhere (openai-python sends explicit nulls), and unknown fields are
//! ignored (every client sends extras).

use crate::error::ApiError;
use crate::limits::Limits;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Fields that hold schemas and grammars, which are compiled.
const SCHEMAS: [&str; 13] = [
    "tools",
    "response_format",
    "text",
    "output_config",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "grammar",
    "ebnf",
    "json_schema",
    "regex",
];

/// Fields that change nothing here, but are no mistake.
const WITHOUT_EFFECT: [&str; 11] = [
    "user",
    "safety_identifier",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "modalities",
    "prediction",
    "verbosity",
    "web_search_options",
];

/// The fields of a JSON object.
pub(crate) struct Fields {
    values: Map<String, Value>,
    /// What they may hold.
    pub limits: Limits,
}

impl Fields {
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Fields, ApiError> {
        let value = serde_json::from_slice(body).map_err(|error| {
            let message = format!(
                "the body is not valid JSON (line {}, column {}): {error}",
                error.line(),
                error.column()
            );
            ApiError::new(StatusCode::BAD_REQUEST, Some("invalid_json"), message)
        })?;
        match value {
            Value::Object(values) => {
                let fields = Fields { values, limits: limits.clone() };
                fields.check()?;
                Ok(fields)
            }
            _ => {
                let message = "the body is not a JSON object".into();
                Err(ApiError::new(StatusCode::BAD_REQUEST, Some("invalid_json"), message))
            }
        }
    }

    /// Refuses what is too large to look at, whichever route it is for.
    pub fn check(&self) -> Result<(), ApiError> {
        let entries = |name| self.values.get(name).and_then(Value::as_array).map_or(0, Vec::len);
        let Limits { messages, tools, .. } = self.limits;
        for (name, most) in [("messages", messages), ("input", messages), ("tools", tools)] {
            if entries(name) as u64 > most {
                let message = format!("{name} holds {} entries, at most {most}", entries(name));
                return Err(ApiError::field(name, message));
            }
        }
        for name in SCHEMAS {
            let bytes = self.values.get(name).map_or(0, |value| value.to_string().len());
            if bytes as u64 > self.limits.schema_bytes {
                let most = self.limits.schema_bytes;
                let message = format!("{name} takes {bytes} bytes, at most {most}");
                return Err(ApiError::field(name, message));
            }
        }
        Ok(())
    }

    /// A field's value, `None` if absent or null.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(value) => match serde_json::from_value(value) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(ApiError::field(name, format!("{name}: {error}"))),
            },
        }
    }

    /// A field's value, left where it is; `None` if absent or null.
    pub fn look(&self, name: &str) -> Option<&Value> {
        self.values.get(name).filter(|value| !value.is_null())
    }

    /// A field that nobody has taken, and that says something.
    pub fn unknown(&self) -> Option<&str> {
        let known = |name: &str| WITHOUT_EFFECT.contains(&name);
        let mut left = self.values.iter().filter(|(_, value)| !value.is_null());
        left.find(|(name, _)| !known(name)).map(|(name, _)| &**name)
    }

    /// Gives a field a value.
    pub fn put(&mut self, name: &str, value: Value) {
        self.values.insert(name.into(), value);
    }

    /// A field's value as it came.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.values.shift_remove(name).filter(|value| !value.is_null())
    }

    /// A number that must lie within bounds.
    pub fn within(&mut self, name: &str, low: u32, high: u32) -> Result<Option<u32>, ApiError> {
        let value: Option<u32> = self.take(name)?;
        match value.filter(|value| !(low..=high).contains(value)) {
            None => Ok(value),
            Some(value) => Err(ApiError::field(
                name,
                format!("{name} is {value}, but must be between {low} and {high}"),
            )),
        }
    }

    /// A switch, off if absent.
    pub fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.take(name)?.unwrap_or(false))
    }
}
