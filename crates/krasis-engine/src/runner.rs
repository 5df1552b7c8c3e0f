//! One forward pass over all layers, on one device.

use crate::sample::{Known, Largest};
use krasis_core::{Act, Layout, Mat, Slot, Weight};
use krasis_model::blocks::{self, Step, moe};
use krasis_model::{Buffers, Cache, Ffn, Model};
use krasis_ops::{Bank, LARGEST_MAX, Memory, Ops, Seqs};

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

/// Rows of a step whose logits are wanted.
#[derive(Debug, Default)]
pub struct Chosen {
    /// Which ones.
    pub rows: Vec<u32>,
    /// What the logits of each are multiplied with where their weights are added up; 0 if nobody asks.
    pub scales: Vec<f32>,
}

/// Device memory of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepSlots {
    /// All lists of a step, one behind the other, so that one copy brings them.
    lists: Slot<u32>,
    pages_max: u32,
    rows: Mat<Act>,
    logits: Mat<Act>,
    largest: Mat<f32>,
}

/// Where a step's lists lie.
#[derive(Clone, Copy)]
struct Places {
    step: Step,
    chosen: ChosenPlaces,
}

/// Where [`Chosen`] lies.
#[derive(Clone, Copy)]
struct ChosenPlaces {
    rows: Slot<u32>,
    scales: Slot<f32>,
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
        let of_sequences = 1 + count * (2 + u64::from(pages_max));
        let found = LARGEST_MAX.min(model.vocab);
        StepSlots {
            lists: layout.slot(3 * rows + 2 * u64::from(LOGIT_ROWS) + of_sequences),
            pages_max,
            rows: layout.act(LOGIT_ROWS, model.hidden),
            logits: layout.act(LOGIT_ROWS, model.vocab),
            largest: layout.mat(LOGIT_ROWS, 2 * found + 1),
        }
    }

    /// Entries of a sequence's page list.
    pub const fn pages_max(&self) -> u32 {
        self.pages_max
    }

    /// Where the lists of a step lie: a matter of how many rows and sequences there are, and how many
    /// rows are chosen.
    fn places(&self, rows: usize, count: usize, chosen: usize) -> Places {
        let mut end = self.lists.start;
        let mut next = |len: usize| {
            let start = end;
            end += 4 * len as u64;
            Slot::new(start, len as u64)
        };
        let [tokens, positions, row_seq] = [(); 3].map(|()| next(rows));
        let (first_row, state) = (next(count + 1), next(count));
        let (chosen, scales) = (next(chosen), next(chosen));
        let pages = next(count * self.pages_max as usize);
        assert!(end <= self.lists.start + 4 * self.lists.len, "a step is larger than planned");
        let seqs = Seqs {
            count: count as u32,
            row_seq,
            positions,
            first_row,
            pages,
            pages_max: self.pages_max,
            state,
        };
        let scales = Slot::new(scales.start, scales.len);
        Places {
            step: Step { rows: rows as u32, tokens, seqs },
            chosen: ChosenPlaces { rows: chosen, scales },
        }
    }
}

/// A loaded model on its device.
pub struct Runner<D> {
    /// Where it runs.
    pub device: D,
    /// Its layers and what they work in.
    pub network: Network,
    /// What changes from step to step.
    pub step: StepSlots,
    /// Memory on the host that is kept from step to step.
    pub host: HostMemory,
}

/// What a forward pass is made of besides its input.
pub struct Network {
    /// Its weights.
    pub model: Model<Weight>,
    /// Routed experts of each layer.
    pub banks: Vec<Option<Bank>>,
    /// What each layer remembers.
    pub caches: Vec<Cache>,
    /// Activations.
    pub buffers: Buffers,
}

/// What is on its way to the device or from it.
#[derive(Default)]
pub struct HostMemory {
    lists: Vec<u32>,
    largest: Vec<f32>,
    logits: Vec<f32>,
    /// Rows of which the largest logits were not enough.
    unanswered: Vec<usize>,
}

impl Network {
    /// All layers.
    fn pass<D: Ops>(&self, d: &mut D, step: &Step, b: &Buffers) {
        blocks::embed(d, &self.model, step, b);
        for layer in 0..self.model.layers.len() {
            self.layer(d, layer, step, b);
        }
    }

    /// One layer, from `b.normed` to what the next one finds there.
    pub fn layer<D: Ops>(&self, d: &mut D, index: usize, step: &Step, b: &Buffers) {
        let layer = &self.model.layers[index];
        blocks::before_experts(d, layer, self.model.eps, &self.caches[index], step, b);
        if let (Ffn::Moe(m), Some(bank)) = (&layer.ffn, &self.banks[index]) {
            let pairs = step.rows * m.routing.top_k;
            let inner = b.pair_inner.mat(pairs, bank.inter);
            let out = b.pairs.mat(pairs, self.model.hidden);
            d.experts(b.normed, moe::routes(m, b), bank, inner, out);
        }
        blocks::after_experts(d, &self.model, index, b);
    }

