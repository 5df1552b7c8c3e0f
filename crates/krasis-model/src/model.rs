//! A model as one tree. With `W = Source` the leaves say where weights come from; with
//! `W = Weight` they are loaded. Sizing, loading and running are functions over the same tree.

use krasis_ops::{DeltaHeads, Routing};

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Model<W> {
    /// `[vocab, hidden]`.
    pub embed: W,
    /// In order.
    pub layers: Vec<Layer<W>>,
    /// `[hidden]` before the output matrix.
    pub norm: W,
    /// `[vocab, hidden]`.
    pub lm_head: W,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Tokens that exist.
    pub vocab: u32,
    /// Of all norms but MLA's latent ones.
    pub eps: f32,
    /// Positions that the model was made for.
    pub context_max: u32,
}

/// `residual += mixer(norm(residual)); residual += ffn(norm(residual))`.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer<W> {
    /// `[hidden]`.
    pub mixer_norm: W,
    /// What mixes tokens.
    pub mixer: Mixer<W>,
    /// `[hidden]`.
    pub ffn_norm: W,
    /// What works on each token alone.
    pub ffn: Ffn<W>,
}

/// The ways to mix tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Mixer<W> {
    /// Grouped-query attention.
    Gqa(Gqa<W>),
    /// Multi-head latent attention.
    Mla(Mla<W>),
    /// Gated delta net.
    DeltaNet(DeltaNet<W>),
}

/// Grouped-query attention: Qwen3, GLM-4.5, every few layers of Qwen3-Next.
#[derive(Clone, Debug, PartialEq)]
pub struct Gqa<W> {
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Elements of a head.
    pub dim: u32,
    /// `[q | k | v | gate, hidden]`; the gate only if `gated`.
    pub qkv: W,
    /// Of all of `qkv`.
    pub qkv_bias: Option<W>,
    /// `[dim]` norms of each query and key head, before rotation.
    pub qk_norm: Option<[W; 2]>,
    /// Rotation of queries and keys.
    pub rope: Rope<W>,
    /// Whether the mix is multiplied by the sigmoid of a gate before `out`.
    pub gated: bool,
    /// `[hidden, heads · dim]`.
    pub out: W,
    /// `[hidden]`.
    pub out_bias: Option<W>,
}

/// Multi-head latent attention (DeepSeek-V2).
#[derive(Clone, Debug, PartialEq)]
pub struct Mla<W> {
    /// Dimensions.
    pub heads: MlaHeads,
    /// Hidden state to `[all unrotated parts | all rotated parts]` of the queries.
    pub query: Query<W>,
    /// `[latent | rope, hidden]`: what a token keeps.
    pub kv_down: W,
    /// `[latent + rope]`.
    pub kv_down_bias: Option<W>,
    /// `[latent]`.
    pub kv_norm: W,
    /// `[heads · latent, nope]`: a head's query into the latent space.
    pub absorb_k: W,
    /// `[heads · value, latent]`: a head's latent mix to its value.
    pub absorb_v: W,
    /// `[hidden, heads · value]`.
    pub out: W,
    /// `[hidden]`.
    pub out_bias: Option<W>,
    /// Rotation of the `rope` parts.
    pub rope: Rope<W>,
    /// Of the softmax: `(nope + rope)^-½`, times mscale² under YaRN.
    pub scale: f32,
    /// Of the latent norms, whatever the model's own is.
    pub eps: f32,
}

/// Dimensions of latent attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlaHeads {
    /// Heads.
    pub count: u32,
    /// Unrotated elements of a query or key.
    pub nope: u32,
    /// Rotated elements of a query or key; the key's are shared by all heads.
    pub rope: u32,
    /// Elements of a value.
    pub value: u32,
    /// Elements that a token keeps for keys and values.
    pub latent: u32,
}

impl MlaHeads {
    /// Columns of all queries.
    pub const fn query(self) -> u32 {
        self.count * (self.nope + self.rope)
    }
}

