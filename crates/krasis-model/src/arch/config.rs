//! Reading `config.json`: every field by name, with a sentence for each that is missing or odd.

use serde_json::Value;

/// Why a config cannot be run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A field that the architecture cannot do without.
    #[error("config.json lacks `{field}`: the download may be incomplete, or the file was edited")]
    Missing {
        /// Its name.
        field: String,
    },
    /// A field of the wrong type or outside any sensible range.
    #[error("config.json: `{field}` is {found}, but must be {wanted}")]
    Invalid {
        /// Its name.
        field: String,
        /// As found.
        found: String,
        /// What would do.
        wanted: String,
    },
    /// A setting that no block computes: refused, never guessed.
    #[error(
        "config.json: `{field}` is {found}, which Krasis does not support; supported: {supported}"
    )]
    Unsupported {
        /// Its name.
        field: String,
        /// As found.
        found: String,
        /// What would do.
        supported: String,
    },
    /// Another kind of model.
    #[error(
        "config.json names the architecture {found}, which Krasis does not support; supported: {known}"
    )]
    UnknownArchitecture {
        /// `architectures` and `model_type`.
        found: String,
        /// Those that exist.
        known: String,
    },
}

/// One section of a config. A `null` counts as absent, as it does for transformers.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    inner: &'a Value,
    /// Asked for what `inner` lacks: the section around a nested text model.
    outer: Option<&'a Value>,
}

/// No matrix side or count in a config is larger; keeps products of two inside 64 bits.
const SIZE_MAX: u64 = 1 << 24;

impl<'a> Fields<'a> {
    pub fn new(section: &'a Value) -> Fields<'a> {
        Fields { inner: section, outer: None }
    }

    /// Looks into `outer` for what is missing here.
    pub fn with_outer(self, outer: &Fields<'a>) -> Fields<'a> {
        Fields { outer: Some(outer.inner), ..self }
    }

    /// A nested section.
    pub fn section(&self, field: &str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) if value.is_object() => Ok(Some(Fields::new(value))),
            Some(value) => Err(invalid(field, value, "an object")),
        }
    }

    /// What `architectures` and `model_type` say.
    pub fn names(&self) -> Vec<String> {
        let list = self.inner.get("architectures").and_then(Value::as_array);
        let names = list.into_iter().flatten().chain(self.inner.get("model_type"));
        names.filter_map(|name| name.as_str().map(String::from)).collect()
    }

    /// A positive whole number.
    pub fn size(&self, field: &str) -> Result<u32, ConfigError> {
        self.optional_size(field)?.ok_or_else(|| ConfigError::Missing { field: field.into() })
    }

    /// A positive whole number, if there is one.
    pub fn optional_size(&self, field: &str) -> Result<Option<u32>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64() {
            Some(size @ 1..=SIZE_MAX) => Ok(Some(size as u32)),
            _ => Err(invalid(field, value, "a whole number from 1 to 16,777,216")),
        }
    }

    /// A whole number that may be zero.
    pub fn count_or(&self, field: &str, default: u32) -> Result<u32, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        match value.as_u64() {
            Some(count @ 0..=SIZE_MAX) => Ok(count as u32),
            _ => Err(invalid(field, value, "a whole number from 0 to 16,777,216")),
        }
    }

    /// A finite number.
    pub fn number(&self, field: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value
            .as_f64()
            .filter(|x| x.is_finite())
            .map(Some)
            .ok_or_else(|| invalid(field, value, "a number"))
    }

    /// A finite number above zero.
    pub fn positive(&self, field: &str) -> Result<Option<f64>, ConfigError> {
        match self.number(field)? {
            Some(x) if x <= 0.0 => Err(invalid(field, &self.inner[field], "a number above 0")),
            x => Ok(x),
        }
    }

    pub fn flag_or(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| invalid(field, value, "true or false"))
    }

    pub fn text(&self, field: &str) -> Result<Option<&'a str>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| invalid(field, value, "a string"))
    }

    /// A list of whole numbers; absent is empty.
    pub fn counts(&self, field: &str) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(vec![]) };
        let counts = value.as_array().map(|list| {
            list.iter().map(|item| item.as_u64().and_then(|n| u32::try_from(n).ok())).collect()
        });
        counts.flatten().ok_or_else(|| invalid(field, value, "a list of whole numbers"))
    }

    /// A list of strings, if there is one.
    pub fn texts(&self, field: &str) -> Result<Option<Vec<&'a str>>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let texts = value.as_array().map(|list| list.iter().map(Value::as_str).collect());
        texts.flatten().map(Some).ok_or_else(|| invalid(field, value, "a list of strings"))
    }

    /// Refuses every value of a text field but those listed; absent is fine.
    pub fn only(&self, field: &str, supported: &[&str]) -> Result<(), ConfigError> {
        match self.text(field)? {
            Some(found) if !supported.contains(&found) => Err(ConfigError::Unsupported {
                field: field.into(),
                found: format!("\"{found}\""),
                supported: supported.join(", "),
            }),
            _ => Ok(()),
        }
    }

    /// Refuses a flag that is set.
    pub fn never(&self, field: &str) -> Result<(), ConfigError> {
        match self.flag_or(field, false)? {
            true => Err(ConfigError::Unsupported {
                field: field.into(),
                found: "true".into(),
                supported: "false".into(),
            }),
            false => Ok(()),
        }
    }

    /// Refuses a value that breaks a relation to others.
    pub fn demand(&self, holds: bool, field: &str, wanted: &str) -> Result<(), ConfigError> {
        if holds {
            return Ok(());
        }
        Err(invalid(field, self.get(field).unwrap_or(&Value::Null), wanted))
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        let within = |section: &'a Value| section.get(field).filter(|value| !value.is_null());
        within(self.inner).or_else(|| self.outer.and_then(within))
    }
}

fn invalid(field: &str, found: &Value, wanted: &str) -> ConfigError {
    ConfigError::Invalid { field: field.into(), found: found.to_string(), wanted: wanted.into() }
}
