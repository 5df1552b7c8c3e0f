//! A request's body, taken field by field so that each complaint names its field.
//!
//! Null means absent everywhere (openai-python sends explicit nulls), and unknown fields are
//! ignored (every client sends extras).

use crate::error::ApiError;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of a JSON object.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let value = serde_json::from_slice(body).map_err(|error| {
            let message = format!(
                "the body is not valid JSON (line {}, column {}): {error}",
                error.line(),
                error.column()
            );
            ApiError::new(StatusCode::BAD_REQUEST, Some("invalid_json"), message)
        })?;
        match value {
            Value::Object(fields) => Ok(Fields(fields)),
            _ => {
                let message = "the body is not a JSON object".into();
                Err(ApiError::new(StatusCode::BAD_REQUEST, Some("invalid_json"), message))
            }
        }
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

    /// A field's value as it came.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
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
