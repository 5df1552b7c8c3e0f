//! The tools of a request, and whether one of them must be called.

use crate::error::ApiError;
use crate::fields::Fields;
use serde_json::{Value, json};

/// Marks a tool that the conversation describes where it was found, and not at the beginning.
pub(crate) const FOUND: &str = "krasis:found";

/// What a request says about tools.
#[derive(Debug)]
pub(crate) struct Tools {
    /// OpenAI's objects, for the types of arguments. Empty for none.
    pub offered: Vec<Value>,
    /// Whether one must be called.
    pub demand: Demand,
    /// Calls that an answer may have.
    pub calls_max: usize,
}

/// Whether the model is free.
#[derive(Debug, PartialEq)]
pub(crate) enum Demand {
    /// It may answer in text.
    Free,
    /// It must call some tool.
    Some,
    /// It must call this function: OpenAI's object, without its envelope.
    Function(Value),
}

impl Demand {
    /// Whether calling this tool would do.
    pub fn admits(&self, tool: &Value) -> bool {
        match self {
            Demand::Free | Demand::Some => true,
            Demand::Function(function) => tool["function"]["name"] == function["name"],
        }
    }
}

impl Tools {
    pub fn take(fields: &mut Fields) -> Result<Tools, ApiError> {
        let offered = offered(fields.take("tools")?.unwrap_or_default())?;
        let choice = fields.value("tool_choice");
        let parallel = fields.take::<bool>("parallel_tool_calls")?.unwrap_or(true);
        let (offered, demand) = chosen(offered, choice.unwrap_or_else(|| "auto".into()))?;
        let one = !parallel || matches!(demand, Demand::Function(_));
        Ok(Tools { offered, demand, calls_max: if one { 1 } else { usize::MAX } })
    }

    /// Those that the prompt begins with.
    pub fn listed(&self) -> Vec<Value> {
        self.offered.iter().filter(|tool| tool.get(FOUND).is_none()).cloned().collect()
    }
}

/// Tools in OpenAI's envelope. What only other servers could run (`web_search`) is left out:
/// clients send it to everyone.
fn offered(tools: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    let mut offered = Vec::with_capacity(tools.len());
    for (index, mut tool) in tools.into_iter().enumerate() {
        if tool["type"].as_str().is_some_and(|kind| kind != "function") {
            continue;
        }
        if tool["function"].is_null() && tool["name"].is_string() {
            tool = json!({"type": "function", "function": tool});
            if let Some(function) = tool["function"].as_object_mut() {
                function.shift_remove("type");
            }
        }
        if !tool["function"]["name"].is_string() {
            let field = format!("tools[{index}]");
            let message = format!("{field} is not a function with a name");
            return Err(ApiError::field(field, message));
        }
        offered.push(tool);
    }
    Ok(offered)
}

/// Applies `tool_choice`.
fn chosen(offered: Vec<Value>, choice: Value) -> Result<(Vec<Value>, Demand), ApiError> {
    let refused = |message: String| Err(ApiError::field("tool_choice", message));
    let mode = choice.as_str().or_else(|| choice["type"].as_str()).unwrap_or_default();
    match mode {
        "auto" => Ok((offered, Demand::Free)),
        "none" => Ok((Vec::new(), Demand::Free)),
        "required" | "any" if offered.is_empty() => {
            refused("tool_choice demands a call, but there are no tools".into())
        }
        "required" | "any" => Ok((offered, Demand::Some)),
        "function" => {
            let name = choice["function"]["name"].as_str().or(choice["name"].as_str());
            let name = name.unwrap_or_default();
            match offered.iter().find(|tool| tool["function"]["name"] == name) {
                Some(tool) => {
                    let function = tool["function"].clone();
                    Ok((offered, Demand::Function(function)))
                }
                None => {
                    refused(format!("tool_choice names '{name}', which is not among the tools"))
                }
            }
        }
        "allowed_tools" => {
            let allowed = choice.get("allowed_tools").unwrap_or(&choice);
            let names = allowed["tools"].as_array().cloned().unwrap_or_default();
            let named = |tool: &Value| {
                let name = &tool["function"]["name"];
                names.iter().any(|one| one["function"]["name"] == *name || one["name"] == *name)
            };
            let offered = offered.into_iter().filter(named).collect();
            let mode = allowed["mode"].as_str().filter(|mode| *mode == "required");
            chosen(offered, mode.unwrap_or("auto").into())
        }
        _ => refused("tool_choice must be none, auto, required or name a function".into()),
    }
}
