//! What a tool's schema says about its arguments, as far as it tells numbers from texts.

use serde_json::Value;

/// Schemas that are looked at for one argument. References may lead in circles, and alternatives
/// to more of them than there is time for.
const VISITS_MAX: usize = 256;

/// The schemas of a request's tools.
pub(crate) struct Tools(Vec<(String, Value)>);

impl Tools {
    /// From OpenAI's objects.
    pub fn new(tools: &[Value]) -> Tools {
        let tools = tools.iter().filter_map(|tool| {
            let function = tool.get("function").unwrap_or(tool);
            Some((function["name"].as_str()?.to_owned(), function["parameters"].clone()))
        });
        Tools(tools.collect())
    }

    /// Types that an argument of a function may have.
    pub fn types(&self, function: &str, argument: &str) -> Types {
        let mut types = Types::default();
        if let Some((_, schema)) = self.0.iter().find(|(name, _)| name == function) {
            let mut visits = VISITS_MAX;
            let object = resolved(schema, schema, &mut visits);
            match object["properties"].get(argument) {
                Some(property) => types.collect(property, schema, &mut visits),
                None => types.collect(&object["additionalProperties"], schema, &mut visits),
            }
        }
        types
    }
}

/// Types that a value may have; none at all if nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Types {
    pub text: bool,
    null: bool,
    boolean: bool,
    pub integer: bool,
    pub number: bool,
    pub list: bool,
    pub object: bool,
}

impl Types {
    /// Whether every value is text.
    pub fn are_text(self) -> bool {
        self == Types { text: self.text, ..Types::default() }
    }

    /// A value as JSON. What fits no type but text is text, also where the schema has none: it
    /// is for the tool to refuse.
    pub fn json(self, text: &str) -> String {
        let trimmed = text.trim();
        let word = match trimmed {
            "None" => "null",
            "True" => "true",
            "False" => "false",
            word => word,
        };
        let fits = |value: &Value| match value {
            Value::Null => self.null,
            Value::Bool(_) => self.boolean,
            // Beyond 64 bits, digits are a float to the parser.
            Value::Number(_) => self.number || self.integer && !word.contains(['.', 'e', 'E']),
            Value::Array(_) => self.list,
            Value::Object(_) => self.object,
            Value::String(_) => !self.text,
        };
        if self.are_text() {
            return quoted(text);
        }
        match serde_json::from_str::<Value>(word) {
            // The model's own digits, which may be more than a float holds.
            Ok(value) if fits(&value) => word.into(),
            Ok(Value::Number(number)) if self.integer => match whole(&number) {
                Some(whole) => whole.to_string(),
                None => quoted(text),
            },
            _ => quoted(text),
        }
    }

    fn collect(&mut self, schema: &Value, root: &Value, visits: &mut usize) {
        let schema = resolved(schema, root, visits);
        if *visits == 0 {
            return;
        }
        *visits -= 1;
        match &schema["type"] {
            Value::String(name) => self.name(name),
            Value::Array(names) => {
                names.iter().filter_map(Value::as_str).for_each(|name| self.name(name));
            }
            _ => {}
        }
        for alternatives in ["anyOf", "oneOf", "allOf"] {
            for schema in schema[alternatives].as_array().into_iter().flatten() {
                self.collect(schema, root, visits);
            }
        }
        if schema["type"].is_null() {
            let values = schema["enum"].as_array().into_iter().flatten();
            values.chain(schema.get("const")).for_each(|value| self.name(kind(value)));
        }
    }

    fn name(&mut self, name: &str) {
        match name {
            "string" => self.text = true,
            "null" => self.null = true,
            "boolean" => self.boolean = true,
            "integer" => self.integer = true,
            "number" => self.number = true,
            "array" => self.list = true,
            "object" => self.object = true,
            _ => {}
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What a reference within the schema (`#/$defs/point`) points to.
pub(crate) fn resolved<'a>(
    mut schema: &'a Value,
    root: &'a Value,
    visits: &mut usize,
) -> &'a Value {
    let target = |schema: &Value| {
        let pointer = schema["$ref"].as_str()?.strip_prefix('#')?;
        root.pointer(pointer)
    };
    while let Some(next) = target(schema).filter(|_| *visits > 0) {
        *visits -= 1;
        schema = next;
    }
    schema
}

/// 5.0 where 5 is meant.
fn whole(number: &serde_json::Number) -> Option<i64> {
    let float = number.as_f64().filter(|float| float.fract() == 0.0)?;
    (float.abs() < 9e15).then_some(float as i64)
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_may_lead_in_circles() {
        let many = vec![json!({"$ref": "#/$defs/many"}); 100];
        let tools = Tools::new(&[json!({"function": {"name": "f", "parameters": {
            "properties": {
                "x": {"$ref": "#/properties/x"},
                "y": {"$ref": "#/$defs/many"},
                "z": {"anyOf": [{"$ref": "#/$defs/whole"}, {"type": ["null", "boolean"]}]},
            },
            "additionalProperties": {"oneOf": [{"const": 1.5}, {"enum": ["a", []]}]},
            "$defs": {"many": {"anyOf": many}, "whole": {"type": "integer"}},
        }}})]);
        for unknown in ["x", "y"] {
            assert_eq!(tools.types("f", unknown), Types::default());
        }
        let found = tools.types("f", "z");
        let expected = Types { integer: true, null: true, boolean: true, ..Types::default() };
        assert_eq!(found, expected);
        let found = tools.types("f", "else");
        let expected = Types { number: true, text: true, list: true, ..Types::default() };
        assert_eq!(found, expected);
        assert_eq!(tools.types("g", "z"), Types::default());
    }
}
