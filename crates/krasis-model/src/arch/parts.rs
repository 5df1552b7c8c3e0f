//! Pieces that several architectures share.

use super::config::{ConfigError, Fields};
use crate::model::{Dense, Experts, Gqa, Layer, Model, Rope};
use crate::source::{Class, Run, Source};

/// Sizes that every architecture has.
pub struct Common {
    pub hidden: u32,
    pub vocab: u32,
    pub layers: u32,
    pub eps: f32,
    pub context_max: u32,
    tied: bool,
}

impl Common {
    pub fn of(config: &Fields, default_eps: f64) -> Result<Common, ConfigError> {
        config.only("hidden_act", &["silu"])?;
        let layers = config.size("num_hidden_layers")?;
        config.demand(layers <= 4096, "num_hidden_layers", "at most 4096")?;
        Ok(Common {
            hidden: config.size("hidden_size")?,
            vocab: config.size("vocab_size")?,
            layers,
            eps: config.positive("rms_norm_eps")?.unwrap_or(default_eps) as f32,
            context_max: config.size("max_position_embeddings")?,
            tied: config.flag_or("tie_word_embeddings", false)?,
        })
    }

    /// The tree around the layers. `norm` builds the final norm: not all models mean the same.
    pub fn model(
        &self,
        root: &str,
        layers: Vec<Layer<Source>>,
        norm: impl Fn(String, u32) -> Source,
    ) -> Model<Source> {
        let embed = format!("{root}model.embed_tokens.weight");
        let lm_head = if self.tied { embed.clone() } else { format!("{root}lm_head.weight") };
        Model {
            embed: Source::matrix(embed, self.vocab, self.hidden, Class::Embedding),
            layers,
            norm: norm(format!("{root}model.norm.weight"), self.hidden),
            lm_head: Source::matrix(lm_head, self.vocab, self.hidden, Class::Head),
            hidden: self.hidden,
            vocab: self.vocab,
            eps: self.eps,
            context_max: self.context_max,
        }
    }
}

/// Names below one layer.
pub struct At(String);

impl At {
    pub fn layer(root: &str, layer: u32) -> At {
        At(format!("{root}model.layers.{layer}"))
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}.{rest}", self.0)
    }

    pub fn vector(&self, rest: &str, len: u32) -> Source {
        Source::vector(self.name(rest), len)
    }

    pub fn matrix(&self, rest: &str, rows: u32, cols: u32, class: Class) -> Source {
        Source::matrix(self.name(rest), rows, cols, class)
    }

    /// `{rest}.{gate_proj, up_proj, down_proj}`.
    pub fn mlp(&self, rest: &str, hidden: u32, inter: u32, class: Class) -> Dense<Source> {
        let part = |name: &str| Run::whole(self.name(&format!("{rest}.{name}_proj.weight")), inter);
        Dense {
            gate_up: Source::rows(vec![part("gate"), part("up")], hidden, class),
            down: self.matrix(&format!("{rest}.down_proj.weight"), hidden, inter, class),
            inter,
        }
    }

    pub fn experts(&self, count: u32, inter: u32) -> Experts {
        Experts { prefix: self.name("mlp.experts"), count, inter }
    }
}

/// Sizes and options of grouped-query attention.
pub struct GqaConfig {
    pub heads: u32,
    pub kv_heads: u32,
    pub dim: u32,
    pub qkv_bias: bool,
    pub out_bias: bool,
    pub gated: bool,
}

impl GqaConfig {
    pub fn of(
        config: &Fields,
        hidden: u32,
        qkv_bias: bool,
        out_bias: bool,
    ) -> Result<GqaConfig, ConfigError> {
        let heads = config.size("num_attention_heads")?;
        let kv_heads = config.optional_size("num_key_value_heads")?.unwrap_or(heads);
        config.demand(heads <= 4096, "num_attention_heads", "at most 4096")?;
        config.demand(
            heads.is_multiple_of(kv_heads),
            "num_key_value_heads",
            "a divisor of num_attention_heads",
        )?;
        let dim = match config.optional_size("head_dim")? {
            Some(dim) => dim,
            None => hidden / heads,
        };
        config.demand(
            (1..=8192).contains(&dim) && dim.is_multiple_of(2),
            "head_dim",
            "an even number up to 8192",
        )?;
        Ok(GqaConfig { heads, kv_heads, dim, qkv_bias, out_bias, gated: false })
    }

    /// The block, from `self_attn.{q,k,v,o}_proj`. In a gated one each head of `q_proj` is a query
    /// followed by its gate.
    pub fn block(
        &self,
        at: &At,
        hidden: u32,
        qk_norm: Option<[Source; 2]>,
        rope: Rope<Source>,
    ) -> Gqa<Source> {
        let (queries, keys) = (self.heads * self.dim, self.kv_heads * self.dim);
        let runs = |what: &str| {
            let tensor = |proj: &str, rows| {
                Run::whole(at.name(&format!("self_attn.{proj}_proj.{what}")), rows)
            };
            let (k, v) = (tensor("k", keys), tensor("v", keys));
            if !self.gated {
                return vec![tensor("q", queries), k, v];
            }
            let q = tensor("q", 2 * queries);
            let heads = |first: u32| (0..self.heads).map(move |head| (2 * head + first) * self.dim);
            let part = |first| q.clone().part(first, self.dim);
            let (q, gates): (Vec<_>, Vec<_>) =
                (heads(0).map(part).collect(), heads(1).map(part).collect());
            [q, vec![k, v], gates].concat()
        };
        Gqa {
            heads: self.heads,
            kv_heads: self.kv_heads,
            dim: self.dim,
            qkv: Source::rows(runs("weight"), hidden, Class::Attention),
            qkv_bias: self.qkv_bias.then(|| Source::numbers_of(runs("bias"))),
            qk_norm,
            rope,
            gated: self.gated,
            out: at.matrix("self_attn.o_proj.weight", hidden, queries, Class::Attention),
            out_bias: self.out_bias.then(|| at.vector("self_attn.o_proj.bias", hidden)),
        }
    }
}

/// Elements of a head that turn.
pub fn rotary_dims(config: &Fields, dim: u32, partial: f64) -> Result<u32, ConfigError> {
    let dims = (f64::from(dim) * partial) as u32;
    config.demand(
        dims >= 2 && dims <= dim && dims.is_multiple_of(2),
        "partial_rotary_factor",
        "a share that leaves an even number of rotated elements",
    )?;
    Ok(dims)
}

/// Sizes of the routed experts, which must fit their bank.
pub fn expert_sizes(config: &Fields, count_field: &str) -> Result<(u32, u32, u32), ConfigError> {
    let (count, inter) = (config.size(count_field)?, config.size("moe_intermediate_size")?);
    let top_k = config.size("num_experts_per_tok")?;
    config.demand(
        top_k <= count,
        "num_experts_per_tok",
        &format!("at most {count_field}, which is {count}"),
    )?;
    let widest = u64::from(config.size("hidden_size")?.max(2 * inter));
    let addressable = u64::from(u32::MAX) / widest;
    config.demand(
        u64::from(count) < addressable,
        count_field,
        "small enough to address a layer's experts",
    )?;
    config.demand(top_k <= 1024, "num_experts_per_tok", "at most 1024")?;
    Ok((count, inter, top_k))
}
