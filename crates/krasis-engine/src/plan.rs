//! Everything that will be allocated, decided before anything is: weights, buffers, KV pages.

use crate::device::Home;
use crate::error::StartError;
use crate::experts::{AwayPlan, DecodeStrategy, Desk, PrefillStrategy};
use crate::load::{Placed, Stock, bytes_of, place};
use crate::options::{Options, Residency};
use crate::preflight::Preflight;
use crate::step::StepSlots;
use krasis_core::{Bytes, KvDtype, Layout};
use krasis_machine::Need;
use krasis_model::{Buffers, Cache, CacheShape, Ffn, Mixer, Model, Source};
use krasis_ops::{Bank, Memory};

/// Tokens of a KV page: small enough that a shared prefix is found almost whole.
const PAGE: u32 = 16;

/// Context without a wish: what coding agents send, not what models were stretched to.
const CONTEXT_DEFAULT: u32 = 32_768;

/// KV tokens without a wish, shared by all sequences.
const KV_TOKENS_DEFAULT: u32 = 65_536;

/// Activations on the CPU are f32.
const HOST_ACT_BYTES: u32 = 4;

/// Where everything of a model lies, and how large it may grow.
pub struct Plan {
    /// The arena.
    pub layout: Layout,
    /// Weights.
    pub placed: Placed,
    /// KV pages and recurrent state of each layer.
    pub caches: Vec<Cache>,
    /// Activations.
    pub buffers: Buffers,
    /// What changes from step to step.
    pub step: StepSlots,
    /// How much can be remembered.
    pub cache: CacheShape,
    /// Tokens that a sequence may hold.
    pub context_max: u32,
    /// Rows of a step, or of a chunk of one.
    pub rows_max: u32,
    /// Prompt tokens of a step.
    pub pass_tokens: u32,
    /// Where experts lie that are not on the device.
    pub away: Option<AwayPlan>,
    /// Host memory for them; empty if they are on the device.
    pub host: Layout,
    /// What it takes of the machine.
    pub need: Need,
    /// Parts of the arena, for people.
    pub regions: Vec<(&'static str, Bytes)>,
}

impl Plan {
    /// Plans `model` for a home: for the activations of its device, within its memory. Experts that do
    /// not fit there go to host memory, unless the user has decided.
    pub fn new<H: Home>(
        model: &Model<Source>,
        stock: &impl Stock,
        options: &Options,
        home: &H,
    ) -> Result<Plan, StartError> {
        let device = || Plan::at(model, stock, options, home, None);
        match options.residency {
            Residency::Device => device(),
            Residency::Host { prefill, decode } => {
                Plan::at(model, stock, options, home, Some((prefill, decode)))
            }
            Residency::Auto => match device() {
                // Whoever works in host memory has no other to put them.
                Err(StartError::Shortfall { .. }) if home.preflight().is_none() => {
                    let best = (PrefillStrategy::HcsPrefill, DecodeStrategy::HcsHybrid);
                    Plan::at(model, stock, options, home, Some(best))
                }
                plan => plan,
            },
        }
    }

