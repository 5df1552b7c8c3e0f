//! Fields of a `config.json` that are changed before a model is made up from it.

use serde_json::Value;

/// Reads `FIELD=JSON`.
pub fn field(text: &str) -> Result<(String, Value), String> {
    let (field, value) =
        text.split_once('=').ok_or("write FIELD=JSON, as in num_hidden_layers=12")?;
    let value = serde_json::from_str(value).map_err(|error| format!("{field}: {error}"))?;
    Ok((field.to_owned(), value))
}

/// Changes them.
pub fn apply(config: &mut Value, fields: &[(String, Value)]) {
    for (field, value) in fields {
        // A nested text model's fields are where they count.
        let nested = config.get("text_config").is_some_and(|text| text.get(field).is_some());
        let section = if nested { &mut config["text_config"] } else { &mut *config };
        section[field] = value.clone();
    }
}
