//! DeepSeek-V2 and -V3, and Kimi K2, which is a V3: latent attention, dense layers first, shared
//! experts. V2 routes by softmax, V3 by sigmoid with a bias that only chooses.

use super::config::{ConfigError, Fields};
use super::parts::{At, Common, expert_sizes};
use super::rope::Rotary;
use crate::model::{Ffn, Layer, Mixer, Mla, MlaHeads, Model, Moe, Query, Shared};
use crate::source::{Class, Origin, Run, Source};
use krasis_ops::{GroupScore, Groups, Routing, Score};

/// Epsilon of the latent norms: a constant of the model code, not `rms_norm_eps`.
const LATENT_EPS: f32 = 1e-6;

pub fn describe_v2(config: &Fields, root: &str) -> Result<Model<Source>, ConfigError> {
    config.never("mlp_bias")?;
    config.only("scoring_func", &["softmax"])?;
    config.only("topk_method", &["greedy", "group_limited_greedy"])?;
    describe(config, root, 0, softmax_moe)
}

pub fn describe_v3(config: &Fields, root: &str) -> Result<Model<Source>, ConfigError> {
    config.only("scoring_func", &["sigmoid"])?;
    config.only("topk_method", &["noaux_tc"])?;
    describe(config, root, 3, |config, at, hidden| sigmoid_moe(config, at, hidden, 2.5))
}

fn describe(
    config: &Fields,
    root: &str,
    dense_default: u32,
    moe: impl Fn(&Fields, &At, u32) -> Result<Moe<Source>, ConfigError>,
) -> Result<Model<Source>, ConfigError> {
    let common = Common::of(config, 1e-6)?;
    let every = config.count_or("moe_layer_freq", 1)?;
    config.demand(every == 1, "moe_layer_freq", "1")?;
    let rotary = Rotary::of(config, common.context_max)?;
    let attention = MlaConfig::of(config)?;
    let dense = config.count_or("first_k_dense_replace", dense_default)?;
    let layer = |i: u32| {
        let at = At::layer(root, i);
        Ok(Layer {
            mixer_norm: at.vector("input_layernorm.weight", common.hidden),
            mixer: Mixer::Mla(attention.block(&at, common.hidden, &rotary)),
            ffn_norm: at.vector("post_attention_layernorm.weight", common.hidden),
            ffn: if i < dense {
                Ffn::Dense(at.mlp(
                    "mlp",
                    common.hidden,
                    config.size("intermediate_size")?,
                    Class::DenseMlp,
                ))
            } else {
                Ffn::Moe(moe(config, &at, common.hidden)?)
            },
        })
    };
    let layers = (0..common.layers).map(layer).collect::<Result<_, ConfigError>>()?;
    Ok(common.model(root, layers, Source::vector))
}

/// Sizes and options of latent attention.
struct MlaConfig {
    heads: MlaHeads,
    rank: Option<u32>,
    bias: bool,
    interleaved: bool,
}

impl MlaConfig {
    fn of(config: &Fields) -> Result<MlaConfig, ConfigError> {
        let heads = MlaHeads {
            count: config.size("num_attention_heads")?,
            nope: config.size("qk_nope_head_dim")?,
            rope: config.size("qk_rope_head_dim")?,
            value: config.size("v_head_dim")?,
            latent: config.size("kv_lora_rank")?,
        };
        config.demand(heads.count <= 4096, "num_attention_heads", "at most 4096")?;
        config.demand(heads.nope <= 8192, "qk_nope_head_dim", "at most 8192")?;
        config.demand(
            heads.rope <= 8192 && heads.rope.is_multiple_of(2),
            "qk_rope_head_dim",
            "an even number up to 8192",
        )?;
        config.demand(heads.value <= 8192, "v_head_dim", "at most 8192")?;
        config.demand(heads.latent <= 65_536, "kv_lora_rank", "at most 65536")?;
        Ok(MlaConfig {
            heads,
            rank: config.optional_size("q_lora_rank")?,
            bias: config.flag_or("attention_bias", false)?,
            interleaved: config.flag_or("rope_interleave", true)?,
        })
    }

    fn block(&self, at: &At, hidden: u32, rotary: &Rotary) -> Mla<Source> {
        let h = self.heads;
        let name = |rest: &str| at.name(&format!("self_attn.{rest}"));
        let biased = |tensor: &str, runs: &dyn Fn(String) -> Vec<Run>| {
            self.bias.then(|| Source::numbers_of(runs(name(&format!("{tensor}.bias")))))
        };
        let whole = |rows: u32| move |tensor: String| vec![Run::whole(tensor, rows)];
        let kept = |tensor: String| {
            let all = Run::whole(tensor, h.latent + h.rope);
            [vec![all.clone().part(0, h.latent)], self.rotated(all.part(h.latent, h.rope))].concat()
        };
        Mla {
            heads: h,
            query: match self.rank {
                None => Query::Direct(Source::rows(
                    self.queries(name("q_proj.weight")),
                    hidden,
                    Class::Attention,
                )),
                Some(rank) => Query::LowRank {
                    down: Source::matrix(name("q_a_proj.weight"), rank, hidden, Class::Attention),
                    down_bias: biased("q_a_proj", &whole(rank)),
                    norm: Source::vector(name("q_a_layernorm.weight"), rank),
                    up: Source::rows(self.queries(name("q_b_proj.weight")), rank, Class::Attention),
                    rank,
                },
            },
            kv_down: Source::rows(
                kept(name("kv_a_proj_with_mqa.weight")),
                hidden,
                Class::Attention,
            ),
            kv_down_bias: biased("kv_a_proj_with_mqa", &kept),
            kv_norm: Source::vector(name("kv_a_layernorm.weight"), h.latent),
            absorb_k: Source {
                origin: Origin::HeadsTransposed {
                    tensor: name("kv_b_proj.weight"),
                    heads: h.count,
                    stride: h.nope + h.value,
                    first: 0,
                },
                rows: h.count * h.latent,
                cols: h.nope,
                class: Class::Absorbed,
            },
            absorb_v: Source::rows(
                self.values(name("kv_b_proj.weight")),
                h.latent,
                Class::Absorbed,
            ),
            out: Source::matrix(name("o_proj.weight"), hidden, h.count * h.value, Class::Attention),
            out_bias: biased("o_proj", &whole(hidden)),
            rope: rotary.rope(h.rope),
            scale: ((h.nope + h.rope) as f32).powf(-0.5) * rotary.mla_scale(),
            eps: LATENT_EPS,
        }
    }

