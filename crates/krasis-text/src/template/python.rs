//! The Jinja environment of transformers: Python's words where the template engine has its own.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use std::fmt::Write;

/// The one template of an environment.
pub(super) const NAME: &str = "chat";

/// Nested calls of macros. Deep enough for JSON schemas, shallow enough for a small stack.
const RECURSION_MAX: usize = 100;

/// transformers' environment holding one template.
pub(super) fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    // Python calls strings and mappings sequences too; templates guard against strings themselves.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(environment)
}

/// The template's own message, if it was `raise_exception` that stopped it.
pub(super) fn raised(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(raised) = error.downcast_ref::<Raised>() {
            return Some(raised.0.clone());
        }
        cause = error.source();
    }
    None
}

/// A message from `raise_exception`, told apart from the engine's own errors by its type.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "raise_exception was called");
    Err(error.with_source(Raised(message)))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let now = jiff::Zoned::now();
    jiff::fmt::strtime::format(format, &now).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    })
}

/// `{% generation %}` marks the assistant's text for training and prints nothing itself. The
/// engine does not know it, and a condition that always holds does the same.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (inside, after) = (&tag[2..end], &tag[end + 2..]);
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let replaced = match word {
            "generation" => inside.replace(word, "if true"),
            "endgeneration" => inside.replace(word, "endif"),
            _ => inside.to_owned(),
        };
        let _ = write!(text, "{{%{replaced}%}}");
        rest = after;
    }
    text + rest
}

/// transformers' `tojson`: Python's `json.dumps` with `ensure_ascii=False`, without the escaping
/// of HTML that Jinja adds. One byte more would be another token.
fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(indent)?.min(64))),
        },
    };
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators = options.get::<Option<Value>>("separators")?.filter(|value| !value.is_none());
    options.assert_all_used()?;
    let (item, key) = match separators {
        Some(pair) => {
            let text = |index| pair.get_item_by_index(index).map(|text| text.to_string());
            (text(0)?, text(1)?)
        }
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let mut json = Json { text: String::new(), item, key, indent, ensure_ascii, sort_keys };
    json.value(value, 0)?;
    // Not a "safe" string: nothing is escaped, so nothing needs the mark.
    Ok(Value::from(json.text))
}

/// `json.dumps` in the making.
struct Json {
    text: String,
    item: String,
    key: String,
    indent: Option<String>,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > RECURSION_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => {
                let _ = write!(self.text, "{value}");
            }
            ValueKind::Number => self.text.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.group(items, ['[', ']'], depth)?;
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for name in value.try_iter()? {
                    let item = value.get_item(&name)?;
                    items.push((Some(name.to_string()), item));
                }
                if self.sort_keys {
                    items.sort_by(|a: &(Option<String>, Value), b| a.0.cmp(&b.0));
                }
                self.group(items, ['{', '}'], depth)?;
            }
            kind => {
                let message = format!("tojson: a value of type {kind} is not JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn group(
        &mut self,
        items: Vec<(Option<String>, Value)>,
        [open, close]: [char; 2],
        depth: usize,
    ) -> Result<(), Error> {
        self.text.push(open);
        let empty = items.is_empty();
        for (index, (name, item)) in items.into_iter().enumerate() {
            if index > 0 {
                self.text.push_str(&self.item);
            }
            self.line(depth + 1);
            if let Some(name) = name {
                self.string(&name);
                self.text.push_str(&self.key);
            }
            self.value(&item, depth + 1)?;
        }
        if !empty {
            self.line(depth);
        }
        self.text.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            self.text.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            let _ = match c {
                '"' => write!(self.text, "\\\""),
                '\\' => write!(self.text, "\\\\"),
                '\n' => write!(self.text, "\\n"),
                '\r' => write!(self.text, "\\r"),
                '\t' => write!(self.text, "\\t"),
                '\u{8}' => write!(self.text, "\\b"),
                '\u{c}' => write!(self.text, "\\f"),
                c if c < ' ' => write!(self.text, "\\u{:04x}", c as u32),
                c if self.ensure_ascii && !(' '..='~').contains(&c) => {
                    let mut units = [0; 2];
                    let mut units = c.encode_utf16(&mut units).iter();
                    units.try_for_each(|unit| write!(self.text, "\\u{unit:04x}"))
                }
                c => write!(self.text, "{c}"),
            };
        }
        self.text.push('"');
    }
}

/// Python's `repr` of a float: the shortest digits that read back, in scientific notation below
/// 1e-4 and from 1e16 on.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_like_python() {
        for (value, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e300, "1.25e+300"),
        ] {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn generation_tags_become_conditions() {
        for (source, expected) in [
            ("{% generation %}x{% endgeneration %}", "{% if true %}x{% endif %}"),
            ("{%- generation -%}x{%- endgeneration -%}", "{%- if true -%}x{%- endif -%}"),
            (
                "{% if add_generation_prompt %}{% endif %}",
                "{% if add_generation_prompt %}{% endif %}",
            ),
            ("a {% unclosed", "a {% unclosed"),
        ] {
            assert_eq!(without_generation_tags(source), expected);
        }
    }
}