    fn at<H: Home>(
        model: &Model<Source>,
        stock: &impl Stock,
        options: &Options,
        home: &H,
        away: Option<(PrefillStrategy, DecodeStrategy)>,
    ) -> Result<Plan, StartError> {
        let act_bytes = H::Device::ACT_BYTES;
        let available = home.available().min(options.device_bytes.unwrap_or(Bytes(u64::MAX)));
        let fits = |need: &Need| home.preflight().map_or(Ok(()), |preflight| preflight.fits(need));
        let (mut layout, mut host) = (Layout::new(act_bytes), Layout::new(HOST_ACT_BYTES));
        let mut regions = Vec::new();
        let mut mark = |name, layout: &Layout| {
            let before: Bytes = regions.iter().map(|(_, bytes)| *bytes).sum();
            regions.push((name, Bytes(layout.bytes().0 - before.0)));
        };

        let elsewhere = away.is_some().then_some(&mut host);
        let placed = Placed::plan(model, stock, options, &mut layout, elsewhere)?;
        mark("weights", &layout);
        let weights = layout.bytes();
        let chunk = options.prefill_chunk.max(1);
        let sequences = options.sequences_max.max(1);
        let rows_max = chunk + sequences;
        let by_layers = away.is_some_and(|(prefill, _)| prefill.by_layers());
        let pass_tokens = if by_layers { options.pass_tokens.max(chunk) } else { chunk };
        let buffers = Buffers::plan(model, rows_max, pass_tokens + sequences, &mut layout);
        mark("buffers", &layout);
        let fixed = layout.bytes();
        let mut need = Need {
            weights,
            buffers: Bytes(fixed.0 - weights.0),
            cache: Bytes(0),
            threads: options.threads,
            numa: options.numa,
        };
        fits(&need)?;
        if fixed > available {
            return Err(StartError::Shortfall {
                region: "the model's weights and buffers",
                wanted: fixed,
                available,
                remedy: "quantise more (--cpu-expert-bits 4) or free memory",
            });
        }

        // Without a wish, keys and values are kept as they are computed.
        let own = if act_bytes == 2 { KvDtype::Bf16 } else { KvDtype::F32 };
        let dtype = options.kv.unwrap_or(own);
        let left = Bytes(available.0 - fixed.0);
        let tokens = if away.is_some() { 0 } else { KV_TOKENS_DEFAULT };
        let (context_max, cache) = cache_shape(model, options, dtype, tokens, left)?;
        let pages_max = context_max.div_ceil(PAGE);
        let step = StepSlots::plan(rows_max, sequences, pages_max, model, &mut layout);
        let caches = Cache::plan(model, cache, &mut layout);
        mark("KV cache", &layout);
        need.cache = Bytes(layout.bytes().0 - fixed.0);
        fits(&need)?;
        let away = match away {
            Some((prefill, decode)) => {
                let slots = Pool::of(&placed.banks, model)?;
                let room = Room { available, rows_max, options };
                let plan = slots.plan(prefill, decode, room, &mut layout, &mut host)?;
                mark("expert slots", &layout);
                let (weights, buffers) = (host.bytes(), Bytes(0));
                let need = Need { weights, buffers, cache: Bytes(0), ..need };
                Preflight::new(options).fits(&need)?;
                Some(plan)
            }
            None => None,
        };
        if away.is_some() {
            regions.push(("experts in host memory", host.bytes()));
        }
        Ok(Plan {
            layout,
            placed,
            caches,
            buffers,
            step,
            cache,
            context_max,
            rows_max,
            pass_tokens,
            away,
            host,
            need,
            regions,
        })
    }
}

/// Routed experts that are to share slots.
struct Pool<'a> {
    /// Of any layer: all are alike.
    bank: &'a Bank,
    layers: u32,
    hidden: u32,
    top_k: u32,
}

/// What there is for slots.
struct Room<'a> {
    available: Bytes,
    rows_max: u32,
    options: &'a Options,
}