/// How latent attention makes its queries.
#[derive(Clone, Debug, PartialEq)]
pub enum Query<W> {
    /// `[query, hidden]`.
    Direct(W),
    /// Through a normed bottleneck.
    LowRank {
        /// `[rank, hidden]`.
        down: W,
        /// `[rank]`.
        down_bias: Option<W>,
        /// `[rank]`.
        norm: W,
        /// `[query, rank]`.
        up: W,
        /// Width of the bottleneck.
        rank: u32,
    },
}

/// Gated delta net (Qwen3-Next's linear attention).
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaNet<W> {
    /// Dimensions.
    pub heads: DeltaHeads,
    /// `[q | k | v | z | b | a, hidden]`.
    pub input: W,
    /// `[channels, kernel]`.
    pub conv: W,
    /// Taps of the convolution.
    pub kernel: u32,
    /// `[value heads]`.
    pub a_log: W,
    /// `[value heads]`.
    pub dt_bias: W,
    /// `[value dim]`.
    pub norm: W,
    /// `[hidden, value heads · value dim]`.
    pub out: W,
}

impl<W> DeltaNet<W> {
    /// Columns of the input projection.
    pub const fn input_width(&self) -> u32 {
        self.heads.channels() + self.heads.width() + 2 * self.heads.value
    }
}

/// Rotary embedding of the first `2 · freqs` elements of a head.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope<W> {
    /// Radians per position of each pair.
    pub freqs: W,
    /// Factor of cosine and sine (YaRN's attention factor).
    pub scale: f32,
}

/// What works on each token alone.
#[derive(Clone, Debug, PartialEq)]
pub enum Ffn<W> {
    /// One MLP.
    Dense(Dense<W>),
    /// A mixture of experts.
    Moe(Moe<W>),
}

/// `down · (silu(gate · x) · (up · x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense<W> {
    /// `[gate | up, hidden]`.
    pub gate_up: W,
    /// `[hidden, inter]`.
    pub down: W,
    /// Rows of the gate.
    pub inter: u32,
}

/// `scale · Σ weight · expert(x) + shared(x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe<W> {
    /// `[experts, hidden]`.
    pub router: W,
    /// `[experts]`, added for the choice only.
    pub router_bias: Option<W>,
    /// How experts are chosen.
    pub routing: Routing,
    /// The routed scaling factor.
    pub scale: f32,
    /// The routed experts.
    pub experts: Experts,
    /// The expert of every token.
    pub shared: Option<Shared<W>>,
}

/// Routed experts stay a description: they never enter the tree, but live in the engine's banks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Tensors are `{prefix}.{expert}.{gate_proj, up_proj, down_proj}`.
    pub prefix: String,
    /// How many.
    pub count: u32,
    /// Rows of an expert's gate.
    pub inter: u32,
}

/// The expert of every token.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared<W> {
    /// Several shared experts are one wide MLP.
    pub mlp: Dense<W>,
    /// `[1, hidden]`: the sigmoid of its product weighs the shared expert (Qwen3-Next).
    pub gate: Option<W>,
}

/// Walking the tree: every leaf is handed to `f`, in the order of computation.
impl<W> Model<W> {
    /// The norm that the residual stream goes through on its way into a layer, or after the last one to
    /// the output matrix.
    pub fn norm_before(&self, index: usize) -> &W {
        self.layers.get(index).map_or(&self.norm, |layer| &layer.mixer_norm)
    }

    /// The same model with other leaves.
    pub fn try_map<V, E>(&self, mut f: impl FnMut(&W) -> Result<V, E>) -> Result<Model<V>, E> {
        Ok(Model {
            embed: f(&self.embed)?,
            layers: self
                .layers
                .iter()
                .map(|layer| layer.try_map(&mut f))
                .collect::<Result<_, E>>()?,
            norm: f(&self.norm)?,
            lm_head: f(&self.lm_head)?,
            hidden: self.hidden,
            vocab: self.vocab,
            eps: self.eps,
            context_max: self.context_max,
        })
    }
}

