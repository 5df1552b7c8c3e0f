//! The architectures that exist: each describes itself as one literal from its `config.json`.

mod config;
mod deepseek;
mod glm4_moe;
mod parts;
mod qwen3_moe;
mod qwen3_next;
mod rope;

use crate::model::Model;
use crate::source::Source;
pub use config::ConfigError;
use config::Fields;
use serde_json::Value;

/// A family of checkpoints that one function describes.
pub struct Architecture {
    /// What `architectures` or `model_type` in `config.json` say.
    pub names: &'static [&'static str],
    /// From the text model's config and the prefix of its tensors.
    describe: fn(&Fields, &str) -> Result<Model<Source>, ConfigError>,
}

/// All of them. A new one is a file and a line here.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture { names: &["Qwen3MoeForCausalLM", "qwen3_moe"], describe: qwen3_moe::describe },
    Architecture {
        names: &["DeepseekV2ForCausalLM", "deepseek_v2"],
        describe: deepseek::describe_v2,
    },
    Architecture {
        names: &[
            "DeepseekV3ForCausalLM",
            "deepseek_v3",
            "KimiK2ForCausalLM",
            "kimi_k2",
            "KimiK25ForConditionalGeneration",
            "kimi_k25",
        ],
        describe: deepseek::describe_v3,
    },
    Architecture { names: &["Glm4MoeForCausalLM", "glm4_moe"], describe: glm4_moe::describe },
    Architecture { names: &["Qwen3NextForCausalLM", "qwen3_next"], describe: qwen3_next::describe },
];

/// Where the text model's tensors may start: models with vision nest them.
const PREFIXES: [&str; 2] = ["", "language_model."];

/// Describes the model that `config` (a whole `config.json`) belongs to; `has` tells whether the
/// checkpoint names a tensor.
pub fn describe(config: &Value, has: impl Fn(&str) -> bool) -> Result<Model<Source>, ConfigError> {
    let top = Fields::new(config);
    let text = top.section("text_config")?.unwrap_or(top);
    let named = [&top, &text].map(|fields| fields.names()).concat();
    let architecture = ARCHITECTURES
        .iter()
        .find(|a| named.iter().any(|name| a.names.contains(&name.as_str())))
        .ok_or_else(|| ConfigError::UnknownArchitecture {
            found: if named.is_empty() { "nothing".into() } else { named.join(", ") },
            known: ARCHITECTURES.iter().map(|a| a.names[0]).collect::<Vec<_>>().join(", "),
        })?;
    let prefix =
        PREFIXES.into_iter().find(|prefix| has(&format!("{prefix}model.embed_tokens.weight")));
    (architecture.describe)(&text.with_outer(&top), prefix.unwrap_or(""))
}