    /// Logits of chosen rows of the last pass, and what is largest in them.
    fn logits<D: Ops>(&self, d: &mut D, chosen: ChosenPlaces, s: &StepSlots) {
        let count = chosen.rows.len as u32;
        let (rows, logits) = (s.rows.first(count), s.logits.first(count));
        blocks::logits(d, &self.model, &self.buffers, chosen.rows, rows, logits);
        d.largest(logits, chosen.scales, s.largest.first(count));
    }
}

impl<D: Ops + Memory> Runner<D> {
    /// Computes a step and hands out what is known of the logits of each chosen row:
    /// `hear(i, of chosen.rows[i])`. Where that is not enough, it says false and hears the whole row.
    pub fn forward(
        &mut self,
        input: &StepInput,
        chosen: &Chosen,
        mut hear: impl FnMut(usize, Known) -> bool,
    ) {
        let first = chosen.rows.len().min(LOGIT_ROWS as usize);
        let places = self.upload(input, chosen, first);
        let Runner { device, network, step: slots, .. } = self;
        let (step, b) = (places.step, network.buffers.first(places.step.rows));
        let all = |d: &mut D| {
            network.pass(d, &step, &b);
            if first > 0 {
                network.logits(d, places.chosen, slots);
            }
        };
        // Steps that only decode are alike but for what was uploaded, and all sequences are chosen.
        if step.rows == step.seqs.count && input.tokens.len() == first {
            device.repeat(step.rows, all);
        } else {
            all(device);
        }
        self.hand_out(0, &chosen.scales[..first], &mut hear);
        let rest =
            chosen.rows.chunks(LOGIT_ROWS as usize).zip(chosen.scales.chunks(LOGIT_ROWS as usize));
        for (piece, (rows, scales)) in rest.enumerate().skip(1) {
            // No more than there were at first: there is room in their place.
            let len = rows.len() as u64;
            let places = ChosenPlaces {
                rows: Slot::new(places.chosen.rows.start, len),
                scales: Slot::new(places.chosen.scales.start, len),
            };
            self.device.upload(places.rows, rows);
            self.device.upload(places.scales, scales);
            self.network.logits(&mut self.device, places, &self.step);
            self.hand_out(piece * LOGIT_ROWS as usize, scales, &mut hear);
        }
    }

    /// Uploads a step of which nothing is chosen, after which its layers may run.
    pub fn begin(&mut self, input: &StepInput) -> (Step, Buffers) {
        let step = self.upload(input, &Chosen::default(), 0).step;
        (step, self.network.buffers.first(step.rows))
    }

    /// Uploads a step with the first `first` of what is chosen.
    fn upload(&mut self, input: &StepInput, chosen: &Chosen, first: usize) -> Places {
        let StepInput { tokens, positions, row_seq, first_row, pages, state } = input;
        let scales = chosen.scales[..first].iter().map(|scale| scale.to_bits());
        let lists = &mut self.host.lists;
        lists.clear();
        for list in [tokens, positions, row_seq, first_row, state] {
            lists.extend_from_slice(list);
        }
        lists.extend_from_slice(&chosen.rows[..first]);
        lists.extend(scales);
        // A list may be shorter than planned where a test has few pages: its end is not looked at.
        lists.extend_from_slice(pages);
        self.device.upload(self.step.lists, lists);
        self.step.places(tokens.len(), state.len(), first)
    }

    /// Brings what is known of the last logits to the host; `first` is the index of their first row.
    fn hand_out(
        &mut self,
        first: usize,
        scales: &[f32],
        hear: &mut impl FnMut(usize, Known) -> bool,
    ) {
        let (count, vocab) = (scales.len() as u32, self.network.model.vocab);
        let HostMemory { largest, logits, unanswered, .. } = &mut self.host;
        let found = self.step.largest.first(count);
        if count == 0 {
            return;
        }
        self.device.download_to(found.whole(), largest);
        unanswered.clear();
        for (i, (row, &scale)) in largest.chunks_exact(found.cols as usize).zip(scales).enumerate()
        {
            if !hear(first + i, Known::Largest(Largest::of(row, scale, vocab))) {
                unanswered.push(i);
            }
        }
        // Rows that lie together come together.
        for run in unanswered.chunk_by(|a, b| a + 1 == *b) {
            let all = self.step.logits;
            let before = run[0] as u64 * u64::from(all.cols) * u64::from(D::ACT_BYTES);
            let len = run.len() as u64 * u64::from(all.cols);
            let rows = Mat::new(Slot::new(all.at.start + before, len), run.len() as u32, all.cols);
            self.device.download_act_to(rows, logits);
            for (i, row) in run.iter().zip(logits.chunks_exact(vocab as usize)) {
                let heard = hear(first + i, Known::Row(row));
                assert!(heard, "a whole row is all there is to know");
            }
        }
    }
}
