//! What a step is made of: its lists, and where they lie on the device.

use crate::kv::STRIDE;
use krasis_core::{Act, Layout, Mat, Slot};
use krasis_model::Model;
use krasis_model::blocks::Step;
use krasis_ops::{LARGEST_MAX, PROMPT_ROWS, Prompts, Seqs};
use std::ops::Range;

/// Rows whose logits are computed at a time: they are as wide as the vocabulary.
pub(crate) const LOGIT_ROWS: u32 = 32;

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
    /// Where a chunk ends that begins at row `first` and has at most `rows_max`: if that is in a sequence,
    /// at a multiple of 64 of its tokens, where checkpoints may lie and delta nets sum anew.
    pub fn chunk_end(&self, first: u32, rows_max: u32) -> u32 {
        let (rows, stride) = (self.tokens.len() as u32, STRIDE as u32);
        let end = rows.min(first + rows_max);
        let ends_well = |&row: &u32| {
            let row = row as usize;
            row == rows as usize
                || self.row_seq[row] != self.row_seq[row - 1]
                || self.positions[row].is_multiple_of(stride)
        };
        let end = (first + 1..=end).rev().take(STRIDE).find(ends_well).unwrap_or(end);
        // Prompts come last, so the beginning of one that is too short for one waits for the next chunk.
        let begin = |row: u32| self.first_row[self.row_seq[row as usize] as usize].max(first);
        let last = begin(end - 1);
        let follows = last > first && last - begin(last - 1) >= PROMPT_ROWS;
        if follows && end - last < PROMPT_ROWS { last } else { end }
    }

    /// Makes this the given rows of `whole`, whose page lists have `pages_max` entries each.
    pub fn cut(&mut self, whole: &StepInput, rows: Range<u32>, pages_max: u32) {
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
    pub(crate) lists: Slot<u32>,
    pages_max: u32,
    pub(crate) rows: Mat<Act>,
    pub(crate) logits: Mat<Act>,
    pub(crate) largest: Mat<f32>,
}

/// Where a step's lists lie.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    pub step: Step,
    pub chosen: ChosenPlaces,
}

/// Where [`Chosen`] lies.
#[derive(Clone, Copy)]
pub(crate) struct ChosenPlaces {
    pub rows: Slot<u32>,
    pub scales: Slot<f32>,
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
    pub(crate) fn places(&self, rows: usize, count: usize, chosen: usize) -> Places {
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
            prompts: Prompts::NONE,
        };
        let scales = Slot::new(scales.start, scales.len);
        Places {
            step: Step { rows: rows as u32, tokens, seqs },
            chosen: ChosenPlaces { rows: chosen, scales },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::StepInput;

    fn rows_of(parts: &[(u32, u32)]) -> StepInput {
        let mut input = StepInput::default();
        for (seq, &(position, rows)) in (0..).zip(parts) {
            input.tokens.extend((0..rows).map(|_| 0));
            input.first_row.push(input.row_seq.len() as u32);
            input.positions.extend(position..position + rows);
            input.row_seq.extend((0..rows).map(|_| seq));
        }
        input
    }

    #[test]
    fn chunks_end_where_delta_nets_sum_anew() {
        // Two decoded tokens, 100 rows of a prompt from 50 on, 200 of another one.
        let input = rows_of(&[(7, 1), (9, 1), (50, 100), (0, 200)]);
        for (first, rows_max, end) in [
            (0, 1, 1),
            (0, 2, 2),
            (0, 10, 2),
            (0, 16, 16),
            (0, 100, 80),
            (80, 100, 166),
            (0, 302, 302),
            (102, 63, 165),
            (166, 1000, 302),
        ] {
            assert_eq!(input.chunk_end(first, rows_max), end, "{first} {rows_max}");
        }
    }

    #[test]
    fn no_chunk_has_few_rows_behind_those_of_a_prompt() {
        let input = rows_of(&[(7, 1), (0, 300), (0, 400)]);
        for (first, rows_max, end) in [
            (0, 200, 193),
            (0, 310, 301),
            (0, 500, 301),
            (0, 600, 557),
            (100, 400, 493),
            (200, 300, 493),
            (301, 100, 365),
        ] {
            assert_eq!(input.chunk_end(first, rows_max), end, "{first} {rows_max}");
        }
    }
}
