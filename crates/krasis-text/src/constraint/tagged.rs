//! Arguments between tags (Qwen3-Coder, GLM): texts as they stand, all else as JSON.
//!
//! What a value means follows from its schema (see [`crate::answer`]'s `Types`). So a value that may
//! be text and something else is text only where it looks like nothing else.

use super::calls::{Arguments, Tool};
use super::form::Strictness;
use super::lark::{Lark, literal};
use crate::ToolFormat;
use crate::answer::words::{
    KEY, KEY_END, PARAMETER, PARAMETER_END, Tools, Types, VALUE, VALUE_END, resolved,
};
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};

/// Schemas that are looked at for one argument.
const VISITS_MAX: usize = 256;

/// A format's tags.
pub(super) struct Tags {
    key: &'static str,
    /// Between key and value: a text, a line break that some versions leave out, a text.
    value: [&'static str; 3],
    /// Behind the value, likewise.
    end: [&'static str; 3],
    /// What no text may hold, or it would end there.
    forbidden: &'static [&'static str],
}

const QWEN_CODER: Tags = Tags {
    key: PARAMETER,
    value: [">\n", "", ""],
    end: ["\n</parameter>\n", "", ""],
    forbidden: &[PARAMETER_END, "</function>"],
};

const GLM: Tags = Tags {
    key: KEY,
    value: [KEY_END, "\n", VALUE],
    end: [VALUE_END, "\n", ""],
    forbidden: &[VALUE_END],
};

impl Tags {
    pub fn of(format: ToolFormat) -> Option<&'static Tags> {
        match format {
            ToolFormat::QwenCoder => Some(&QWEN_CODER),
            ToolFormat::Glm => Some(&GLM),
            _ => None,
        }
    }
}

/// Keywords of an object that tags can keep to.
const KEPT: [&str; 4] = ["type", "properties", "required", "additionalProperties"];

/// Keywords that ask for nothing.
const SILENT: [&str; 11] = [
    "$defs",
    "definitions",
    "$schema",
    "$id",
    "id",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
];

/// All arguments of a call; a sentence if the schema cannot be kept to.
pub(super) fn arguments(tags: &Tags, tool: &Tool, lark: &mut Lark) -> Result<String, String> {
    let any = || json!({"additionalProperties": true});
    let (schema, strictness) = match &tool.arguments {
        Arguments::Free => (any(), Strictness::Lenient),
        Arguments::Schema(schema, strictness) => (schema.clone(), *strictness),
    };
    let root = &schema;
    let object = resolved(root, root, &mut VISITS_MAX.clone());
    if strictness == Strictness::Strict {
        let told = |key: &&String| KEPT.contains(&key.as_str()) || SILENT.contains(&key.as_str());
        if let Some(odd) = object.as_object().and_then(|all| all.keys().find(|key| !told(key))) {
            return Err(format!("arguments in this model's format cannot keep to '{odd}'"));
        }
    }
    let types = Tools::new(std::slice::from_ref(tool.value));
    let none = Map::new();
    let properties = object["properties"].as_object().unwrap_or(&none);
    let required: Vec<&str> =
        object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let further = &object["additionalProperties"];
    let of = |key: &str| properties.get(key).unwrap_or(further);
    let unlisted = required.iter().filter(|key| !properties.contains_key(**key));
    let mut all = Vec::new();
    for key in properties.keys().map(String::as_str).chain(unlisted.copied()) {
        let value =
            Argument { schema: of(key), root, types: types.types(tool.name, key), strictness };
        let value = value.rule(tags, lark)?;
        if key.contains(['>', '<', '\n']) {
            return Err(format!("the argument '{key}' cannot be written in this model's format"));
        }
        let head = lark.text(&format!("{}{key}{}", tags.key, tags.value[0]));
        let pair = lark.rule(&format!("{head} {} {value}", optional(&tags.value, lark)));
        all.push(if required.contains(&key) { pair } else { format!("({pair})?") });
    }
    if properties.is_empty() && *further != false && required.is_empty() {
        // Names that nobody has given.
        let types = types.types(tool.name, "");
        let value = Argument { schema: further, root, types, strictness }.rule(tags, lark)?;
        let name = lark.terminal("/[A-Za-z_][A-Za-z0-9_]{0,63}/");
        let (open, head) = (lark.text(tags.key), lark.text(tags.value[0]));
        let between = optional(&tags.value, lark);
        let pair = lark.rule(&format!("{open} {name} {head} {between} {value}"));
        all.push(format!("({pair})*"));
    }
    Ok(all.join(" "))
}

