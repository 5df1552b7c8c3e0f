//! Qwen3-Next: gated delta nets, every few layers gated attention instead; softmax routing and a
//! gated shared expert; norms multiply by one plus their weight.

use super::config::{ConfigError, Fields};
use super::parts::{At, Common, GqaConfig, rotary_dims};
use super::qwen3_moe::SparseFfn;
use super::rope::Rotary;
use crate::model::{DeltaNet, Ffn, Layer, Mixer, Model, Shared};
use crate::source::{Class, Run, Source};
use krasis_ops::DeltaHeads;

pub fn describe(config: &Fields, root: &str) -> Result<Model<Source>, ConfigError> {
    let common = Common::of(config, 1e-6)?;
    let hidden = common.hidden;
    let bias = config.flag_or("attention_bias", false)?;
    let gqa = GqaConfig { gated: true, ..GqaConfig::of(config, hidden, bias, bias)? };
    let rotary = Rotary::of(config, common.context_max)?;
    let rotated = rotary_dims(config, gqa.dim, rotary.partial.unwrap_or(0.25))?;
    let (heads, kernel) = delta_heads(config)?;
    let attends = attention_layers(config, common.layers)?;
    let ffn = SparseFfn::of(config, true)?;
    let layer = |i: u32| {
        let at = At::layer(root, i);
        let norm = |name: &str| plus_one(at.name(&format!("self_attn.{name}.weight")), gqa.dim);
        Ok(Layer {
            mixer_norm: plus_one(at.name("input_layernorm.weight"), hidden),
            mixer: if attends[i as usize] {
                let qk_norm = Some([norm("q_norm"), norm("k_norm")]);
                Mixer::Gqa(gqa.block(&at, hidden, qk_norm, rotary.rope(rotated)))
            } else {
                Mixer::DeltaNet(delta_net(&at, heads, kernel, hidden))
            },
            ffn_norm: plus_one(at.name("post_attention_layernorm.weight"), hidden),
            ffn: if ffn.is_moe(i) {
                let inter = config.size("shared_expert_intermediate_size")?;
                let mlp = at.mlp("mlp.shared_expert", hidden, inter, Class::SharedExpert);
                let gate = at.matrix("mlp.shared_expert_gate.weight", 1, hidden, Class::Exact);
                let mut moe = ffn.moe(config, &at, hidden)?;
                moe.shared = Some(Shared { mlp, gate: Some(gate) });
                Ffn::Moe(moe)
            } else {
                Ffn::Dense(at.mlp(
                    "mlp",
                    hidden,
                    config.size("intermediate_size")?,
                    Class::DenseMlp,
                ))
            },
        })
    };
    let layers = (0..common.layers).map(layer).collect::<Result<_, ConfigError>>()?;
    Ok(common.model(root, layers, plus_one))
}

fn plus_one(tensor: String, len: u32) -> Source {
    Source { class: Class::VectorPlusOne, ..Source::vector(tensor, len) }
}

/// Which layers attend: by list, or every `full_attention_interval`-th.
fn attention_layers(config: &Fields, layers: u32) -> Result<Vec<bool>, ConfigError> {
    let Some(types) = config.texts("layer_types")? else {
        let interval = config.optional_size("full_attention_interval")?.unwrap_or(4);
        return Ok((1..=layers).map(|layer| layer.is_multiple_of(interval)).collect());
    };
    config.demand(
        types.len() == layers as usize,
        "layer_types",
        &format!("a list of {layers} layers"),
    )?;
    let kinds = types.into_iter().map(|kind| match kind {
        "full_attention" => Ok(true),
        "linear_attention" => Ok(false),
        other => Err(ConfigError::Unsupported {
            field: "layer_types".into(),
            found: format!("\"{other}\""),
            supported: "full_attention, linear_attention".into(),
        }),
    });
    kinds.collect()
}

fn delta_heads(config: &Fields) -> Result<(DeltaHeads, u32), ConfigError> {
    let heads = DeltaHeads {
        key: config.size("linear_num_key_heads")?,
        value: config.size("linear_num_value_heads")?,
        key_dim: config.size("linear_key_head_dim")?,
        value_dim: config.size("linear_value_head_dim")?,
    };
    config.demand(
        heads.value.is_multiple_of(heads.key),
        "linear_num_value_heads",
        "a multiple of linear_num_key_heads",
    )?;
    for (heads, dim) in [
        ("linear_num_key_heads", "linear_key_head_dim"),
        ("linear_num_value_heads", "linear_value_head_dim"),
    ] {
        config.demand(config.size(heads)? <= 1024, heads, "at most 1024")?;
        config.demand(config.size(dim)? <= 1024, dim, "at most 1024")?;
    }
    let kernel = config.size("linear_conv_kernel_dim")?;
    config.demand((2..=64).contains(&kernel), "linear_conv_kernel_dim", "from 2 to 64")?;
    Ok((heads, kernel))
}

/// The stored projections hold, for each key head, its own parts one after the other; the runs
/// gather all queries, all keys, all values and so on.
fn delta_net(at: &At, h: DeltaHeads, kernel: u32, hidden: u32) -> DeltaNet<Source> {
    let per_key = h.value / h.key;
    let values = per_key * h.value_dim;
    let gather = |tensor: &str, stride: u32, first: u32, count: u32| {
        let whole = Run::whole(at.name(tensor), h.key * stride);
        (0..h.key).map(move |head| whole.clone().part(head * stride + first, count))
    };
    let qkvz = |first, count| {
        gather("linear_attn.in_proj_qkvz.weight", 2 * h.key_dim + 2 * values, first, count)
    };
    let ba = |first| gather("linear_attn.in_proj_ba.weight", 2 * per_key, first, per_key);
    let runs = qkvz(0, h.key_dim)
        .chain(qkvz(h.key_dim, h.key_dim))
        .chain(qkvz(2 * h.key_dim, values))
        .chain(qkvz(2 * h.key_dim + values, values))
        .chain(ba(0))
        .chain(ba(per_key));
    DeltaNet {
        heads: h,
        input: Source::rows(runs.collect(), hidden, Class::Attention),
        conv: at.matrix("linear_attn.conv1d.weight", h.channels(), kernel, Class::Exact),
        kernel,
        a_log: at.vector("linear_attn.A_log", h.value),
        dt_bias: at.vector("linear_attn.dt_bias", h.value),
        norm: at.vector("linear_attn.norm.weight", h.value_dim),
        out: at.matrix("linear_attn.out_proj.weight", hidden, h.width(), Class::Attention),
    }
}
