//! One forward pass over all layers, on one device.

use krasis_core::{Act, Layout, Mat, Slot, Weight};
use krasis_model::blocks::{self, Step, moe};
use krasis_model::{Buffers, Cache, Ffn, Model};
use krasis_ops::{Bank, Memory, Ops, Seqs};

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
    pub banks: Vec<Option<Bank>>,
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
        let (step, b) = self.begin(input);
        blocks::embed(&mut self.device, &self.model, &step, &b);
        for layer in 0..self.model.layers.len() {
            self.layer(layer, &step, &b);
        }
        blocks::finish(&mut self.device, &self.model, &b);
    }

    /// Uploads a step, after which its layers may run.
    pub fn begin(&mut self, input: &StepInput) -> (Step, Buffers) {
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
        (Step { rows, tokens, seqs }, self.buffers.first(rows))
    }

    /// One layer. What the layer before has left in `b.block` joins the residual stream first.
    pub fn layer(&mut self, index: usize, step: &Step, b: &Buffers) {
        let (d, layer) = (&mut self.device, &self.model.layers[index]);
        let add = (index > 0).then_some(b.block);
        blocks::before_experts(d, layer, self.model.eps, &self.caches[index], step, add, b);
        if let (Ffn::Moe(m), Some(bank)) = (&layer.ffn, &self.banks[index]) {
            let pairs = step.rows * m.routing.top_k;
            let inner = b.pair_inner.mat(pairs, bank.inter);
            d.experts(
                b.normed,
                moe::routes(m, b),
                bank,
                inner,
                b.pairs.mat(pairs, self.model.hidden),
            );
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