/// The rest of a tag behind its first part.
fn optional(tag: &[&'static str; 3], lark: &Lark) -> String {
    match tag[1] {
        "" => String::new(),
        line => format!("({})? {}", lark.text(line), lark.text(tag[2])),
    }
}

/// One argument.
struct Argument<'a> {
    schema: &'a Value,
    root: &'a Value,
    types: Types,
    strictness: Strictness,
}

/// What a text must be.
enum Text {
    Exactly(String),
    /// Its length, and an expression that it must hold.
    Like {
        least: u64,
        most: Option<u64>,
        pattern: Option<String>,
    },
}

impl Argument<'_> {
    /// The value and the tag behind it.
    fn rule(&self, tags: &Tags, lark: &mut Lark) -> Result<String, String> {
        let mut ways = Vec::new();
        if self.types.are_text() || self.types.text {
            let mut texts = Vec::new();
            self.texts(self.schema, &mut VISITS_MAX.clone(), &mut texts)?;
            for text in texts {
                ways.push(self.text(&text, tags, lark)?);
            }
        }
        if !self.types.are_text() {
            let schema = self.json()?;
            if !schema["anyOf"].as_array().is_some_and(Vec::is_empty) {
                let json = lark.json(schema, self.strictness);
                let end = format!("{} {}", lark.text(tags.end[0]), optional(&tags.end, lark));
                ways.push(format!("{json} {end}"));
            }
        }
        match ways.is_empty() {
            true => Err("an argument has a schema that nothing fits".into()),
            false => Ok(lark.rule(&ways.join("\n | "))),
        }
    }

    fn text(&self, text: &Text, tags: &Tags, lark: &mut Lark) -> Result<String, String> {
        let mut body = match text {
            Text::Exactly(text) if tags.forbidden.iter().any(|tag| text.contains(tag)) => {
                return Err(format!("'{text}' cannot be written in this model's format"));
            }
            Text::Exactly(text) => literal(text),
            Text::Like { least, most, pattern } => {
                let forbidden: Vec<String> =
                    tags.forbidden.iter().map(|tag| literal(tag)).collect();
                // What a text is not may be bytes that are no text.
                let forbidden = format!("~(/(?s:.*)/ ({}) /(?s:.*)/)", forbidden.join(" | "));
                let mut all = vec!["/(?s:.*)/".to_owned(), forbidden];
                if *least > 0 || most.is_some() {
                    let most = most.map_or(String::new(), |most| most.to_string());
                    all.push(format!("/(?s:.{{{least},{most}}})/"));
                }
                all.extend(pattern.clone());
                if !self.types.are_text() {
                    all.push("/([^\\s{\\[+\\-.0-9](?s:.*))?/".into());
                }
                all.join(" & ")
            }
        };
        // A text and the tag that ends it are one terminal: where one ends, only the other tells.
        if !lark.has_token(tags.end[0]) {
            let value = lark.terminal(&body);
            body = format!("{value} {}", literal(tags.end[0]));
            return Ok(format!("{} {}", lark.terminal(&body), optional(&tags.end, lark)));
        }
        let (value, end) = (lark.terminal(&body), lark.text(tags.end[0]));
        // An empty terminal is none.
        Ok(format!("({value})? {end} {}", optional(&tags.end, lark)))
    }

    /// Texts that a schema allows.
    fn texts(
        &self,
        schema: &Value,
        visits: &mut usize,
        texts: &mut Vec<Text>,
    ) -> Result<(), String> {
        let schema = resolved(schema, self.root, visits);
        if *visits == 0 {
            return Err("a schema leads in circles".into());
        }
        *visits -= 1;
        for kind in ["anyOf", "oneOf"] {
            if let Some(ways) = schema[kind].as_array() {
                self.only(schema, &[kind])?;
                return ways.iter().try_for_each(|way| self.texts(way, visits, texts));
            }
        }
        let values = schema["enum"].as_array().map(Vec::as_slice);
        let values = values.or(schema.get("const").map(std::slice::from_ref));
        if let Some(values) = values {
            self.only(schema, &["enum", "const", "type"])?;
            let exact = values.iter().filter_map(Value::as_str);
            texts.extend(exact.map(|text| Text::Exactly(text.into())));
            return Ok(());
        }
        let is_text = match &schema["type"] {
            Value::Null => true,
            Value::Array(kinds) => kinds.iter().any(|kind| kind == "string"),
            kind => kind == "string",
        };
        if *schema == false {
            return Err("an argument has a schema that nothing fits".into());
        }
        if !is_text {
            return Ok(());
        }
        self.only(schema, &["type", "minLength", "maxLength", "pattern"])?;
        texts.push(Text::Like {
            least: schema["minLength"].as_u64().unwrap_or(0),
            most: schema["maxLength"].as_u64(),
            pattern: schema["pattern"].as_str().map(searched).transpose()?,
        });
        Ok(())
    }

    /// Refuses keywords that a text cannot be held to, unless they are left to the model.
    fn only(&self, schema: &Value, kept: &[&str]) -> Result<(), String> {
        if self.strictness == Strictness::Lenient {
            return Ok(());
        }
        // Keywords of other types say nothing about texts.
        const COMBINED: [&str; 8] =
            ["allOf", "not", "if", "anyOf", "oneOf", "enum", "const", "format"];
        let odd = |key: &&&str| !kept.contains(*key) && schema.get(**key).is_some();
        match COMBINED.iter().chain(&["minLength", "maxLength", "pattern"]).find(odd) {
            Some(odd) => Err(format!(
                "a text in this model's format cannot keep to '{odd}' as it stands here"
            )),
            None => Ok(()),
        }
    }

    /// The same schema without texts, by itself.
    fn json(&self) -> Result<Value, String> {
        let mut schema = match self.types.text {
            true => self.without_text(self.schema, &mut VISITS_MAX.clone())?,
            false => self.schema.clone(),
        };
        if let Some(schema) = schema.as_object_mut() {
            for shared in ["$defs", "definitions"] {
                if let Some(shared_schemas) = self.root.get(shared) {
                    schema.entry(shared).or_insert_with(|| shared_schemas.clone());
                }
            }
        }
        Ok(schema)
    }

    fn without_text(&self, schema: &Value, visits: &mut usize) -> Result<Value, String> {
        let mut schema = resolved(schema, self.root, visits).clone();
        if *visits == 0 {
            return Err("a schema leads in circles".into());
        }
        *visits -= 1;
        for kind in ["anyOf", "oneOf"] {
            if let Some(ways) = schema[kind].as_array() {
                let ways = ways.iter().map(|way| self.without_text(way, visits));
                let ways: Vec<Value> = ways.collect::<Result<_, _>>()?;
                let ways: Vec<Value> =
                    ways.into_iter().filter(|way| *way != json!({"anyOf": []})).collect();
                return Ok(json!({ "anyOf": ways }));
            }
        }
        for kind in ["enum", "type"] {
            if let Some(values) = schema.get_mut(kind).and_then(Value::as_array_mut) {
                values.retain(|value| match kind {
                    "enum" => !value.is_string(),
                    _ => value != "string",
                });
                if values.is_empty() {
                    return Ok(json!({"anyOf": []}));
                }
                return Ok(schema);
            }
        }
        let text = schema["type"] == "string" || schema["const"].is_string();
        Ok(if text { json!({"anyOf": []}) } else { schema })
    }
}

/// A pattern may match anywhere in a text.
fn searched(pattern: &str) -> Result<String, String> {
    let start = pattern.strip_prefix('^');
    let rest = start.unwrap_or(pattern);
    let escaped = rest.strip_suffix('$').is_some_and(|rest| rest.ends_with('\\'));
    let end = if escaped { None } else { rest.strip_suffix('$') };
    let body = end.unwrap_or(rest);
    let anchored = start.is_some() || end.is_some();
    if body.contains('$') || anchored && body.contains('|') && !body.starts_with('(') {
        return Err(format!("the pattern '{pattern}' cannot be kept to in this model's format"));
    }
    let around = |anchor: Option<&str>| if anchor.is_some() { "" } else { "(?s:.*)" };
    Ok(format!("/{}({}){}/", around(start), regex_to_lark(body, "dw"), around(end)))
}
