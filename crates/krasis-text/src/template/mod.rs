//! Chat templates as Hugging Face models bring them: Jinja, rendered as transformers renders it.

mod messages;
mod probe;
mod python;

use crate::TextError;
use crate::answer::Format;
use crate::tokenizer::{Specials, read_json, read_text};
use minijinja::{Environment, ErrorKind};
use probe::Shape;
use serde_json::{Map, Value};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Larger template sources are refused; the largest in use has 30 KB.
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// Instructions of the template engine per render, and per byte of the conversation on top. A
/// long chat costs about 10 per byte; the constant is spent in 0.1 s.
const FUEL: u64 = 2_000_000;
const FUEL_PER_BYTE: u64 = 100;

/// Bytes that a template may write, and per byte of the conversation on top.
const OUTPUT_BYTES: u64 = 1 << 20;
const OUTPUT_PER_BYTE: u64 = 64;

/// Writes a conversation as the text that the model was trained on.
pub struct Template {
    default: Variant,
    /// Some models bring a second template for conversations with tools.
    tool_use: Option<Variant>,
    specials: Specials,
}

/// One template and what it needs.
struct Variant {
    environment: Environment<'static>,
    shape: Shape,
}

/// What to render besides the messages.
#[derive(Clone, Debug, Default)]
pub struct Render {
    /// OpenAI tool objects; empty for none.
    pub tools: Vec<Value>,
    /// End with the opening of the assistant's turn.
    pub generation_prompt: bool,
    /// Leave the last message open, for the model to continue it.
    pub continue_final: bool,
    /// Further variables, such as `enable_thinking` or `documents`.
    pub variables: Map<String, Value>,
}

impl Template {
    /// Finds the model's template where transformers looks for it: `chat_template.jinja` (with
    /// `additional_chat_templates/tool_use.jinja`), `chat_template.json`, `tokenizer_config.json`.
    pub fn load(dir: &Path, specials: &Specials) -> Result<Template, TextError> {
        let file = dir.join("chat_template.jinja");
        if let Some(source) = read_text(&file)? {
            let tools = read_text(&dir.join("additional_chat_templates/tool_use.jinja"))?;
            return Template::compile(&file, &source, tools.as_deref(), specials);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let file = dir.join(name);
            let Some(config) = read_json(&file)? else { continue };
            match config.get("chat_template") {
                Some(Value::String(source)) => {
                    return Template::compile(&file, source, None, specials);
                }
                Some(Value::Array(named)) => {
                    let find = |name: &str| {
                        let entry = named.iter().find(|entry| entry["name"] == name);
                        entry.and_then(|entry| entry["template"].as_str())
                    };
                    let first = || named.first().and_then(|entry| entry["template"].as_str());
                    if let Some(default) = find("default").or_else(first) {
                        return Template::compile(&file, default, find("tool_use"), specials);
                    }
                }
                _ => {}
            }
        }
        Err(TextError::NoTemplate)
    }

    /// A template from its source.
    pub fn new(source: &str, specials: &Specials) -> Result<Template, TextError> {
        Template::compile(Path::new("the chat template"), source, None, specials)
    }

    fn compile(
        file: &Path,
        source: &str,
        tool_use: Option<&str>,
        specials: &Specials,
    ) -> Result<Template, TextError> {
        let variant = |source: &str| Variant::compile(file.to_owned(), source, specials);
        Ok(Template {
            default: variant(source)?,
            tool_use: tool_use.map(variant).transpose()?,
            specials: specials.clone(),
        })
    }

    /// The template's text, as tools that read models want it.
    pub fn source(&self) -> String {
        let template = self.default.environment.get_template(python::NAME);
        template.expect("it was compiled under this name").source().to_owned()
    }

    /// How the model writes tool calls and reasoning, as far as its template tells.
    pub fn format(&self) -> Format {
        let tools = self.tool_use.as_ref().and_then(|variant| variant.shape.format.tools);
        let default = self.default.shape.format;
        Format { tools: tools.or(default.tools), ..default }
    }

