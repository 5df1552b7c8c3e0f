//! A layer's routes, guessed while the layer before is at work: what its own router says of the residual
//! stream as it is then. The stream changes little from layer to layer, so most guesses come true (Eliseev
//! and Mazur, 2023), and nothing depends on it but what is in the CPU's caches when it is asked.

use krasis_core::{Act, Mat, Slot, Weight};
use krasis_ops::{Ops, Routes, Routing};

/// A router, and what it is asked about before its time.
#[derive(Clone, Copy, Debug)]
pub struct NextRouter {
    /// The norm before it.
    pub norm: Weight,
    /// Of the norm.
    pub eps: f32,
    /// The router.
    pub router: Weight,
    /// Its correction, if it has one.
    pub bias: Option<Weight>,
    /// How it chooses.
    pub how: Routing,
    /// `[rows, hidden]`: the residual stream between attention and experts of the layer at work.
    pub residual: Mat<Act>,
    /// `[rows, hidden]` that nobody needs at this time.
    pub normed: Mat<Act>,
    /// `[rows, experts]`, likewise.
    pub logits: Mat<Act>,
}

impl NextRouter {
    /// Asks it, and says where of `room` the answer lies.
    pub fn guess<D: Ops>(&self, d: &mut D, room: Routes, rows: u32) -> Routes {
        let NextRouter { norm, eps, router, bias, how, residual, normed, logits } = self;
        let routes = Routes {
            experts: shaped(room.experts, rows, how.top_k),
            weights: shaped(room.weights, rows, how.top_k),
        };
        d.add_rms_norm(None, *residual, norm, *eps, *normed);
        d.router(*normed, router, bias.as_ref(), how, *logits, routes);
        routes
    }
}

/// The beginning of a matrix in another shape: layers may differ in `top_k`.
pub(super) fn shaped<T>(list: Mat<T>, rows: u32, cols: u32) -> Mat<T> {
    Mat::new(Slot::new(list.at.start, u64::from(rows * cols)), rows, cols)
}
