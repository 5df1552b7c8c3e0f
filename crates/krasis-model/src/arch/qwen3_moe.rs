//! Qwen3-MoE: grouped-query attention with normed query and key heads; softmax routing; no shared
//! expert. Some layers may be dense.

use super::config::{ConfigError, Fields};
use super::parts::{At, Common, GqaConfig, expert_sizes};
use super::rope::Rotary;
use crate::model::{Ffn, Layer, Mixer, Model, Moe};
use crate::source::{Class, Source};
use krasis_ops::{Routing, Score};

pub fn describe(config: &Fields, root: &str) -> Result<Model<Source>, ConfigError> {
    let common = Common::of(config, 1e-6)?;
    config.never("use_sliding_window")?;
    let bias = config.flag_or("attention_bias", false)?;
    let gqa = GqaConfig::of(config, common.hidden, bias, bias)?;
    let rotary = Rotary::of(config, common.context_max)?;
    let ffn = SparseFfn::of(config, false)?;
    let layer = |i: u32| {
        let at = At::layer(root, i);
        let norm = |name: &str| at.vector(&format!("self_attn.{name}.weight"), gqa.dim);
        let qk_norm = Some([norm("q_norm"), norm("k_norm")]);
        Ok(Layer {
            mixer_norm: at.vector("input_layernorm.weight", common.hidden),
            mixer: Mixer::Gqa(gqa.block(&at, common.hidden, qk_norm, rotary.rope(gqa.dim))),
            ffn_norm: at.vector("post_attention_layernorm.weight", common.hidden),
            ffn: if ffn.is_moe(i) {
                Ffn::Moe(ffn.moe(config, &at, common.hidden)?)
            } else {
                Ffn::Dense(at.mlp(
                    "mlp",
                    common.hidden,
                    config.size("intermediate_size")?,
                    Class::DenseMlp,
                ))
            },
        })
    };
    let layers = (0..common.layers).map(layer).collect::<Result<_, ConfigError>>()?;
    Ok(common.model(root, layers, Source::vector))
}

/// Which layers of a Qwen3 model have experts, and how they route.
pub struct SparseFfn {
    step: u32,
    dense: Vec<u32>,
    renormalise: bool,
}

impl SparseFfn {
    /// `renormalise` is what a missing `norm_topk_prob` means.
    pub fn of(config: &Fields, renormalise: bool) -> Result<SparseFfn, ConfigError> {
        Ok(SparseFfn {
            step: config.count_or("decoder_sparse_step", 1)?.max(1),
            dense: config.counts("mlp_only_layers")?,
            renormalise: config.flag_or("norm_topk_prob", renormalise)?,
        })
    }

    pub fn is_moe(&self, layer: u32) -> bool {
        !self.dense.contains(&layer) && (layer + 1).is_multiple_of(self.step)
    }

    /// The experts of a layer, without a shared one.
    pub fn moe(&self, config: &Fields, at: &At, hidden: u32) -> Result<Moe<Source>, ConfigError> {
        let (experts, inter, top_k) = expert_sizes(config, "num_experts")?;
        Ok(Moe {
            router: at.matrix("mlp.gate.weight", experts, hidden, Class::Exact),
            router_bias: None,
            routing: Routing {
                score: Score::Softmax,
                groups: None,
                top_k,
                renormalise: self.renormalise,
            },
            scale: 1.0,
            experts: at.experts(experts, inter),
            shared: None,
        })
    }
}
