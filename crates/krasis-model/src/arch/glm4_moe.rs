//! GLM-4.5 to 4.7: grouped-query attention, half of each head rotated, biases on queries, keys and
//! values but not on the output; sigmoid routing and one shared expert after some dense layers.
//! The layer behind the last one predicts further tokens (MTP) and is not read.

use super::config::{ConfigError, Fields};
use super::deepseek::sigmoid_moe;
use super::parts::{At, Common, GqaConfig, rotary_dims};
use super::rope::Rotary;
use crate::model::{Ffn, Layer, Mixer, Model};
use crate::source::{Class, Source};

pub fn describe(config: &Fields, root: &str) -> Result<Model<Source>, ConfigError> {
    let common = Common::of(config, 1e-5)?;
    let hidden = common.hidden;
    let gqa = GqaConfig::of(config, hidden, config.flag_or("attention_bias", false)?, false)?;
    let rotary = Rotary::of(config, common.context_max)?;
    let rotated = rotary_dims(config, gqa.dim, rotary.partial.unwrap_or(0.5))?;
    let normed = config.flag_or("use_qk_norm", false)?;
    let dense = config.count_or("first_k_dense_replace", 1)?;
    let layer = |i: u32| {
        let at = At::layer(root, i);
        let norm = |name: &str| at.vector(&format!("self_attn.{name}.weight"), gqa.dim);
        let qk_norm = normed.then(|| [norm("q_norm"), norm("k_norm")]);
        Ok(Layer {
            mixer_norm: at.vector("input_layernorm.weight", hidden),
            mixer: Mixer::Gqa(gqa.block(&at, hidden, qk_norm, rotary.rope(rotated))),
            ffn_norm: at.vector("post_attention_layernorm.weight", hidden),
            ffn: if i < dense {
                Ffn::Dense(at.mlp(
                    "mlp",
                    hidden,
                    config.size("intermediate_size")?,
                    Class::DenseMlp,
                ))
            } else {
                Ffn::Moe(sigmoid_moe(config, &at, hidden, 1.0)?)
            },
        })
    };
    let layers = (0..common.layers).map(layer).collect::<Result<_, ConfigError>>()?;
    Ok(common.model(root, layers, Source::vector))
}
