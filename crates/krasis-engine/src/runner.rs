//! One forward pass over all layers: on one device and what helps it, or on several, each of which goes on
//! with what the one before hands over.

use crate::experts::{DecodeStrategy, Experts, Fault, Repeats, Traffic};
use crate::network::{Network, Repeat};
use crate::sample::{Known, Largest};
use crate::step::{Chosen, ChosenPlaces, LOGIT_ROWS, Places, StepInput, StepSlots};
use krasis_core::{Act, Mat, Slot};
use krasis_model::Buffers;
use krasis_model::blocks::Step;
use krasis_ops::{Memory, Ops, Prompts};
use std::time::Instant;

/// Decoded rows up to which a device remembers what comes between the experts of two layers, if those
/// are asked for from outside: each number of rows takes memory for all layers.
const ROWS_REMEMBERED: u32 = 8;

/// Rows of decode steps that are run before anybody waits for them: one of an answer alone, and those of
/// a few together.
const ROWS_WARM: [u32; 4] = [1, 2, 4, 8];

/// Consecutive layers of a model on their device.
pub struct Rank<D> {
    /// Other devices that have a part in a prompt's experts. They go before the one that has pinned these.
    pub helpers: Vec<D>,
    /// Where they run.
    pub device: D,
    /// The layers and what they work in.
    pub network: Network,
    /// Routed experts of each layer.
    pub experts: Experts,
    /// What changes from step to step.
    pub step: StepSlots,
    /// What it takes over of the rank before, if there is one: where rows of a pass lie there, and here.
    pub takes: Option<[(Mat<Act>, Mat<Act>); 2]>,
}

/// A loaded model on its devices.
pub struct Runner<D> {
    /// In the order of their layers. Each remembers its own layers' part of every sequence, under the
    /// same pages and places.
    pub ranks: Vec<Rank<D>>,
    /// Rows that buffers are made for; a pass of more is made of chunks.
    pub rows_max: u32,
    /// Where the rows of an open pass begin: those before it are for steps beside it.
    pub first_of_pass: u32,
    /// Memory on the host that is kept from step to step.
    pub host: HostMemory,
}

/// What is on its way to the device or from it.
#[derive(Default)]
pub struct HostMemory {
    lists: Vec<u32>,
    largest: Vec<f32>,
    logits: Vec<f32>,
    /// Rows of which the largest logits were not enough.
    unanswered: Vec<usize>,
    /// The chunk at work.
    chunk: StepInput,
}

impl<D: Ops + Memory> Runner<D> {
    /// What has been copied and computed where, on all devices.
    pub fn traffic(&self) -> Traffic {
        self.ranks.iter().map(|rank| rank.experts.traffic()).sum()
    }

    /// Goes on with another strategy for few rows; false if there is none to change, or no room for it.
    pub fn switch(&mut self, decode: DecodeStrategy, threshold: u32) -> bool {
        let mut switched = self.ranks.iter_mut();
        switched.all(|rank| rank.experts.switch(decode, threshold))
    }

    /// Where it is said that a step failed, if it can.
    pub fn fault(&self) -> Option<Fault> {
        self.ranks.iter().find_map(|rank| rank.experts.fault())
    }

    /// Computes a step and hands out what is known of the logits of each chosen row:
    /// `hear(i, of chosen.rows[i])`. Where that is not enough, it says false and hears the whole row.
    pub fn forward(
        &mut self,
        input: &StepInput,
        chosen: &Chosen,
        mut hear: impl FnMut(usize, Known) -> bool,
    ) {
        let Runner { ranks, rows_max, host, .. } = self;
        let rows = input.tokens.len() as u32;
        let last = ranks.len() - 1;
        let mut heard = 0;
        for index in 0..ranks.len() {
            if let [.., before, rank] = &mut ranks[..=index] {
                before.hand_over(rank, rows);
            }
            let rank = &mut ranks[index];
            let groups = rank.experts.begin(rows);
            if groups == 1 && rows <= *rows_max {
                // Logits are the last one's.
                let first =
                    if index == last { chosen.rows.len().min(LOGIT_ROWS as usize) } else { 0 };
                rank.whole(input, chosen, first, host);
                heard = first;
            } else {
                (0..groups).for_each(|group| rank.group(group, input, (0, *rows_max), host));
            }
        }
        // While devices are at work on what is waited for then.
        ranks.iter_mut().for_each(|rank| rank.experts.end(&mut rank.device));
        ranks[last].hand_out(0, &chosen.scales[..heard], host, &mut hear);
        self.logits_from(heard, chosen, 0, &mut hear);
    }

    /// Groups that a pass of so many rows takes its layers in, if others may come between them: several
    /// devices hand a pass on as a whole.
    pub fn groups(&mut self, rows: u32) -> usize {
        match &mut self.ranks[..] {
            [rank] if rank.helpers.is_empty() => rank.experts.begin(rows),
            _ => 1,
        }
    }

