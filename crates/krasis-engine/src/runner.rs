//! One forward pass over all layers, on one device and what helps it.

use krasis_core::{Act, Layout, Mat, Slot, Weight};
use krasis_model::blocks::{self, Step, moe};
use crate::experts::{Experts, Work};
use krasis_model::{Buffers, Cache, Ffn, Model};
use krasis_ops::{Memory, Ops, Seqs};
use std::ops::Range;

/// Rows whose logits are computed at a time: they are as wide as the vocabulary.
const LOGIT_ROWS: u32 = 32;

/// What is uploaded for a step; the fields of [`Seqs`] say what each list holds.
#[derive(Debug, Default)]
pub struct StepInput {
    /// `[rows]`.
    pub tokens: Vec<u32>,
    /// `[rows]`.
    pub positions: Vec<u32>,
    /// `[rows]`.
    pub row_seq: Vec<u32>,
    /// `[sequences + 1]`.
    pub first_row: Vec<u32>,
    /// `[sequences, pages_max]` page lists, zeros behind their ends.
    pub pages: Vec<u32>,
    /// `[sequences]`.
    pub state: Vec<u32>,
}

impl StepInput {
    /// Makes this the given rows of `whole`, whose page lists have `pages_max` entries each.
    fn cut(&mut self, whole: &StepInput, rows: Range<u32>, pages_max: u32) {
        let StepInput { tokens, positions, row_seq, first_row, pages, state } = self;
        let lists = [&mut *tokens, positions, row_seq, first_row, pages, state];
        lists.into_iter().for_each(Vec::clear);
        let all = rows.start as usize..rows.end as usize;
        tokens.extend(&whole.tokens[all.clone()]);
        positions.extend(&whole.positions[all.clone()]);
        for (row, &seq) in (0..).zip(&whole.row_seq[all]) {
            if row == 0 || seq != whole.row_seq[(rows.start + row - 1) as usize] {
                first_row.push(row);
                state.push(whole.state[seq as usize]);
                let entries = seq as usize * pages_max as usize;
                pages.extend(&whole.pages[entries..][..pages_max as usize]);
            }
            row_seq.push(state.len() as u32 - 1);
        }
        first_row.push(rows.end - rows.start);
    }
}

/// Device memory of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepSlots {
    tokens: Slot<u32>,
    seqs: Seqs,
    chosen: Slot<u32>,
    rows: Mat<Act>,
    logits: Mat<Act>,
}

impl StepSlots {
    /// Lays out steps of up to `rows` tokens of `sequences` sequences of `pages_max` pages.
    pub fn plan<W>(
        rows: u32,
        sequences: u32,
        pages_max: u32,
        model: &Model<W>,
        layout: &mut Layout,
    ) -> StepSlots {
        let (rows, count) = (u64::from(rows), u64::from(sequences));
        StepSlots {
            tokens: layout.slot(rows),
            seqs: Seqs {
                count: 0,
                row_seq: layout.slot(rows),
                positions: layout.slot(rows),
                first_row: layout.slot(count + 1),
                pages: layout.slot(count * u64::from(pages_max)),
                pages_max,
                state: layout.slot(count),
            },
            chosen: layout.slot(u64::from(LOGIT_ROWS)),
            rows: layout.act(LOGIT_ROWS, model.hidden),
            logits: layout.act(LOGIT_ROWS, model.vocab),
        }
    }
}

impl StepSlots {
    /// Entries of a sequence's page list.
    pub const fn pages_max(&self) -> u32 {
        self.seqs.pages_max
    }
}

/// A loaded model on its device.
pub struct Runner<D> {
    /// Where it runs.
    pub device: D,
    /// Its weights.
    pub model: Model<Weight>,
    /// Routed experts of each layer.
    pub experts: Experts,
    /// Rows that buffers are made for; a pass of more is made of chunks.
    pub rows_max: u32,
    /// The chunk at work, kept for its memory.
    pub part: StepInput,
    /// What each layer remembers.
    pub caches: Vec<Cache>,
    /// Activations.
    pub buffers: Buffers,
    /// What changes from step to step.
    pub step: StepSlots,
    /// Logits on their way to the host.
    pub logits: Vec<f32>,
}

