//! The work of one step.

use crate::request::Request;
use crate::sample;
use crate::sequence::Sequence;
use crate::step::{Chosen, StepInput};

/// One step's work.
#[derive(Debug, Default)]
pub struct Batch {
    /// For the device.
    pub input: StepInput,
    /// Rows whose logits are wanted.
    pub chosen: Chosen,
    /// What each of them is wanted for.
    pub(crate) wanted: Vec<Wanted>,
    /// Rows of each sequence that runs, from its `computed` on.
    pub(crate) parts: Vec<usize>,
}

/// The logits of a row, and whose they are.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub sequence: usize,
    pub position: usize,
}

impl Batch {
    /// Whether it reads a prompt, or only decodes.
    pub fn reads(&self) -> bool {
        self.parts.iter().any(|&rows| rows > 1)
    }

    /// Tokens of it.
    pub fn rows(&self) -> u32 {
        self.input.tokens.len() as u32
    }

    /// Keeps the memory: a decode step allocates nothing.
    pub(crate) fn clear(&mut self) {
        let StepInput { tokens, positions, row_seq, first_row, pages, state } = &mut self.input;
        let rows = &mut self.chosen.rows;
        let lists = [tokens, positions, row_seq, first_row, pages, state, rows];
        lists.into_iter().for_each(Vec::clear);
        self.chosen.scales.clear();
        self.wanted.clear();
        self.parts.clear();
    }

    /// Adds the next `rows` of a sequence, which is the one with this index among those that run.
    pub(crate) fn push(&mut self, index: usize, s: &Sequence, rows: usize, pages_max: usize) {
        let held = s.held.as_ref().expect("running sequences hold memory");
        let input = &mut self.input;
        let seq = input.state.len() as u32;
        input.first_row.push(input.tokens.len() as u32);
        input.pages.extend_from_slice(&held.pages);
        input.pages.resize((seq as usize + 1) * pages_max, 0);
        input.state.push(held.place);
        for position in s.computed..s.computed + rows {
            if s.wants_prompt_logprob(position) || s.wants_token(position) {
                let Request { sampling, logprobs, .. } = &s.request;
                self.chosen.rows.push(input.tokens.len() as u32);
                self.chosen.scales.push(sample::weight_scale(sampling, *logprobs));
                self.wanted.push(Wanted { sequence: index, position });
            }
            input.tokens.push(s.tokens[position]);
            input.positions.push(position as u32);
            input.row_seq.push(seq);
        }
    }
}
