//! What a model will ask of a device, told to one that only listens: so that a GPU has the kernels that are
//! needed before anything is loaded, and no others.

use crate::experts::Work;
use crate::network::Network;
use crate::plan::Plan;
use crate::step::{LOGIT_ROWS, Places};
use krasis_core::Layout;
use krasis_model::blocks;
use krasis_ops::{KEYS_TOGETHER, Memory, Ops, PROMPT_ROWS, Prompts};

/// Rows of prompts: on both sides of every number at which a device may take another kernel. One that is
/// not foreseen is compiled when it is asked for.
const ROWS: [u32; 12] = [1, 2, 4, 8, 9, 16, 33, 64, 65, 128, PROMPT_ROWS, 2048];

/// A plan, to be rehearsed.
pub struct Rehearsal<'a> {
    plan: &'a Plan,
    sequences: u32,
}

impl<'a> Rehearsal<'a> {
    /// Of steps of up to so many sequences.
    pub const fn new(plan: &'a Plan, sequences: u32) -> Rehearsal<'a> {
        Rehearsal { plan, sequences }
    }

    /// Where everything would lie.
    pub const fn layout(&self) -> &Layout {
        &self.plan.layout
    }

    /// Asks `d` for all that steps consist of. It need not have memory for it.
    pub fn on<D: Ops + Memory>(&self, d: &mut D) {
        let plan = self.plan;
        let network = Network {
            model: plan.placed.weights(),
            caches: plan.caches.clone(),
            buffers: plan.buffers,
            before: plan.placed.before,
        };
        let fitting = |most: u32| ROWS.into_iter().filter(move |rows| *rows <= most);
        let decoding = fitting(self.sequences.min(plan.rows_max)).map(|rows| (rows, rows));
        for (rows, sequences) in decoding.chain(fitting(plan.rows_max).map(|rows| (rows, 1))) {
            self.step(d, &network, rows, sequences);
        }
    }

    fn step<D: Ops + Memory>(&self, d: &mut D, network: &Network, rows: u32, sequences: u32) {
        let chosen = sequences.min(LOGIT_ROWS) as usize;
        let Places { mut step, chosen } =
            self.plan.step.places(rows as usize, sequences as usize, chosen);
        if rows / sequences >= PROMPT_ROWS {
            let keys = rows.next_multiple_of(KEYS_TOGETHER);
            step.seqs.prompts = Prompts { count: sequences, rows, keys };
        }
        let (model, b) = (&network.model, network.buffers.part(0, rows));
        if network.before == 0 {
            blocks::embed(d, model, &step, &b);
        }
        for (index, (layer, cache)) in model.layers.iter().zip(&network.caches).enumerate() {
            blocks::before_experts(d, layer, model.eps, cache, &step, &b);
            if let Some(work) = network.work(index, &step, &b) {
                self.experts(d, index, &work);
            }
            blocks::after_experts(d, model, index, &b);
        }
        if model.vocab > 0 {
            network.logits(d, chosen, &self.plan.step);
        }
    }

    fn experts<D: Ops>(&self, d: &mut D, layer: usize, work: &Work) {
        let (plan, routes) = (self.plan, work.routes);
        let bank = match &plan.away {
            Some(away) => {
                d.place(routes.experts, away.tables, away.counts, routes.experts.whole());
                Some(&away.pool)
            }
            None => plan.placed.banks[layer].as_ref(),
        };
        if let Some(bank) = bank {
            d.experts(work.x, routes, bank, work.inner, work.out);
        }
        let Some(away) = &plan.away else { return };
        away.helpers.iter().for_each(|helper| helper.rehearse(d, work));
    }
}
