//! Routing: which experts see a token, and with what weight.
//!
//! ```text
//! score = softmax(logits) or sigmoid(logits)          over all experts
//! choice = score + bias                               the bias decides, but does not weigh
//! keep the best groups of experts, if grouped, by their largest choice or two largest
//! the top_k experts by choice, best first; ties go to the lower expert
//! weight = score[expert], divided by their sum (+ 1e-20) if renormalised
//! ```
//!
//! The routed scaling factor is not applied here but in [`crate::combine`], once.

use crate::Ops;
use crate::cpu::{Cpu, ROWS_WORTH_A_THREAD, vector_of};
use crate::reference::Reference;
use crate::sigmoid_gate::sigmoid;
use krasis_core::{Act, Mat, Weight};
use krasis_cpu::Tiles;
use krasis_cpu::vector::largest;

/// How a router's logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Exponentials over all experts, summing to one (Qwen3, DeepSeek-V2).
    Softmax,
    /// Each expert alone (DeepSeek-V3, Kimi K2, GLM-4.5).
    Sigmoid,
}

/// What a group of experts is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best choice (DeepSeek-V2).
    Largest,
    /// The sum of its two best choices (DeepSeek-V3).
    TwoLargest,
}

/// Group-limited routing: only experts of the best groups may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups of equally many consecutive experts.
    pub count: u32,
    /// Groups kept.
    pub kept: u32,
    /// What they are judged by.
    pub by: GroupScore,
}

/// How experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Logits to scores.
    pub score: Score,
    /// Limits the choice to some groups.
    pub groups: Option<Groups>,
    /// Experts of a token.
    pub top_k: u32,
    /// Whether the weights are divided by their sum.
    pub renormalise: bool,
}

/// The choice: `[rows, top_k]` experts, and their weights.
#[derive(Clone, Copy, Debug)]
pub struct Routes {
    /// Expert ids.
    pub experts: Mat<u32>,
    /// Weights.
    pub weights: Mat<f32>,
}

impl Routes {
    /// Those of the first `rows` tokens.
    pub fn first(self, rows: u32) -> Routes {
        Routes { experts: self.experts.first(rows), weights: self.weights.first(rows) }
    }
}

/// [`Ops::router`] from its parts.
pub fn router<O: Ops + ?Sized>(
    o: &mut O,
    x: Mat<Act>,
    w: &Weight,
    bias: Option<&Weight>,
    how: &Routing,
    logits: Mat<Act>,
    out: Routes,
) {
    o.linear(x, w, None, logits);
    o.route(logits, bias, how, out);
}

/// [`Ops::norm_router`] from its parts.
pub fn normed_router<O: Ops + ?Sized>(
    o: &mut O,
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
    o.add_rms_norm(Some(add), residual, norm, eps, x);
    o.router(x, w, bias, how, logits, out);
}

/// Floats that [`choose`] works in.
pub fn choose_floats(how: &Routing, experts: u32) -> usize {
    2 * experts as usize + how.groups.map_or(0, |groups| groups.count as usize)
}

