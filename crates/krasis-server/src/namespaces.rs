//! Functions in namespaces, as OpenAI's responses have them: Codex sends the tools of each MCP server
//! in one. Models know functions by one name, so both names are joined for them, and come apart in
//! calls.

use crate::error::ApiError;
use crate::fields::Fields;
use serde_json::Value;
use std::collections::HashMap;

/// The joined name that a call, a choice or a function of a namespace has for the model.
pub(crate) fn called(one: &Value) -> Value {
    match (one["namespace"].as_str(), one["name"].as_str()) {
        (Some(namespace), Some(name)) if !namespace.is_empty() => joined(namespace, name).into(),
        _ => one["name"].clone(),
    }
}

fn joined(namespace: &str, name: &str) -> String {
    format!("{namespace}__{name}")
}

fn join(choice: &mut Value) {
    if choice["namespace"].is_string() {
        choice["name"] = called(choice);
    }
}

/// Namespace and name of joined names.
#[derive(Default)]
pub(crate) struct Namespaces(HashMap<String, (String, String)>);

impl Namespaces {
    /// Puts the functions of a request's namespaces among its other tools.
    pub fn take(fields: &mut Fields) -> Result<Namespaces, ApiError> {
        let mut namespaces = Namespaces::default();
        if let Some(mut choice) = fields.value("tool_choice") {
            join(&mut choice);
            let allowed = choice.get_mut("tools").and_then(Value::as_array_mut);
            allowed.into_iter().flatten().for_each(join);
            fields.put("tool_choice", choice);
        }
        let Some(tools) = fields.take::<Vec<Value>>("tools")? else { return Ok(namespaces) };
        let mut flat = Vec::with_capacity(tools.len());
        for mut tool in tools {
            let inner = tool.get_mut("tools").map(Value::take);
            match (tool["type"].as_str(), tool["name"].as_str(), inner) {
                (Some("namespace"), Some(namespace), Some(Value::Array(inner))) => {
                    flat.extend(inner.into_iter().map(|tool| namespaces.add(namespace, tool)));
                }
                _ => flat.push(tool),
            }
        }
        fields.put("tools", flat.into());
        fields.check()?;
        Ok(namespaces)
    }

    fn add(&mut self, namespace: &str, mut tool: Value) -> Value {
        if let Some(name) = tool["name"].as_str().map(str::to_owned) {
            let joined = joined(namespace, &name);
            tool["name"] = joined.clone().into();
            self.0.insert(joined, (namespace.to_owned(), name));
        }
        tool
    }

    /// Namespace and name, if the function is in one.
    pub fn apart(&self, joined: &str) -> Option<(&str, &str)> {
        self.0.get(joined).map(|(namespace, name)| (&namespace[..], &name[..]))
    }
}
