//! The named activations of a forward pass, planned for the largest layer.

use crate::model::{Dense, Ffn, Mixer, Model, Query};
use krasis_core::{Act, Layout, Mat, Slot};
use krasis_ops::Routes;

/// Memory that each layer shapes as it needs: rows of any width up to the planned one.
#[derive(Clone, Copy, Debug)]
pub struct Scratch(Slot<Act>);

impl Scratch {
    /// The first `rows · cols` elements as a matrix.
    pub fn mat(self, rows: u32, cols: u32) -> Mat<Act> {
        let len = u64::from(rows) * u64::from(cols);
        assert!(len <= self.0.len, "{rows}x{cols} wanted of a buffer of {}", self.0.len);
        Mat::new(Slot::new(self.0.start, len), rows, cols)
    }

    /// All of it, for an operation that makes use of more than its rows have.
    pub fn whole(self) -> Slot<Act> {
        self.0
    }
}

/// Activations, `[rows, …]` for as many rows as were planned. Three of them are kept from layer to
/// layer and have room for a whole pass, which other buffers see in chunks.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    act_bytes: u64,
    /// `[pass, hidden]` the residual stream.
    pub residual: Mat<Act>,
    /// `[pass, hidden]` normed input of a mixer or FFN.
    pub normed: Mat<Act>,
    /// `[pass, hidden]` what a mixer or FFN adds to the residual stream.
    pub block: Mat<Act>,
    /// Fused projections of mixers.
    pub wide: Scratch,
    /// Bottleneck of low-rank queries, then MLA's `latent | rope`.
    pub narrow: Scratch,
    /// Queries in the latent space; input of the delta rule after convolution.
    pub middle: Scratch,
    /// What attention or the delta rule mixed.
    pub mixed: Scratch,
    /// `[rows, gate | up]` of dense MLPs and shared experts.
    pub gate_up: Scratch,
    /// `[rows, inter]` of the same.
    pub inner: Scratch,
    /// `[rows, hidden]` the shared expert.
    pub shared: Mat<Act>,
    /// `[rows, 1]` its gate.
    pub shared_gate: Mat<Act>,
    /// `[rows, experts]`.
    pub router: Scratch,
    /// `[rows, top_k]`.
    pub routes: Option<Routes>,
    /// `[rows · top_k, inter]` of routed experts.
    pub pair_inner: Scratch,
    /// `[rows · top_k, hidden]` of routed experts.
    pub pairs: Scratch,
}

/// Columns that the widest layer needs in each scratch buffer.
#[derive(Default)]
struct Widths {
    wide: u32,
    narrow: u32,
    middle: u32,
    mixed: u32,
    mlp: u32,
    experts: u32,
    top_k: u32,
    pair_inner: u32,
}

impl Buffers {
    /// Lays out buffers for `rows` tokens at a time, of passes over `pass`.
    pub fn plan<W>(model: &Model<W>, rows: u32, pass: u32, layout: &mut Layout) -> Buffers {
        let w = Widths::of(model);
        let hidden = model.hidden;
        let mut scratch = |cols: u32| Scratch(layout.act(rows, cols).at);
        let (wide, narrow, middle, mixed) =
            (scratch(w.wide), scratch(w.narrow), scratch(w.middle), scratch(w.mixed));
        let (gate_up, inner, router) = (scratch(2 * w.mlp), scratch(w.mlp), scratch(w.experts));
        let (pair_inner, pairs) = (scratch(w.top_k * w.pair_inner), scratch(w.top_k * hidden));
        Buffers {
            act_bytes: layout.act_bytes(),
            residual: layout.act(pass, hidden),
            normed: layout.act(pass, hidden),
            block: layout.act(pass, hidden),
            shared: layout.act(rows, hidden),
            shared_gate: layout.act(rows, 1),
            routes: (w.top_k > 0).then(|| Routes {
                experts: layout.mat(rows, w.top_k),
                weights: layout.mat(rows, w.top_k),
            }),
            wide,
            narrow,
            middle,
            mixed,
            gate_up,
            inner,
            router,
            pair_inner,
            pairs,
        }
    }

    /// The same buffers for `rows` tokens of a pass, from token `first` on.
    pub fn part(self, first: u32, rows: u32) -> Buffers {
        let kept = |mat: Mat<Act>| mat.from_row(first, self.act_bytes).first(rows);
        Buffers {
            residual: kept(self.residual),
            normed: kept(self.normed),
            block: kept(self.block),
            shared: self.shared.first(rows),
            shared_gate: self.shared_gate.first(rows),
            routes: self.routes.map(|routes| routes.first(rows)),
            ..self
        }
    }
}

impl Widths {
    fn of<W>(model: &Model<W>) -> Widths {
        let mut w = Widths::default();
        let most = |at: &mut u32, cols: u32| *at = (*at).max(cols);
        for layer in &model.layers {
            match &layer.mixer {
                Mixer::Gqa(m) => {
                    let queries = m.heads * m.dim;
                    most(&mut w.wide, queries * (1 + u32::from(m.gated)) + 2 * m.kv_heads * m.dim);
                    most(&mut w.mixed, queries);
                }
                Mixer::Mla(m) => {
                    most(&mut w.wide, m.heads.query());
                    most(&mut w.wide, m.heads.count * m.heads.value);
                    if let Query::LowRank { rank, .. } = &m.query {
                        most(&mut w.narrow, *rank);
                    }
                    most(&mut w.narrow, m.heads.latent + m.heads.rope);
                    most(&mut w.middle, m.heads.count * m.heads.latent);
                    most(&mut w.mixed, m.heads.count * m.heads.latent);
                }
                Mixer::DeltaNet(m) => {
                    most(&mut w.wide, m.input_width());
                    most(&mut w.middle, m.heads.channels());
                    most(&mut w.mixed, m.heads.width());
                }
            }
            match &layer.ffn {
                Ffn::Dense(Dense { inter, .. }) => most(&mut w.mlp, *inter),
                Ffn::Moe(m) => {
                    most(&mut w.experts, m.experts.count);
                    most(&mut w.top_k, m.routing.top_k);
                    most(&mut w.pair_inner, m.experts.inter);
                    most(&mut w.mlp, m.shared.as_ref().map_or(0, |shared| shared.mlp.inter));
                }
            }
        }
        w
    }
}