impl<'a> Pool<'a> {
    fn of(banks: &'a [Option<Bank>], model: &Model<Source>) -> Result<Pool<'a>, StartError> {
        let shape = |bank: &Bank| (bank.experts, bank.inter, bank.gate_up.format, bank.down.format);
        let mut all = banks.iter().flatten();
        let bank = all.next().ok_or(StartError::NoExperts)?;
        if all.any(|other| shape(other) != shape(bank)) {
            return Err(StartError::UnlikeExperts);
        }
        let top_k = model.layers.iter().filter_map(|layer| match &layer.ffn {
            Ffn::Moe(moe) => Some(moe.routing.top_k),
            Ffn::Dense(_) => None,
        });
        Ok(Pool {
            bank,
            layers: banks.iter().flatten().count() as u32,
            hidden: model.hidden,
            top_k: top_k.max().unwrap_or(0),
        })
    }

    /// A bank of so many experts of any layer.
    fn place(&self, slots: u32, layout: &mut Layout) -> Bank {
        let Bank { gate_up, down, experts, inter } = *self.bank;
        let rows = |all: u32| all / experts * slots;
        Bank {
            gate_up: place(gate_up.format, rows(gate_up.rows), gate_up.cols, layout),
            down: place(down.format, rows(down.rows), down.cols, layout),
            experts: slots,
            inter,
        }
    }

    /// Slots for the rest of the device's memory.
    fn plan(
        &self,
        prefill: PrefillStrategy,
        decode: DecodeStrategy,
        room: Room,
        layout: &mut Layout,
        host: &mut Layout,
    ) -> Result<AwayPlan, StartError> {
        let Bank { gate_up, down, experts, inter } = self.bank;
        let each = (bytes_of(gate_up) + bytes_of(down)).0 / u64::from(*experts);
        let places = layout.slot(u64::from(room.rows_max) * u64::from(self.top_k));
        let tables = layout.slot(u64::from(self.layers * experts));
        let counts = layout.slot(u64::from(self.layers * experts));
        let left = Bytes(room.available.0.saturating_sub(layout.bytes().0));
        let all = self.layers * experts;
        // What alignment takes is seen when they are laid out.
        let within = |slots: &u32| {
            let mut layout = layout.clone();
            self.place(*slots, &mut layout);
            layout.bytes() <= room.available
        };
        let most = u32::try_from(left.0 / each).unwrap_or(u32::MAX).min(all);
        let fit = (0..=most).rev().find(within).unwrap_or(0);
        let least = match decode {
            DecodeStrategy::Compact => self.layers,
            _ => 1,
        };
        let least = least.max(prefill.slots_min(self.layers, *experts));
        if fit < least {
            return Err(StartError::Shortfall {
                region: "the experts that are on the device at a time",
                wanted: Bytes(each * u64::from(least + 1)),
                available: left,
                remedy: "choose a larger --expert-divisor, or lower --context-max or --prefill-chunk",
            });
        }
        let moving = match prefill {
            PrefillStrategy::Chunked | PrefillStrategy::ActiveOnly => (*experts).min(fit),
            // Twice, so that the next layers come while these are at work.
            by_layers => 2 * by_layers.slots_min(self.layers, *experts),
        };
        let keeps = prefill == PrefillStrategy::HcsPrefill || decode == DecodeStrategy::HcsHybrid;
        // A whole chunk is a prompt's, however short the user wants chunks to be.
        let threshold = room.options.prompt_rows.min(room.options.prefill_chunk).max(1);
        let desk_rows = threshold.saturating_sub(1).max(1);
        Ok(AwayPlan {
            prefill,
            decode,
            threshold,
            pool: self.place(fit, layout),
            places,
            tables,
            counts,
            hot: if keeps { fit - moving.min(fit) } else { 0 },
            desk: Desk::plan(desk_rows, self.hidden, self.top_k, *inter, host),
        })
    }
}

fn cache_shape(
    model: &Model<Source>,
    options: &Options,
    dtype: KvDtype,
    tokens_default: u32,
    available: Bytes,
) -> Result<(u32, CacheShape), StartError> {
    let page_bytes = Cache::page_bytes(model, PAGE, dtype).0.max(1);
    // Half of what is left: the other half is the system's and the file cache's.
    let fits =
        u32::try_from(available.0 / 2 / page_bytes).unwrap_or(u32::MAX / PAGE).min(u32::MAX / PAGE)
            * PAGE;
    let context_max = match options.context_max {
        Some(wanted) if wanted > model.context_max => {
            return Err(StartError::Context { wanted, model: model.context_max });
        }
        Some(wanted) => wanted.max(1),
        None => model.context_max.min(CONTEXT_DEFAULT).min(fits.max(PAGE)),
    };
    if context_max > fits.max(PAGE) {
        return Err(StartError::Shortfall {
            region: "the KV cache of one whole context",
            wanted: Bytes(page_bytes * u64::from(context_max.div_ceil(PAGE))),
            available: Bytes(available.0 / 2),
            remedy: "lower --context-max or choose --kv-dtype fp8_e4m3",
        });
    }
    let sequences = options.sequences_max.max(1);
    let tokens =
        context_max.saturating_mul(sequences).min(tokens_default).min(fits).max(context_max);
    let pages = match options.kv_pages {
        Some(pages) => pages.max(context_max.div_ceil(PAGE)),
        // A page more per sequence: the last of each is seldom full.
        None => tokens.div_ceil(PAGE) + sequences,
    };
    Ok((context_max, CacheShape { pages, page: PAGE, places: sequences, dtype }))
}

/// Whether KV pages hold all that the model remembers of a prefix.
pub fn pages_hold_everything(model: &Model<Source>) -> bool {
    !model.layers.iter().any(|layer| matches!(layer.mixer, Mixer::DeltaNet(_)))
}