    /// Begins a pass whose groups are computed one at a time, by [`Runner::group_of_pass`]: as many as the
    /// result says, until [`Runner::close`]. Between them there may be other steps, of as many rows as
    /// sequences may run.
    pub fn open(&mut self, input: &StepInput) -> usize {
        self.alone().experts.open(input.tokens.len() as u32)
    }

    /// The next group of an open pass.
    pub fn group_of_pass(&mut self, group: usize, input: &StepInput) {
        let Runner { ranks, rows_max, first_of_pass, host } = self;
        let rank = &mut ranks[0];
        rank.experts.begin(input.tokens.len() as u32);
        rank.group(group, input, (*first_of_pass, *rows_max), host);
    }

    /// Ends a pass after its last group, and hands out its logits as [`Runner::forward`] does.
    pub fn close(
        &mut self,
        input: &StepInput,
        chosen: &Chosen,
        mut hear: impl FnMut(usize, Known) -> bool,
    ) {
        let rank = self.alone();
        rank.experts.begin(input.tokens.len() as u32);
        rank.experts.close();
        rank.experts.end(&mut rank.device);
        self.logits_from(0, chosen, self.first_of_pass, &mut hear);
    }

    /// Ends a pass whose outcome nobody wants.
    pub fn give_up(&mut self) {
        let rank = self.alone();
        rank.experts.give_up(&mut rank.device);
    }

    /// The one device that there is where passes are open.
    fn alone(&mut self) -> &mut Rank<D> {
        let [rank] = &mut self.ranks[..] else { unreachable!("several devices open no pass") };
        rank
    }

    /// The logits of chosen rows from number `heard` on, of a pass that lies from row `at` on.
    fn logits_from(
        &mut self,
        heard: usize,
        chosen: &Chosen,
        at: u32,
        hear: &mut impl FnMut(usize, Known) -> bool,
    ) {
        let Runner { ranks, host, .. } = self;
        let rank = ranks.last_mut().expect("there is a device");
        // What comes now takes the place of the lists, which nobody needs any more.
        let places = rank.step.places(0, 0, LOGIT_ROWS as usize).chosen;
        for first in (heard..chosen.rows.len()).step_by(LOGIT_ROWS as usize) {
            let piece = first..chosen.rows.len().min(first + LOGIT_ROWS as usize);
            let scales = &chosen.scales[piece.clone()];
            let rows: Vec<u32> = chosen.rows[piece].iter().map(|row| at + row).collect();
            let len = rows.len() as u64;
            let places = ChosenPlaces {
                rows: Slot::new(places.rows.start, len),
                scales: Slot::new(places.scales.start, len),
            };
            rank.device.upload(places.rows, &rows);
            rank.device.upload(places.scales, scales);
            rank.network.logits(&mut rank.device, places, &rank.step);
            rank.hand_out(first, scales, host, hear);
        }
    }

    /// Has devices that remember steps run those of up to `sequences` rows until they do, so that an
    /// answer's first tokens are as fast as the others. Rows are sequences that begin, in page 0 and in place
    /// 0, which nobody owns yet. Where experts lie away from a device, rows of nobody would count as
    /// asking for some, so there are none.
    pub fn warm_up(&mut self, sequences: u32) {
        let resident = |rank: &Rank<D>| rank.experts.repeats() == Repeats::Step;
        if !D::REMEMBERS || !self.ranks.iter().all(resident) {
            return;
        }
        let (started, most) = (Instant::now(), sequences.min(self.rows_max));
        let pages_max = self.ranks[0].step.pages_max();
        for rows in ROWS_WARM.into_iter().filter(|rows| *rows <= most) {
            let count = rows as usize;
            let input = StepInput {
                tokens: vec![0; count],
                positions: vec![0; count],
                row_seq: (0..rows).collect(),
                first_row: (0..=rows).collect(),
                pages: vec![0; (rows * pages_max) as usize],
                state: vec![0; count],
            };
            let chosen = Chosen { rows: (0..rows).collect(), scales: vec![1.0; count] };
            // The second time a step is remembered.
            for _ in 0..2 {
                self.forward(&input, &chosen, |_, _| true);
            }
        }
        tracing::info!(seconds = started.elapsed().as_secs_f32(), "decode steps are remembered");
    }
}

impl<D: Ops + Memory> Rank<D> {
    /// Gives the next rank what goes from layer to layer, of so many rows.
    fn hand_over(&mut self, to: &mut Rank<D>, rows: u32) {
        let bytes = |mat: Mat<Act>| {
            let Slot { start, len, .. } = mat.first(rows).whole();
            Slot::new(start, len * u64::from(D::ACT_BYTES))
        };
        let takes = to.takes.expect("a rank behind another one takes over");
        let pieces = takes.map(|(here, there)| (bytes(here), bytes(there)));
        self.device.hand_over(&mut to.device, &pieces);
    }