impl<W> Layer<W> {
    /// The same layer with other leaves.
    pub fn try_map<V, E>(&self, f: &mut impl FnMut(&W) -> Result<V, E>) -> Result<Layer<V>, E> {
        Ok(Layer {
            mixer_norm: f(&self.mixer_norm)?,
            mixer: match &self.mixer {
                Mixer::Gqa(gqa) => Mixer::Gqa(gqa.try_map(f)?),
                Mixer::Mla(mla) => Mixer::Mla(mla.try_map(f)?),
                Mixer::DeltaNet(net) => Mixer::DeltaNet(net.try_map(f)?),
            },
            ffn_norm: f(&self.ffn_norm)?,
            ffn: match &self.ffn {
                Ffn::Dense(dense) => Ffn::Dense(dense.try_map(f)?),
                Ffn::Moe(moe) => Ffn::Moe(moe.try_map(f)?),
            },
        })
    }
}

impl<W> Gqa<W> {
    fn try_map<V, E>(&self, f: &mut impl FnMut(&W) -> Result<V, E>) -> Result<Gqa<V>, E> {
        Ok(Gqa {
            qkv: f(&self.qkv)?,
            qkv_bias: self.qkv_bias.as_ref().map(&mut *f).transpose()?,
            qk_norm: match &self.qk_norm {
                Some([q, k]) => Some([f(q)?, f(k)?]),
                None => None,
            },
            rope: self.rope.try_map(f)?,
            out: f(&self.out)?,
            out_bias: self.out_bias.as_ref().map(&mut *f).transpose()?,
            heads: self.heads,
            kv_heads: self.kv_heads,
            dim: self.dim,
            gated: self.gated,
        })
    }
}

impl<W> Mla<W> {
    fn try_map<V, E>(&self, f: &mut impl FnMut(&W) -> Result<V, E>) -> Result<Mla<V>, E> {
        Ok(Mla {
            query: match &self.query {
                Query::Direct(up) => Query::Direct(f(up)?),
                Query::LowRank { down, down_bias, norm, up, rank } => Query::LowRank {
                    down: f(down)?,
                    down_bias: down_bias.as_ref().map(&mut *f).transpose()?,
                    norm: f(norm)?,
                    up: f(up)?,
                    rank: *rank,
                },
            },
            kv_down: f(&self.kv_down)?,
            kv_down_bias: self.kv_down_bias.as_ref().map(&mut *f).transpose()?,
            kv_norm: f(&self.kv_norm)?,
            absorb_k: f(&self.absorb_k)?,
            absorb_v: f(&self.absorb_v)?,
            out: f(&self.out)?,
            out_bias: self.out_bias.as_ref().map(&mut *f).transpose()?,
            rope: self.rope.try_map(f)?,
            heads: self.heads,
            scale: self.scale,
            eps: self.eps,
        })
    }
}

impl<W> DeltaNet<W> {
    fn try_map<V, E>(&self, f: &mut impl FnMut(&W) -> Result<V, E>) -> Result<DeltaNet<V>, E> {
        Ok(DeltaNet {
            input: f(&self.input)?,
            conv: f(&self.conv)?,
            a_log: f(&self.a_log)?,
            dt_bias: f(&self.dt_bias)?,
            norm: f(&self.norm)?,
            out: f(&self.out)?,
            heads: self.heads,
            kernel: self.kernel,
        })
    }
}

impl<W> Rope<W> {
    fn try_map<V, E>(&self, f: &mut impl FnMut(&W) -> Result<V, E>) -> Result<Rope<V>, E> {
        Ok(Rope { freqs: f(&self.freqs)?, scale: self.scale })
    }
}

impl<W> Dense<W> {
    fn try_map<V, E>(&self, f: &mut impl FnMut(&W) -> Result<V, E>) -> Result<Dense<V>, E> {
        Ok(Dense { gate_up: f(&self.gate_up)?, down: f(&self.down)?, inter: self.inter })
    }
}

impl<W> Moe<W> {
    fn try_map<V, E>(&self, f: &mut impl FnMut(&W) -> Result<V, E>) -> Result<Moe<V>, E> {
        Ok(Moe {
            router: f(&self.router)?,
            router_bias: self.router_bias.as_ref().map(&mut *f).transpose()?,
            shared: match &self.shared {
                Some(shared) => Some(Shared {
                    mlp: shared.mlp.try_map(f)?,
                    gate: shared.gate.as_ref().map(&mut *f).transpose()?,
                }),
                None => None,
            },
            routing: self.routing,
            scale: self.scale,
            experts: self.experts.clone(),
        })
    }
}