    /// Whether the template writes tools into prompts.
    pub fn takes_tools(&self) -> bool {
        self.tool_use.is_some() || self.default.shape.tools
    }

    /// The prompt for a conversation of OpenAI messages.
    pub fn render(&self, messages: &[Value], render: &Render) -> Result<String, TextError> {
        let variant = match &self.tool_use {
            Some(tool_use) if !render.tools.is_empty() => tool_use,
            _ => &self.default,
        };
        let mut messages = messages::shaped(messages, &variant.shape);
        let open = match render.continue_final {
            true => Some(messages::Open::mark(&mut messages)?),
            false => None,
        };
        let text = variant.run(&messages, render, &self.specials)?;
        match open {
            Some(open) => open.cut(text),
            None => Ok(text),
        }
    }
}

impl Variant {
    fn compile(file: PathBuf, source: &str, specials: &Specials) -> Result<Variant, TextError> {
        if source.len() > SOURCE_BYTES_MAX {
            let reason = format!("the chat template has {} bytes, too many", source.len());
            return Err(TextError::Malformed { file, reason });
        }
        let environment = python::environment(source).map_err(|error| TextError::Malformed {
            file,
            reason: format!("line {} of the chat template: {error}", error.line().unwrap_or(0)),
        })?;
        let mut variant = Variant { environment, shape: Shape::default() };
        variant.shape = Shape::probe(source, |messages, tools| {
            let render =
                Render { tools: tools.to_vec(), generation_prompt: true, ..Render::default() };
            variant.run(messages, &render, specials).ok()
        });
        Ok(variant)
    }

    fn run(
        &self,
        messages: &[Value],
        render: &Render,
        specials: &Specials,
    ) -> Result<String, TextError> {
        let mut context = Map::new();
        for (name, token) in [
            ("bos_token", &specials.bos),
            ("eos_token", &specials.eos),
            ("unk_token", &specials.unk),
            ("pad_token", &specials.pad),
        ] {
            // A tokenizer without BOS leaves the name undefined, which prints as nothing.
            if let Some(token) = token {
                context.insert(name.into(), token.as_str().into());
            }
        }
        context.extend(render.variables.clone());
        context.insert("messages".into(), messages.into());
        // Absent is None and not undefined: templates ask both `if tools` and `tools is not none`.
        let tools = match render.tools.is_empty() {
            true => Value::Null,
            false => render.tools.clone().into(),
        };
        context.insert("tools".into(), tools);
        context.entry("documents").or_insert(Value::Null);
        context.insert("add_generation_prompt".into(), render.generation_prompt.into());

        let bytes = messages::text_bytes(&Value::Object(context.clone()));
        let fuel = FUEL + FUEL_PER_BYTE * bytes;
        let mut output =
            Bounded { text: Vec::new(), left: (OUTPUT_BYTES + OUTPUT_PER_BYTE * bytes) as usize };
        let limit = output.left as u64;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment.get_template(python::NAME).map_err(unrenderable)?;
        let context = minijinja::Value::from(minijinja::value::Serde(&context));
        let result = template.render_captured_to(context, &mut output).map(drop);
        match result {
            Ok(()) => Ok(String::from_utf8_lossy(&output.text).into_owned()),
            Err(error) if error.kind() == ErrorKind::OutOfFuel => {
                Err(TextError::OutOfBounds { bound: "number of steps", limit: fuel })
            }
            Err(error) if error.kind() == ErrorKind::WriteFailure => {
                Err(TextError::OutOfBounds { bound: "number of bytes", limit })
            }
            Err(error) => Err(unrenderable(error)),
        }
    }
}

fn unrenderable(error: minijinja::Error) -> TextError {
    match python::raised(&error) {
        Some(message) => TextError::Refused { message },
        None => {
            TextError::Unrenderable { line: error.line().unwrap_or(0), reason: error.to_string() }
        }
    }
}

/// Takes text up to a bound; a template that writes for ever is stopped by it.
struct Bounded {
    text: Vec<u8>,
    left: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.left {
            return Err(io::Error::other("the output is too long"));
        }
        self.left -= bytes.len();
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