impl<D: Ops + Memory> Runner<D> {
    /// Computes all layers for the tokens of a step; [`Self::logits`] may follow.
    pub fn forward(&mut self, input: &StepInput) {
        let rows = input.tokens.len() as u32;
        for group in 0..self.experts.begin(rows) {
            let layers = self.experts.enter(&mut self.device, group);
            if rows <= self.rows_max {
                self.layers(layers, input, 0);
                continue;
            }
            let mut part = std::mem::take(&mut self.part);
            for first in (0..rows).step_by(self.rows_max as usize) {
                let end = rows.min(first + self.rows_max);
                part.cut(input, first..end, self.step.pages_max());
                self.layers(layers.clone(), &part, first);
            }
            self.part = part;
        }
        self.experts.end(&mut self.device);
    }

    /// Some layers for a chunk, which begins at row `first` of the pass.
    fn layers(&mut self, layers: Range<usize>, input: &StepInput, first: u32) {
        let (step, b) = self.begin(input, first);
        if layers.start == 0 {
            blocks::embed(&mut self.device, &self.model, &step, &b);
        }
        for layer in layers.clone() {
            self.layer(layer, &step, &b);
        }
        if layers.end == self.model.layers.len() {
            blocks::finish(&mut self.device, &self.model, &b);
        }
    }

    /// Uploads a chunk that begins at row `first` of the pass, after which its layers may run.
    pub fn begin(&mut self, input: &StepInput, first: u32) -> (Step, Buffers) {
        let s = &self.step;
        let rows = input.tokens.len() as u32;
        let d = &mut self.device;
        d.upload(s.tokens, &input.tokens);
        d.upload(s.seqs.positions, &input.positions);
        d.upload(s.seqs.row_seq, &input.row_seq);
        d.upload(s.seqs.first_row, &input.first_row);
        d.upload(s.seqs.state, &input.state);
        d.upload(s.seqs.pages, &input.pages);
        let seqs = Seqs { count: input.state.len() as u32, ..s.seqs };
        // The token list is shorter than planned; operations take as many rows as they write.
        let tokens = Slot::new(s.tokens.start, u64::from(rows));
        (Step { rows, tokens, seqs }, self.buffers.part(first, rows))
    }

    /// One layer. What the layer before has left in `b.block` joins the residual stream first.
    pub fn layer(&mut self, index: usize, step: &Step, b: &Buffers) {
        let (d, layer) = (&mut self.device, &self.model.layers[index]);
        let add = (index > 0).then_some(b.block);
        blocks::before_experts(d, layer, self.model.eps, &self.caches[index], step, add, b);
        if let Ffn::Moe(m) = &layer.ffn {
            let pairs = step.rows * m.routing.top_k;
            let work = Work {
                x: b.normed,
                routes: moe::routes(m, b),
                inner: b.pair_inner.mat(pairs, m.experts.inter),
                out: b.pairs.mat(pairs, self.model.hidden),
            };
            self.experts.run(d, index, work);
        }
        blocks::after_experts(d, layer, b);
    }

    /// Logits of some rows of the last pass, handed out one by one: `hear(i, logits of rows[i])`.
    pub fn logits(&mut self, rows: &[u32], mut hear: impl FnMut(usize, &[f32])) {
        let vocab = self.model.vocab as usize;
        for (piece, rows) in rows.chunks(LOGIT_ROWS as usize).enumerate() {
            let count = rows.len() as u32;
            let (gathered, logits) = (self.step.rows.first(count), self.step.logits.first(count));
            self.device.upload(self.step.chosen, rows);
            blocks::logits(
                &mut self.device,
                &self.model,
                &self.buffers,
                self.step.chosen,
                gathered,
                logits,
            );
            self.device.download_act_to(logits, &mut self.logits);
            for (i, logits) in self.logits.chunks_exact(vocab).enumerate() {
                hear(piece * LOGIT_ROWS as usize + i, logits);
            }
        }
    }
}