    /// All of its layers, and the logits of the first `first` chosen rows.
    fn whole(&mut self, input: &StepInput, chosen: &Chosen, first: usize, host: &mut HostMemory) {
        let all_chosen = input.tokens.len() == chosen.rows.len().min(LOGIT_ROWS as usize);
        let Places { step, chosen } = self.upload(input, chosen, first, host);
        let Rank { device, helpers, network, experts, step: slots, .. } = self;
        let layers = experts.enter(device, helpers, 0);
        let b = network.buffers.part(0, step.rows);
        let end = |d: &mut D| {
            if first > 0 {
                network.logits(d, chosen, slots);
            }
        };
        // Steps that only decode are alike but for what was uploaded, and all sequences are chosen.
        let decodes = step.rows == step.seqs.count && all_chosen;
        let all = |d: &mut D, experts: &mut Experts, repeat| {
            network.layers(d, (experts, helpers), layers, (&step, &b), repeat, end);
        };
        let few = step.rows <= ROWS_REMEMBERED;
        match experts.repeats() {
            Repeats::Step if decodes => {
                device.repeat(step.rows, experts, |d, e| all(d, e, Repeat::Never));
            }
            Repeats::StepOfFew(decode)
                if decodes && few && network.model.hidden.is_multiple_of(8) =>
            {
                // Strategies may take turns.
                let key = step.rows | (decode as u32) << 24;
                device.repeat(key, experts, |d, e| all(d, e, Repeat::Never));
            }
            Repeats::Between if decodes && few => {
                all(device, experts, Repeat::From(step.rows << 16));
            }
            _ => all(device, experts, Repeat::Never),
        }
    }

    /// The layers of a group, for one chunk after the other of up to `rows_max` rows, of a pass that lies
    /// from row `at` on.
    fn group(
        &mut self,
        group: usize,
        input: &StepInput,
        (at, rows_max): (u32, u32),
        host: &mut HostMemory,
    ) {
        let rows = input.tokens.len() as u32;
        let layers = self.experts.enter(&mut self.device, &mut self.helpers, group);
        let mut chunk = std::mem::take(&mut host.chunk);
        let mut next = 0;
        while next < rows {
            let (first, end) = (next, input.chunk_end(next, rows_max));
            next = end;
            let of_pass = first..end;
            let (step, b) = if of_pass == (0..rows) {
                self.begin(input, at, host)
            } else {
                chunk.cut(input, of_pass, self.step.pages_max());
                self.begin(&chunk, at + first, host)
            };
            let Rank { device, helpers, network, experts, .. } = self;
            let whose = (&mut *experts, &mut helpers[..]);
            network.layers(device, whose, layers.clone(), (&step, &b), Repeat::Never, |_| {});
        }
        host.chunk = chunk;
    }

    /// Uploads a chunk of which nothing is chosen and which begins at row `first` of its pass, after which
    /// its layers may run.
    pub fn begin(
        &mut self,
        input: &StepInput,
        first: u32,
        host: &mut HostMemory,
    ) -> (Step, Buffers) {
        let step = self.upload(input, &Chosen::default(), 0, host).step;
        (step, self.network.buffers.part(first, step.rows))
    }

    /// Uploads a step with the first `first` of what is chosen.
    fn upload(
        &mut self,
        input: &StepInput,
        chosen: &Chosen,
        first: usize,
        host: &mut HostMemory,
    ) -> Places {
        let StepInput { tokens, positions, row_seq, first_row, pages, state } = input;
        let scales = chosen.scales[..first].iter().map(|scale| scale.to_bits());
        let lists = &mut host.lists;
        lists.clear();
        for list in [tokens, positions, row_seq, first_row, state] {
            lists.extend_from_slice(list);
        }
        lists.extend_from_slice(&chosen.rows[..first]);
        lists.extend(scales);
        // A list may be shorter than planned where a test has few pages: its end is not looked at.
        lists.extend_from_slice(pages);
        self.device.upload(self.step.lists, lists);
        let mut places = self.step.places(tokens.len(), state.len(), first);
        places.step.seqs.prompts = Prompts::of(first_row, positions);
        places
    }

    /// Brings what is known of the last logits to the host; `first` is the index of their first row.
    fn hand_out(
        &mut self,
        first: usize,
        scales: &[f32],
        host: &mut HostMemory,
        hear: &mut impl FnMut(usize, Known) -> bool,
    ) {
        let (count, vocab) = (scales.len() as u32, self.network.model.vocab);
        let HostMemory { largest, logits, unanswered, .. } = host;
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
