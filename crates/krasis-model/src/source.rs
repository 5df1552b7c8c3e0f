//! Where each weight comes from: a recipe over the checkpoint's tensors.
//!
//! Whatever a checkpoint interleaves is put in order here, once, while loading: fused projections,
//! output gates between queries, key-head groups of delta nets, and DeepSeek's interleaved rotary
//! pairs are all runs of rows. So the operations know one order only.

use crate::model::Model;
use std::ops::Range;

/// A weight that has not been loaded yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// How to build it.
    pub origin: Origin,
    /// Outputs; 1 for vectors.
    pub rows: u32,
    /// Inputs, or the length of a vector.
    pub cols: u32,
    /// What it is for, which decides its format.
    pub class: Class,
}

/// How a weight is built from stored tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Rows of stored tensors, one run after the other. Vectors are runs of single numbers.
    Rows(Vec<Run>),
    /// One block per head, turned: `out[head · cols_of_tensor + j, i] = tensor[head · stride +
    /// first + i, j]`. MLA's key up-projection, absorbed into the query.
    HeadsTransposed {
        /// Name in the checkpoint.
        tensor: String,
        /// Heads in the tensor.
        heads: u32,
        /// Rows of one head.
        stride: u32,
        /// First row of a head that is taken; `cols` of them are.
        first: u32,
    },
    /// Numbers that follow from the config.
    Numbers(Vec<f32>),
}

/// `count` rows of a stored tensor from row `first`, every `step`-th.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Name in the checkpoint.
    pub tensor: String,
    /// Rows that the stored tensor has.
    pub of: u32,
    /// First row taken.
    pub first: u32,
    /// Rows taken.
    pub count: u32,
    /// Distance between them.
    pub step: u32,
}

/// What a weight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Token embedding: as stored.
    Embedding,
    /// Projections of attention and delta nets: `--attention-quant`.
    Attention,
    /// MLPs of dense layers: `--dense-mlp-quant`.
    DenseMlp,
    /// Shared experts: `--shared-expert-quant`.
    SharedExpert,
    /// Output matrix: `--lm-head-quant`.
    Head,
    /// Projections that latent attention absorbs: with attention's, see `krasis-engine/src/load`.
    Absorbed,
    /// Routers, gates, convolutions: as stored, whatever is asked for.
    Exact,
    /// Norms, biases, decay rates: kept in f32.
    Vector,
    /// A norm that multiplies by one plus what is stored (Qwen3-Next): kept in f32, one added.
    VectorPlusOne,
}

impl Run {
    /// A whole tensor of `rows` rows.
    pub fn whole(tensor: impl Into<String>, rows: u32) -> Run {
        Run { tensor: tensor.into(), of: rows, first: 0, count: rows, step: 1 }
    }

    /// Some consecutive rows.
    pub fn part(self, first: u32, count: u32) -> Run {
        Run { first: self.first + first * self.step, count, ..self }
    }

    /// Every other row from the first and then from the second: interleaved rotary pairs
    /// `(x0, x1), (x2, x3), …` as halves `x0, x2, …, x1, x3, …`.
    pub fn halves(self) -> [Run; 2] {
        let half = Run { count: self.count / 2, step: self.step * 2, ..self };
        [half.clone(), Run { first: half.first + half.step / 2, ..half }]
    }
}

impl Source {
    /// A matrix of `cols` inputs whose rows are those of `runs`.
    pub fn rows(runs: Vec<Run>, cols: u32, class: Class) -> Source {
        let rows = runs.iter().map(|run| run.count).sum();
        Source { origin: Origin::Rows(runs), rows, cols, class }
    }

    /// A whole stored matrix.
    pub fn matrix(tensor: impl Into<String>, rows: u32, cols: u32, class: Class) -> Source {
        Source::rows(vec![Run::whole(tensor, rows)], cols, class)
    }

    /// A vector whose numbers are those of `runs`.
    pub fn numbers_of(runs: Vec<Run>) -> Source {
        let cols = runs.iter().map(|run| run.count).sum();
        Source { origin: Origin::Rows(runs), rows: 1, cols, class: Class::Vector }
    }

    /// A whole stored vector.
    pub fn vector(tensor: impl Into<String>, len: u32) -> Source {
        Source::numbers_of(vec![Run::whole(tensor, len)])
    }

    /// A vector computed from the config.
    pub fn numbers(values: Vec<f32>) -> Source {
        let cols = values.len() as u32;
        Source { origin: Origin::Numbers(values), rows: 1, cols, class: Class::Vector }
    }
}

impl Model<Source> {
    /// Some consecutive layers as a model of their own, for one of several devices. The first part begins
    /// with the embedding, and the last ends with the output matrix; where they are missing they are empty,
    /// and without an output matrix there are no tokens to choose from. A part's last norm is that of the
    /// layer behind it, which so finds its input ready.
    pub fn part(&self, layers: Range<usize>) -> Model<Source> {
        let (first, last) = (layers.start == 0, layers.end == self.layers.len());
        let absent = || Source::numbers(Vec::new());
        Model {
            embed: if first { self.embed.clone() } else { absent() },
            norm: self.norm_before(layers.end).clone(),
            lm_head: if last { self.lm_head.clone() } else { absent() },
            vocab: if last { self.vocab } else { 0 },
            layers: self.layers[layers].to_vec(),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Run;

    #[test]
    fn halves_undo_interleaving() {
        let run = Run::whole("t", 20).part(4, 6);
        let rows: Vec<u32> = run
            .halves()
            .iter()
            .flat_map(|r| (0..r.count).map(move |i| r.first + i * r.step))
            .collect();
        assert_eq!(rows, [4, 6, 8, 5, 7, 9]);
    }
}
