//! The formats that models were trained on, and which one a chat template speaks.

use super::hermes;
use super::qwen_coder;
use super::sections::{DEEPSEEK, KIMI, Words};
use serde_json::Value;

pub(crate) const THINK: &str = "<think>";
pub(crate) const THINK_END: &str = "</think>";

/// The markers of gpt-oss, which divide an answer into messages.
pub(crate) const HARMONY: [&str; 7] = [
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|call|>",
    "<|return|>",
];

/// What an answer may consist of besides text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// How tool calls are written; `None` if they are text.
    pub tools: Option<ToolFormat>,
    /// How reasoning is; `None` if it is text.
    pub reasoning: Option<Reasoning>,
}

/// How a family of models writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// JSON objects between `<tool_call>` tags: Qwen3, Hermes.
    Hermes,
    /// Tags with parameters: Qwen3-Coder and Qwen3-Coder-Next.
    QwenCoder,
    /// Special tokens and a fence: DeepSeek V3 and R1.
    DeepSeekV3,
    /// Special tokens: DeepSeek V3.1.
    DeepSeekV31,
    /// Special tokens and numbered ids: Kimi K2.
    KimiK2,
    /// Tags with keys and values: GLM-4.5 to 4.7.
    Glm,
    /// Messages in channels: gpt-oss.
    Harmony,
}

/// How a family of models writes what it thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reasoning {
    /// Between `<think>` tags.
    Think,
    /// In the channel `analysis` of gpt-oss.
    Harmony,
}

/// Names on the command line, those of other servers included; the first of each is ours.
const TOOL_FORMATS: [(ToolFormat, &[&str]); 7] = [
    (ToolFormat::Hermes, &["qwen3", "hermes"]),
    (ToolFormat::QwenCoder, &["qwen3_coder", "qwen3_xml"]),
    (ToolFormat::DeepSeekV3, &["deepseek_v3"]),
    (ToolFormat::DeepSeekV31, &["deepseek_v31"]),
    (ToolFormat::KimiK2, &["kimi_k2"]),
    (ToolFormat::Glm, &["glm4", "glm45", "glm47"]),
    (ToolFormat::Harmony, &["harmony", "openai", "gpt_oss"]),
];

const REASONINGS: [(Reasoning, &[&str]); 2] = [
    (Reasoning::Think, &["think", "qwen3", "deepseek_r1", "deepseek_v3", "glm45", "kimi_k2"]),
    (Reasoning::Harmony, &["harmony", "openai_gptoss"]),
];

impl Format {
    /// The format that a chat template writes past answers in, so the one that the model knows.
    pub(crate) fn of_template(source: &str) -> Format {
        let says = |words: &str| source.contains(words);
        let tools = if says("<|channel|>") && says("<|message|>") {
            Some(ToolFormat::Harmony)
        } else if says(KIMI.call_open) {
            Some(ToolFormat::KimiK2)
        } else if says(DEEPSEEK.call_open) {
            Some(if says("```json") { ToolFormat::DeepSeekV3 } else { ToolFormat::DeepSeekV31 })
        } else if says("<arg_key>") {
            Some(ToolFormat::Glm)
        } else if says(qwen_coder::FUNCTION) {
            Some(ToolFormat::QwenCoder)
        } else if says(hermes::OPEN) {
            Some(ToolFormat::Hermes)
        } else {
            None
        };
        let reasoning = match tools {
            Some(ToolFormat::Harmony) => Some(Reasoning::Harmony),
            _ => (says(THINK) || says(THINK_END)).then_some(Reasoning::Think),
        };
        Format { tools, reasoning }
    }

    /// Tokens that a detokenizer must spell for a parser to see them.
    pub fn markers(self) -> Vec<&'static str> {
        let mut markers = Vec::new();
        if let Some(tools) = self.tools {
            markers.extend(tools.openers().iter().chain(tools.closers()));
            if let Some(words) = tools.words() {
                markers.extend([words.call_open, words.call_close, words.separator]);
            }
        }
        if self.reasoning == Some(Reasoning::Think) {
            markers.extend([THINK, THINK_END]);
        }
        if self.tools == Some(ToolFormat::Harmony) || self.reasoning == Some(Reasoning::Harmony) {
            markers.extend(HARMONY);
        }
        markers
    }
}