    /// Stored head by head, each `[nope | rope]`; gathered as all unrotated, then all rotated parts.
    fn queries(&self, tensor: String) -> Vec<Run> {
        let h = self.heads;
        let all = Run::whole(tensor, h.query());
        let head =
            |i: u32, first: u32, count: u32| all.clone().part(i * (h.nope + h.rope) + first, count);
        let nope = (0..h.count).map(|i| head(i, 0, h.nope));
        let rope = (0..h.count).flat_map(|i| self.rotated(head(i, h.nope, h.rope)));
        nope.chain(rope).collect()
    }

    /// Rotary pairs as halves, which is how [`krasis_ops::rope`] turns them.
    fn rotated(&self, run: Run) -> Vec<Run> {
        if self.interleaved { run.halves().to_vec() } else { vec![run] }
    }

    /// The value rows of `kv_b_proj`, head by head behind the key rows.
    fn values(&self, tensor: String) -> Vec<Run> {
        let h = self.heads;
        let all = Run::whole(tensor, h.count * (h.nope + h.value));
        (0..h.count).map(|i| all.clone().part(i * (h.nope + h.value) + h.nope, h.value)).collect()
    }
}

/// V2: shares of all experts as weights, never renormalised. (transformers ignores
/// `norm_topk_prob` here, and so does every released V2, where it is false.)
fn softmax_moe(config: &Fields, at: &At, hidden: u32) -> Result<Moe<Source>, ConfigError> {
    let (experts, inter, top_k) = expert_sizes(config, "n_routed_experts")?;
    let grouped = config.text("topk_method")? == Some("group_limited_greedy");
    let groups = if grouped { groups(config, experts, top_k, GroupScore::Largest)? } else { None };
    Ok(Moe {
        router: at.matrix("mlp.gate.weight", experts, hidden, Class::Exact),
        router_bias: None,
        routing: Routing { score: Score::Softmax, groups, top_k, renormalise: false },
        scale: config.number("routed_scaling_factor")?.unwrap_or(1.0) as f32,
        experts: at.experts(experts, inter),
        shared: shared(config, at, hidden, inter, 2)?,
    })
}

/// V3, Kimi K2 and GLM-4.5; `scale` is what a missing `routed_scaling_factor` means.
pub fn sigmoid_moe(
    config: &Fields,
    at: &At,
    hidden: u32,
    scale: f64,
) -> Result<Moe<Source>, ConfigError> {
    let (experts, inter, top_k) = expert_sizes(config, "n_routed_experts")?;
    Ok(Moe {
        router: at.matrix("mlp.gate.weight", experts, hidden, Class::Exact),
        router_bias: Some(at.vector("mlp.gate.e_score_correction_bias", experts)),
        routing: Routing {
            score: Score::Sigmoid,
            groups: groups(config, experts, top_k, GroupScore::TwoLargest)?,
            top_k,
            renormalise: config.flag_or("norm_topk_prob", true)?,
        },
        scale: config.number("routed_scaling_factor")?.unwrap_or(scale) as f32,
        experts: at.experts(experts, inter),
        shared: shared(config, at, hidden, inter, 1)?,
    })
}

fn groups(
    config: &Fields,
    experts: u32,
    top_k: u32,
    by: GroupScore,
) -> Result<Option<Groups>, ConfigError> {
    let count = config.optional_size("n_group")?.unwrap_or(1);
    let kept = config.optional_size("topk_group")?.unwrap_or(1);
    if count == 1 {
        return Ok(None);
    }
    config.demand(
        experts.is_multiple_of(count),
        "n_group",
        &format!("a divisor of n_routed_experts, which is {experts}"),
    )?;
    config.demand(kept <= count, "topk_group", &format!("at most n_group, which is {count}"))?;
    let eligible = kept * (experts / count);
    config.demand(
        top_k <= eligible,
        "topk_group",
        &format!("large enough to hold num_experts_per_tok ({top_k}) experts"),
    )?;
    Ok(Some(Groups { count, kept, by }))
}

/// Several shared experts are stored as one MLP that is as many times as wide.
fn shared(
    config: &Fields,
    at: &At,
    hidden: u32,
    inter: u32,
    default: u32,
) -> Result<Option<Shared<Source>>, ConfigError> {
    let count = config.count_or("n_shared_experts", default)?;
    config.demand(
        u64::from(count) * u64::from(inter) <= 1 << 24,
        "n_shared_experts",
        "a small number",
    )?;
    Ok((count > 0).then(|| Shared {
        mlp: at.mlp("mlp.shared_experts", hidden, count * inter, Class::SharedExpert),
        gate: None,
    }))
}
