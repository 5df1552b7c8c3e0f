//! Routing as launches: choices from logits, logits and choices of few rows at once, and the norm before
//! that.

use crate::activation::Activation;
use crate::cuda::Cuda;
use crate::machine::{Arg, Machine, Shape};
use crate::ops::{EXPERTS_MAX, one};
use crate::vector::FEW_ROWS;
use krasis_core::{Act, DType, Format, Mat, Weight};
use krasis_ops::{GroupScore, Groups, Routes, Routing, Score};

/// Rows that a block chooses for, a warp each, and experts whose logits a block of `router` makes: `WARPS`
/// and `TOGETHER` of `kernels/route.cu`.
const ROUTED: u32 = 4;
const ROUTER_EXPERTS: u32 = 8;

/// Rows up to which each block of the router norms them by itself, which saves a launch, and the shared
/// memory in which it may: what every GPU has.
const NORMED_ROWS: u32 = 8;
const NORMED_BYTES: u32 = 64 << 10;

/// Scores and choices of a block's rows.
fn routing_bytes(experts: u32) -> u32 {
    ROUTED * 2 * experts * 4
}

impl<A: Activation, M: Machine> Cuda<A, M> {
    /// Choices from logits.
    pub(crate) fn chosen(
        &mut self,
        logits: Mat<Act>,
        bias: Option<&Weight>,
        how: &Routing,
        out: Routes,
    ) {
        let mut args = vec![self.mat(logits), logits.stride.into()];
        args.extend(self.routing_args(logits, bias, how, out));
        let grid = [logits.rows.div_ceil(ROUTED), 1, 1];
        let shape = Shape { grid, block: ROUTED * 32, shared: routing_bytes(logits.cols) };
        self.launch(one("route"), shape, &args);
    }

    /// Whether these rows have a kernel for product and choice.
    pub(crate) fn routes_few(&self, x: Mat<Act>, w: &Weight) -> bool {
        w.format == Format::Float(DType::Bf16)
            && x.rows <= FEW_ROWS
            && w.cols.is_multiple_of(8)
            && self.aligned(x)
    }

    /// What [`Self::routes_few`] says that there is.
    pub(crate) fn few_routed(
        &mut self,
        x: Mat<Act>,
        w: &Weight,
        bias: Option<&Weight>,
        how: &Routing,
        logits: Mat<Act>,
        out: Routes,
    ) {
        assert_eq!((w.cols, x.rows), (x.cols, logits.rows), "weight [experts, inputs]");
        let args = vec![self.mat(x), x.stride.into()];
        self.launch_router("router", args, w, bias, how, logits, out, routing_bytes(w.rows));
    }

    /// Whether these rows have a kernel for the norm besides.
    pub(crate) fn norms_few(
        &self,
        add: Mat<Act>,
        residual: Mat<Act>,
        x: Mat<Act>,
        w: &Weight,
    ) -> bool {
        w.format == Format::Float(DType::Bf16)
            && x.rows <= NORMED_ROWS
            && self.normed_bytes(w) <= NORMED_BYTES
            && self.in_eights(&[add, residual, x]).is_some()
    }

    /// Shared memory of a block that norms its rows.
    fn normed_bytes(&self, w: &Weight) -> u32 {
        let squares = 4 * (ROUTED * w.cols.div_ceil(256)).next_multiple_of(4);
        routing_bytes(w.rows) + squares + ROUTED * w.cols * A::BYTES
    }

    /// What [`Self::norms_few`] says that there is.
    pub(crate) fn few_normed(
        &mut self,
        add: Mat<Act>,
        residual: Mat<Act>,
        norm: &Weight,
        eps: f32,
        x: Mat<Act>,
        w: &Weight,
        bias: Option<&Weight>,
        how: &Routing,
        logits: Mat<Act>,
        out: Routes,
    ) {
        assert_eq!((residual.cols, norm.cols, w.cols), (x.cols, x.cols, x.cols), "columns alike");
        let mut args = vec![self.mat(add), add.stride.into()];
        args.extend([self.mat(residual), residual.stride.into(), self.vector(norm), eps.into()]);
        args.extend([self.mat(x), x.stride.into()]);
        let shared = self.normed_bytes(w);
        self.launch_router("norm_router", args, w, bias, how, logits, out, shared);
    }

    /// What both kernels are told behind their inputs.
    fn launch_router(
        &mut self,
        entry: &'static str,
        mut args: Vec<Arg>,
        w: &Weight,
        bias: Option<&Weight>,
        how: &Routing,
        logits: Mat<Act>,
        out: Routes,
        shared: u32,
    ) {
        assert_eq!(w.rows, logits.cols, "weight [experts, inputs]");
        args.extend([self.slot(w.data), w.cols.into(), self.mat(logits), logits.stride.into()]);
        args.extend(self.routing_args(logits, bias, how, out));
        let grid = [w.rows.div_ceil(ROUTER_EXPERTS), logits.rows.div_ceil(ROUTED), 1];
        args.push(self.arrivals(grid[1]));
        self.launch(one(entry), Shape { grid, block: ROUTER_EXPERTS * 32, shared }, &args);
    }

    /// What kernels are told of a choice from `logits`.
    fn routing_args(
        &self,
        logits: Mat<Act>,
        bias: Option<&Weight>,
        how: &Routing,
        out: Routes,
    ) -> [Arg; 11] {
        let experts = logits.cols;
        assert!((how.top_k..=EXPERTS_MAX).contains(&experts), "{} of {experts}", how.top_k);
        assert!(how.top_k <= 32, "{} experts of a token", how.top_k);
        let groups = how.groups.unwrap_or(Groups { count: 0, kept: 0, by: GroupScore::Largest });
        assert!(groups.count <= 32, "{} groups", groups.count);
        [
            bias.map_or(Arg::NULL, |bias| self.vector(bias)),
            experts.into(),
            (how.score == Score::Softmax).into(),
            groups.count.into(),
            groups.kept.into(),
            (groups.by == GroupScore::TwoLargest).into(),
            how.top_k.into(),
            how.renormalise.into(),
            self.slot(out.experts.whole()),
            self.slot(out.weights.whole()),
            logits.rows.into(),
        ]
    }
}