/// Routes one token of `logits [experts]` into `experts [top_k]` and `weights [top_k]`; `own` is
/// memory to work in.
pub fn choose(
    logits: &[f32],
    bias: Option<&[f32]>,
    how: &Routing,
    own: &mut [f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let (score, rest) = own.split_at_mut(logits.len());
    let (choice, groups) = rest.split_at_mut(logits.len());
    score.copy_from_slice(logits);
    match how.score {
        Score::Softmax => softmax(score),
        Score::Sigmoid => score.iter_mut().for_each(|x| *x = sigmoid(*x)),
    }
    choice.copy_from_slice(score);
    if let Some(bias) = bias {
        choice.iter_mut().zip(bias).for_each(|(choice, bias)| *choice += bias);
    }
    if let Some(how) = &how.groups {
        mask_groups(choice, how, &mut groups[..how.count as usize]);
    }
    for (expert, weight) in experts.iter_mut().zip(&mut *weights).take(how.top_k as usize) {
        let best = take_largest(choice);
        (*expert, *weight) = (best as u32, score[best]);
    }
    if how.renormalise {
        let total = weights.iter().sum::<f32>() + 1e-20;
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
}

/// Where the largest number is, the first of equals; it is none the next time. If none is left, the
/// first place.
fn take_largest(values: &mut [f32]) -> usize {
    let at = largest(values).unwrap_or(0);
    values[at] = f32::NAN;
    at
}

/// Makes the experts of all but the best groups impossible to choose.
fn mask_groups(choice: &mut [f32], how: &Groups, scores: &mut [f32]) {
    let size = choice.len() / how.count as usize;
    for (group, score) in choice.chunks_exact(size).zip(&mut *scores) {
        let first = largest(group).unwrap_or(0);
        let others = || group.iter().enumerate().filter(|(i, _)| *i != first);
        *score = match how.by {
            GroupScore::Largest => group[first],
            GroupScore::TwoLargest if size == 1 => group[first],
            GroupScore::TwoLargest => {
                group[first] + others().fold(f32::NEG_INFINITY, |a, (_, &b)| a.max(b))
            }
        };
    }
    (0..how.kept).for_each(|_| _ = take_largest(scores));
    for (group, score) in choice.chunks_exact_mut(size).zip(scores) {
        if !score.is_nan() {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

pub(crate) fn reference(
    d: &mut Reference,
    logits: Mat<Act>,
    bias: Option<&Weight>,
    how: &Routing,
    out: Routes,
) {
    let bias = bias.map(|bias| d.vector(bias));
    let k = how.top_k as usize;
    let mut own = vec![0.0; choose_floats(how, logits.cols)];
    let (mut experts, mut weights) = (vec![], vec![]);
    for logits in d.rows(logits) {
        let (mut chosen, mut weighed) = (vec![0; k], vec![0.0; k]);
        choose(&logits, bias.as_deref(), how, &mut own, &mut chosen, &mut weighed);
        experts.extend(chosen);
        weights.extend(weighed);
    }
    d.arena.slice_mut(out.experts.whole()).copy_from_slice(&experts);
    d.arena.slice_mut(out.weights.whole()).copy_from_slice(&weights);
}

/// A few hundred experts per token are nothing beside their matrices: no vector version yet.
pub(crate) fn cpu(
    d: &mut Cpu,
    logits: Mat<Act>,
    bias: Option<&Weight>,
    how: &Routing,
    out: Routes,
) {
    let k = how.top_k as usize;
    let (inputs, experts, weights) = d.arena.write_two(out.experts.whole(), out.weights.whole());
    let bias = bias.map(|bias| vector_of(bias, &inputs));
    let (experts, weights) = (Tiles::new(experts, k), Tiles::new(weights, k));
    let own = choose_floats(how, logits.cols).next_multiple_of(16);
    let workers = Tiles::new(d.workers.take(own * d.team.threads()), own);
    let rows = logits.rows as usize;
    d.team.each(rows.div_ceil(ROWS_WORTH_A_THREAD), |worker, task| {
        // SAFETY: a worker has one task at a time.
        let own = unsafe { workers.tile(worker, 0..own) };
        let first = task * ROWS_WORTH_A_THREAD;
        for row in first..rows.min(first + ROWS_WORTH_A_THREAD) {
            // SAFETY: each task has its own rows.
            let (experts, weights) = unsafe { (experts.tile(row, 0..k), weights.tile(row, 0..k)) };
            choose(inputs.row(logits, row as u32), bias, how, own, experts, weights);
        }
    });
}

/// Exponentials of `x` less its largest, divided by their sum.
fn softmax(x: &mut [f32]) {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - largest).exp());
    let total: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= total);
}

pub(crate) mod cases {
    use super::*;
    use crate::testing::{Case, Judge, as_mat};
    use krasis_core::{DType, Format, Slot};

    cases![choices_and_weights, with_the_product_before_it, its_logits, with_the_norm_before_that];

    /// Logits are few different numbers, so that ties are decided; who was chosen is read back by
    /// gathering rows that hold their own index.
    fn choices_and_weights(on: &mut dyn Judge) {
        let groups = |count, kept, by| Some(Groups { count, kept, by });
        for (experts, groups, top_k) in [
            (5, None, 5),
            (70, None, 8),
            (128, groups(8, 4, GroupScore::TwoLargest), 8),
            (12, groups(4, 2, GroupScore::Largest), 4),
        ] {
            for (score, renormalise, biased) in [
                (Score::Softmax, true, false),
                (Score::Softmax, false, false),
                (Score::Sigmoid, true, true),
            ] {
                let rows = 7;
                let mut case = Case::new(21);
                let values: Vec<f32> =
                    (0..rows * experts).map(|_| (case.bits() % 64) as f32 / 16.0 - 2.0).collect();
                let logits = case.act_of(rows, experts, &values);
                let bias = case.vector(experts);
                let bias = biased.then_some(&bias);
                let how = Routing { score, groups, top_k, renormalise };
                let chosen = Mat::new(case.u32s(&vec![0; (rows * top_k) as usize]), rows, top_k);
                let poison = vec![f32::NAN; (rows * top_k) as usize];
                let weights = case.floats_of(rows, top_k, &poison);
                let indices: Vec<f32> = (0..experts).map(|expert| expert as f32).collect();
                let (table, named) =
                    (case.act_of(experts, 1, &indices), case.blank(rows * top_k, 1));
                let routes = Routes { experts: chosen, weights };
                let flat = Slot::new(chosen.at.start, u64::from(rows * top_k));
                case.agree(on, &[named, as_mat(weights.at, rows)], 1e-5, |ops| {
                    ops.route(logits, bias, &how, routes);
                    ops.gather(table, flat, named);
                });
            }
        }
    }

    /// Rows have a single one, so that logits are weights, and the same in whatever order they are added.
    fn with_the_product_before_it(on: &mut dyn Judge) {
        for (rows, experts, cols, top_k) in [(1, 128, 2048, 8), (9, 70, 4104, 6), (66, 12, 40, 4)] {
            let mut case = Case::new(22);
            let ones = |i: u32| if i % cols == i / cols * 577 % cols { 1.0 } else { 0.0 };
            let x = case.act_of(rows, cols, &(0..rows * cols).map(ones).collect::<Vec<f32>>());
            let w = case.weight(experts, cols, Format::Float(DType::Bf16));
            let logits = case.blank(rows, experts);
            let how = Routing { score: Score::Softmax, groups: None, top_k, renormalise: true };
            let chosen = Mat::new(case.u32s(&vec![0; (rows * top_k) as usize]), rows, top_k);
            let poison = vec![f32::NAN; (rows * top_k) as usize];
            let weights = case.floats_of(rows, top_k, &poison);
            let indices: Vec<f32> = (0..experts).map(|expert| expert as f32).collect();
            let (table, named) = (case.act_of(experts, 1, &indices), case.blank(rows * top_k, 1));
            let routes = Routes { experts: chosen, weights };
            let flat = Slot::new(chosen.at.start, u64::from(rows * top_k));
            case.agree(on, &[logits, named, as_mat(weights.at, rows)], 1e-5, |ops| {
                ops.router(x, &w, None, &how, logits, routes);
                ops.gather(table, flat, named);
            });
        }
    }

    fn its_logits(on: &mut dyn Judge) {
        for (rows, cols) in [(3, 2048), (5, 3336), (1, 72)] {
            let mut case = Case::new(23);
            let (x, logits) = (case.act(rows, cols), case.blank(rows, 30));
            let w = case.weight(30, cols, Format::Float(DType::Bf16));
            let how = Routing { score: Score::Sigmoid, groups: None, top_k: 2, renormalise: false };
            let experts = Mat::new(case.u32s(&vec![0; 2 * rows as usize]), rows, 2);
            let weights = case.floats_of(rows, 2, &vec![0.0; 2 * rows as usize]);
            case.agree(on, &[logits], 1e-4, |ops| {
                ops.router(x, &w, None, &how, logits, Routes { experts, weights });
            });
        }
    }

    /// More rows than a block has, and columns that are no multiple of what a warp reads.
    fn with_the_norm_before_that(on: &mut dyn Judge) {
        for (rows, cols) in [(1, 2048), (3, 776), (7, 40), (9, 264), (2, 7168)] {
            let mut case = Case::new(25);
            let (add, residual, x) =
                (case.act(rows, cols), case.act(rows, cols), case.blank(rows, cols));
            let (norm, logits) = (case.vector(cols), case.blank(rows, 30));
            let w = case.weight(30, cols, Format::Float(DType::Bf16));
            let how = Routing { score: Score::Sigmoid, groups: None, top_k: 2, renormalise: false };
            let experts = Mat::new(case.u32s(&vec![0; 2 * rows as usize]), rows, 2);
            let weights = case.floats_of(rows, 2, &vec![0.0; 2 * rows as usize]);
            let routes = Routes { experts, weights };
            case.agree(on, &[residual, x, logits], 1e-4, |ops| {
                ops.norm_router(add, residual, &norm, 1e-5, x, &w, None, &how, logits, routes);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(logits: &[f32], bias: Option<&[f32]>, how: Routing) -> Vec<(u32, f32)> {
        let (mut experts, mut weights) =
            (vec![0; how.top_k as usize], vec![0.0; how.top_k as usize]);
        let mut own = vec![f32::NAN; choose_floats(&how, logits.len() as u32)];
        choose(logits, bias, &how, &mut own, &mut experts, &mut weights);
        experts.into_iter().zip(weights).collect()
    }

    fn close(got: &[(u32, f32)], wanted: &[(u32, f32)]) {
        assert_eq!(got.len(), wanted.len());
        for (got, wanted) in got.iter().zip(wanted) {
            assert!(got.0 == wanted.0 && (got.1 - wanted.1).abs() < 1e-5, "{got:?} for {wanted:?}");
        }
    }

    const SOFTMAX: Routing =
        Routing { score: Score::Softmax, groups: None, top_k: 2, renormalise: false };

    #[test]
    fn softmax_weights_are_shares_of_all_experts() {
        // e⁰ : e¹ : e² : e¹ of 1 + 2.71828·2 + 7.38906
        let logits = [0.0, 1.0, 2.0, 1.0];
        close(&routed(&logits, None, SOFTMAX), &[(2, 0.534_446), (1, 0.196_612)]);
        let renormalised = Routing { renormalise: true, ..SOFTMAX };
        close(&routed(&logits, None, renormalised), &[(2, 0.731_059), (1, 0.268_941)]);
    }

    #[test]
    fn the_bias_chooses_but_does_not_weigh() {
        let how = Routing { score: Score::Sigmoid, ..SOFTMAX };
        let got = routed(&[0.0, 5.0, -1.0], Some(&[2.0, 0.0, 2.0]), how);
        close(&got, &[(0, 0.5), (2, 0.268_941)]);
    }

    #[test]
    fn groups_are_judged_by_one_or_two_experts() {
        let logits = [3.0, -9.0, 2.0, 2.0];
        let groups = |by| Some(Groups { count: 2, kept: 1, by });
        let how = Routing { score: Score::Sigmoid, top_k: 1, ..SOFTMAX };
        let one = Routing { groups: groups(GroupScore::Largest), ..how };
        assert_eq!(routed(&logits, None, one)[0].0, 0);
        let two = Routing { groups: groups(GroupScore::TwoLargest), ..how };
        assert_eq!(routed(&logits, None, two)[0].0, 2);
    }

    #[test]
    fn negative_choices_in_kept_groups_beat_masked_groups() {
        let how = Routing {
            score: Score::Sigmoid,
            groups: Some(Groups { count: 2, kept: 1, by: GroupScore::TwoLargest }),
            ..SOFTMAX
        };
        let got = routed(&[0.0, 0.0, 0.0, 0.0], Some(&[1.0, -3.0, -2.0, -2.0]), how);
        close(&got, &[(0, 0.5), (1, 0.5)]);
    }
}