impl ToolFormat {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        let row = TOOL_FORMATS.iter().find(|(format, _)| *format == self);
        row.expect("the table has every format").1[0]
    }

    /// By its name on the command line.
    pub fn named(name: &str) -> Option<ToolFormat> {
        TOOL_FORMATS.iter().find(|(_, names)| names.contains(&name)).map(|&(format, _)| format)
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TOOL_FORMATS.iter().flat_map(|(_, names)| *names).copied()
    }

    /// Markers that begin calls.
    pub(crate) fn openers(self) -> &'static [&'static str] {
        match self {
            ToolFormat::Hermes | ToolFormat::Glm => &[hermes::OPEN],
            // Models forget the first.
            ToolFormat::QwenCoder => &[hermes::OPEN, qwen_coder::FUNCTION],
            ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => {
                const { &[DEEPSEEK.open, DEEPSEEK.call_open] }
            }
            ToolFormat::KimiK2 => const { &[KIMI.open, KIMI.call_open] },
            ToolFormat::Harmony => &[],
        }
    }

    /// Markers that end calls.
    pub(super) fn closers(self) -> &'static [&'static str] {
        match self {
            ToolFormat::Hermes | ToolFormat::Glm | ToolFormat::QwenCoder => &[hermes::CLOSE],
            ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => {
                const { &[DEEPSEEK.call_close, DEEPSEEK.close] }
            }
            ToolFormat::KimiK2 => const { &[KIMI.call_close, KIMI.close] },
            ToolFormat::Harmony => &[],
        }
    }

    /// Of formats with sections.
    pub(crate) fn words(self) -> Option<&'static Words> {
        match self {
            ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => Some(&DEEPSEEK),
            ToolFormat::KimiK2 => Some(&KIMI),
            _ => None,
        }
    }

    /// The words that a call begins with, for a model that must make one: written behind the
    /// prompt, they leave no other way than to go on. `function` is the tool to call, if only one
    /// will do; `calls` counts those of the conversation so far. They end where a token would,
    /// since the model has seen no other way of cutting them.
    pub fn opening(self, prompt: &str, function: Option<&Value>, calls: usize) -> String {
        let mut text = String::new();
        if self != ToolFormat::Harmony && prompt.trim_end().ends_with(THINK) {
            text += "\n</think>\n\n";
        }
        let name = function.and_then(|function| function["name"].as_str());
        text += &match (self, name) {
            (ToolFormat::Hermes, None) => "<tool_call>\n{\"name\":".into(),
            (ToolFormat::Hermes, Some(name)) => {
                let name = Value::from(name);
                format!("<tool_call>\n{{\"name\": {name}, \"arguments\":")
            }
            (ToolFormat::QwenCoder, None) => "<tool_call>\n<function".into(),
            (ToolFormat::QwenCoder, Some(name)) => format!("<tool_call>\n<function={name}>\n"),
            (ToolFormat::DeepSeekV3, name) => {
                let head = format!("{}{}function", DEEPSEEK.open, DEEPSEEK.call_open);
                let name = name.map(|name| format!("{name}\n```json\n"));
                head + DEEPSEEK.separator + &name.unwrap_or_default()
            }
            (ToolFormat::DeepSeekV31, name) => {
                let name = name.map(|name| format!("{name}{}", DEEPSEEK.separator));
                format!("{}{}", DEEPSEEK.open, DEEPSEEK.call_open) + &name.unwrap_or_default()
            }
            (ToolFormat::KimiK2, name) => {
                let name = name.map(|name| format!(".{name}:{calls}{}", KIMI.separator));
                let head = format!("{}{}functions", KIMI.open, KIMI.call_open);
                head + &name.unwrap_or_default()
            }
            (ToolFormat::Glm, None) => hermes::OPEN.into(),
            // What follows a name differs between versions; a grammar holds the model to the name.
            (ToolFormat::Glm, Some(name)) => format!("{}{name}", hermes::OPEN),
            (ToolFormat::Harmony, None) => "<|channel|>commentary to=functions".into(),
            (ToolFormat::Harmony, Some(name)) => {
                format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>")
            }
        };
        text
    }
}

impl Reasoning {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        let row = REASONINGS.iter().find(|(format, _)| *format == self);
        row.expect("the table has every format").1[0]
    }

    /// By its name on the command line.
    pub fn named(name: &str) -> Option<Reasoning> {
        REASONINGS.iter().find(|(_, names)| names.contains(&name)).map(|&(format, _)| format)
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        REASONINGS.iter().flat_map(|(_, names)| *names).copied()
    }
}
