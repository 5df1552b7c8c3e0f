//! Everything that will be allocated, decided before anything is: weights, buffers, KV pages, slots
//! for experts. Which strategy is best is [`crate::planner`]'s to say; this lays one out.

mod overflow;

pub(crate) use overflow::Spill;

use crate::error::StartError;
use crate::experts::{
    AwayPlan, Chunk, Counter, DecodeStrategy, Desk, HelperPlan, OverflowPlan, PrefillStrategy,
    hot_slots, slots_for,
};
use crate::kv::{HOST_BYTES, PrefixOptions, Reuse};
use crate::load::{Placed, Stock, bytes_of, place};
use crate::options::Options;
use crate::planner::{Draft, Part, Site};
use crate::preflight;
use crate::step::StepSlots;
use krasis_core::{Bytes, KvDtype, Layout, Slot};
use krasis_machine::Need;
use krasis_model::{Buffers, Cache, CacheShape, Ffn, Model, Source};
use krasis_ops::Bank;

/// Tokens of a KV page: small enough that a shared prefix is found almost whole.
pub const PAGE: u32 = 16;

/// What coding agents send. Experts leave a GPU's memory for a context of so many tokens, but for no
/// longer one unless it is asked for.
pub const CONTEXT_COMMON: u32 = 32_768;

/// What is enough to talk in. Prompts take experts in waves where they cannot come layer by layer beside
/// so many tokens.
pub const CONTEXT_SHORT: u32 = 4096;

/// KV tokens without a wish, shared by all sequences.
const KV_TOKENS_DEFAULT: u32 = 65_536;

/// Checkpoints of recurrent state without a wish, and the part of the memory left by weights and
/// activations that they take at most.
const CHECKPOINTS_DEFAULT: u32 = 16;
const CHECKPOINTS_PART: u64 = 16;

/// Host memory for prefixes without a wish, where it is not the device's.
const PREFIX_RAM_DEFAULT: Bytes = Bytes(4 << 30);

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
    /// Host memory for prefixes that the device has no more room for.
    pub prefix_ram: Bytes,
    /// Where experts lie that are not on the device.
    pub away: Option<AwayPlan>,
    /// Slots for experts that are on the disk.
    pub overflow: Option<OverflowPlan>,
    /// Host memory for them; empty if they are on the device.
    pub host: Layout,
    /// What it takes of the host's memory.
    pub need: Need,
    /// Parts of the arena, for people.
    pub regions: Vec<(&'static str, Bytes)>,
    /// Parts of the host memory besides it, for people.
    pub host_regions: Vec<(&'static str, Bytes)>,
    /// Devices that help with prompts: their arenas.
    pub helpers: Vec<Layout>,
}

/// Where routed experts shall lie, and what goes with that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    /// Strategies for experts in host memory; none if all lie on the device.
    pub away: Option<(PrefillStrategy, DecodeStrategy)>,
    /// Whether experts may stay on the disk.
    pub spill: Spill,
    /// The shortest context that will do where none was asked for.
    pub context_min: u32,
    /// The longest that is worth its memory then.
    pub context_most: u32,
}

impl Plan {
    /// Plans `model` for one device with activations of `act_bytes` on a machine. Experts that do not fit
    /// into a GPU's memory go to the host's, unless the user has decided. Where nothing works, the
    /// error names the nearest setting that does.
    pub fn new(
        model: &Model<Source>,
        stock: &impl Stock,
        options: &Options,
        act_bytes: u32,
        site: &Site,
    ) -> Result<Plan, StartError> {
        let mut parts = Plan::parts(model, stock, options, act_bytes, site)?;
        assert_eq!(parts.len(), 1, "one plan for {} devices", parts.len());
        Ok(parts.swap_remove(0).plan)
    }

    /// Plans `model` for as many devices as are wanted, in the same way: consecutive layers for each.
    pub fn parts(
        model: &Model<Source>,
        stock: &impl Stock,
        options: &Options,
        act_bytes: u32,
        site: &Site,
    ) -> Result<Vec<Part>, StartError> {
        Draft { model, before: 0, stock, options, act_bytes, site }.plan()
    }

    /// Lays a choice out on one device.
    pub(crate) fn of(draft: &Draft<'_, impl Stock>, choice: Choice) -> Result<Plan, StartError> {
        let Draft { model, before, stock, options, act_bytes, site } = *draft;
        let available = choice.spill.available(site, options);
        let fits = |need: &Need| match &site.card {
            None => preflight::fits(&site.host.machine, need),
            Some(_) => Ok(()),
        };
        let (mut layout, mut host) = (Layout::new(act_bytes), Layout::new(HOST_ACT_BYTES));
        let mut regions: Vec<(&'static str, Bytes)> = Vec::new();

        let mut on_disk = Layout::new(HOST_ACT_BYTES);
        let elsewhere = match choice.spill {
            Spill::ToDisk => Some(&mut on_disk),
            Spill::Nothing => choice.away.is_some().then_some(&mut host),
        };
        let mut placed = Placed::plan(model, stock, options, &mut layout, elsewhere)?;
        placed.before = before;
        let placed = match choice.spill {
            Spill::ToDisk => placed.leave_banks(),
            Spill::Nothing => placed,
        };
        let experts = placed.banks.iter().flatten();
        let experts: Bytes =
            experts.map(|bank| bytes_of(&bank.gate_up) + bytes_of(&bank.down)).sum();
        mark("weights", &layout, &mut regions);
        if choice.away.is_none() && !placed.banks_stay && experts > Bytes(0) {
            // They lie behind the others.
            regions[0].1 = Bytes(layout.bytes().0 - experts.0);
            regions.push(("experts", experts));
        }
        let weights = layout.bytes();
        // Some parts of a model have dense layers only.
        let moves =
            |_: &_| before == 0 && model.vocab > 0 || placed.banks.iter().any(Option::is_some);
        let pool = match choice.away.filter(moves) {
            Some(strategies) => {
                Some(Pool::of(&placed.banks, model, strategies, options.ranks.helpers())?)
            }
            None if placed.banks_stay => Some(Pool::spilled(&placed.banks, model)?),
            None => None,
        };
        let chunk = options.prefill_chunk.max(1);
        let sequences = options.sequences_max.max(1);
        let rows_max = chunk + sequences;
        let by_layers = choice.away.is_some_and(|(prefill, _)| prefill.by_layers());
        let pass_tokens = match choice.spill {
            Spill::ToDisk => choice.pass_from_disk(model, options),
            Spill::Nothing if by_layers => options.pass_tokens,
            Spill::Nothing => chunk,
        };
        let pass_tokens = pass_tokens.max(chunk);
        let buffers = Buffers::plan(model, rows_max, pass_tokens + sequences, &mut layout);
        mark("buffers", &layout, &mut regions);
        let fixed = layout.bytes();
        let mut need = Need {
            weights,
            buffers: Bytes(fixed.0 - weights.0),
            cache: Bytes(0),
            threads: options.threads,
            numa: options.numa,
        };
        fits(&need)?;
        let shortfall = |region, wanted, available, remedy: &str| StartError::Shortfall {
            region,
            wanted,
            available,
            remedy: remedy.into(),
        };
        if fixed > available {
            return Err(shortfall(
                "the model's weights and buffers",
                fixed,
                available,
                "quantise more (--cpu-expert-bits 4) or free memory",
            ));
        }

        // Without a wish, keys and values are kept as they are computed.
        let own = if act_bytes == 2 { KvDtype::Bf16 } else { KvDtype::F32 };
        let dtype = options.kv.unwrap_or(own);
        let rules = CacheRules {
            dtype,
            rows_max,
            sequences,
            choice,
            checkpoints: checkpoints(model, options, Bytes(available.0 - fixed.0)),
            owns: site.card.is_some(),
            slots_min: pool.as_ref().map_or(Bytes(0), |pool| pool.least_bytes(rows_max)),
        };
        let (context_max, cache) = rules.shape(model, options, &layout, available)?;
        let pages_max = context_max.div_ceil(PAGE);
        let step = StepSlots::plan(rows_max, sequences, pages_max, model, &mut layout);
        let caches = Cache::plan(model, cache, &mut layout);
        mark("KV cache", &layout, &mut regions);
        need.cache = Bytes(layout.bytes().0 - fixed.0);
        let (prefix_ram, on_host) = prefix_ram(options, site);
        need.cache += on_host;
        fits(&need)?;
        if site.card.is_some() && layout.bytes() > available {
            return Err(shortfall(
                "the KV cache and the lists of a step",
                layout.bytes(),
                available,
                "lower --context-max or choose --kv-dtype fp8_e4m3",
            ));
        }
        let mut host_regions = Vec::new();
        let (mut overflow, mut helpers) = (None, Vec::new());
        let away = match &pool {
            Some(pool) if placed.banks_stay => {
                let left = Bytes(available.0.saturating_sub(on_host.0));
                overflow = Some(pool.plan_overflow(rows_max, left, &mut layout)?);
                mark("expert slots", &layout, &mut regions);
                need.weights += regions.last().map_or(Bytes(0), |(_, bytes)| *bytes);
                fits(&need)?;
                None
            }
            Some(pool) => {
                host_regions.push(("experts in host memory", host.bytes()));
                let experts = host.bytes();
                let room = Room { available, rows_max, threshold: draft.threshold(&placed) };
                let mut plan = pool.plan(room, &mut layout, &mut host)?;
                for (rank, home) in (1..).zip(std::mem::take(&mut plan.counters)) {
                    let (helper, arena) = pool.helper(
                        rows_max,
                        home,
                        act_bytes,
                        site.of_rank(rank).available(options),
                    )?;
                    plan.helpers.push(helper);
                    helpers.push(arena);
                }
                mark("expert slots", &layout, &mut regions);
                host_regions.push(("CPU's part of a step", Bytes(host.bytes().0 - experts.0)));
                Some(plan)
            }
            None => None,
        };
        if site.card.is_some() {
            need = Need { weights: Bytes(0), buffers: Bytes(0), cache: on_host, ..need };
        }
        if away.is_some() {
            need.weights += host.bytes();
        }
        if away.is_some() || on_host > Bytes(0) {
            preflight::fits(&site.host.machine, &need)?;
        }
        if let Some(available) = options.ram.filter(|&ram| need.total() > ram) {
            let remedy = "raise --ram-mb, or store experts in fewer bits (--cpu-expert-bits 4)";
            return Err(shortfall("what lies in host memory", need.total(), available, remedy));
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
            prefix_ram,
            away,
            overflow,
            host,
            need,
            regions,
            host_regions,
            helpers,
        })
    }
}

/// Adds what has been laid out since the last region.
fn mark(name: &'static str, layout: &Layout, regions: &mut Vec<(&'static str, Bytes)>) {
    let before: Bytes = regions.iter().map(|(_, bytes)| *bytes).sum();
    regions.push((name, Bytes(layout.bytes().0 - before.0)));
}

/// Routed experts that are to share slots, and what is done with them.
struct Pool<'a> {
    /// Of any layer: all are alike.
    bank: &'a Bank,
    layers: u32,
    hidden: u32,
    top_k: u32,
    prefill: PrefillStrategy,
    decode: DecodeStrategy,
    /// Other devices that have a part in prompts.
    helpers: u32,
}

/// What there is for slots.
struct Room {
    available: Bytes,
    rows_max: u32,
    /// Rows from which a pass is a prompt's.
    threshold: u32,
}

impl<'a> Pool<'a> {
    fn of(
        banks: &'a [Option<Bank>],
        model: &Model<Source>,
        (prefill, decode): (PrefillStrategy, DecodeStrategy),
        helpers: u32,
    ) -> Result<Pool<'a>, StartError> {
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
            prefill,
            decode,
            // Who brings what a chunk is routed to has nothing to share.
            helpers: if prefill.by_layers() { helpers } else { 0 },
        })
    }

    fn chunk(&self, rows: u32) -> Chunk {
        let Bank { experts, inter, .. } = *self.bank;
        Chunk { rows, hidden: self.hidden, top_k: self.top_k, experts, inter }
    }

    /// A helper's part in `available` memory: slots for two groups of layers if they fit, so that one is
    /// brought while the other is at work, and for one at least.
    fn helper(
        &self,
        rows_max: u32,
        home: Counter,
        act_bytes: u32,
        available: Bytes,
    ) -> Result<(HelperPlan, Layout), StartError> {
        let mut arena = Layout::new(act_bytes);
        let there = self.chunk(rows_max).bench(&mut arena);
        let least = self.part_of_group();
        for slots in [2 * least, least] {
            let mut layout = arena.clone();
            let pool = self.place(slots, &mut layout);
            if layout.bytes() <= available {
                return Ok((HelperPlan { pool, there, home }, layout));
            }
        }
        self.place(least, &mut arena);
        Err(StartError::Shortfall {
            region: "a helping GPU's part of a layer's experts",
            wanted: arena.bytes(),
            available,
            remedy: "leave --expert-parallel out, or lower --prefill-chunk".into(),
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

    /// Slots without which the strategies do not work.
    fn least(&self) -> u32 {
        let decode = match self.decode {
            DecodeStrategy::Compact => self.layers,
            _ => 1,
        };
        decode.max(self.part_of_group())
    }

    /// Slots for what each device brings of the layers that a prompt takes together.
    fn part_of_group(&self) -> u32 {
        let (all, experts) =
            (self.prefill.slots_min(self.layers, self.bank.experts), self.bank.experts);
        match self.helpers {
            0 => all,
            helpers => slots_for(all / experts, experts, 1 + helpers),
        }
    }

    /// What those take, alignment aside.
    fn least_bytes(&self, rows_max: u32) -> Bytes {
        let mut layout = Layout::new(4);
        self.lists(rows_max, &mut layout);
        self.chunk(rows_max).counters(self.helpers, &mut layout);
        self.place(self.least(), &mut layout);
        layout.bytes()
    }

    /// Routes as slots; the slots of all experts, and how often each was asked for.
    fn lists(&self, rows_max: u32, layout: &mut Layout) -> [Slot<u32>; 3] {
        let experts = self.layers * self.bank.experts;
        [rows_max * self.top_k, experts, experts].map(|len| layout.slot(u64::from(len)))
    }

    /// As many slots as fit into what is `left` of `available` behind a layout, up to all experts.
    fn slots_within(&self, left: Bytes, available: Bytes, layout: &Layout) -> u32 {
        let Bank { gate_up, down, experts, .. } = self.bank;
        let each = (bytes_of(gate_up) + bytes_of(down)).0 / u64::from(*experts);
        // What alignment takes is seen when they are laid out.
        let within = |slots: &u32| {
            let mut layout = layout.clone();
            self.place(*slots, &mut layout);
            layout.bytes() <= available
        };
        let most = u32::try_from(left.0 / each).unwrap_or(u32::MAX).min(self.layers * experts);
        (0..=most).rev().find(within).unwrap_or(0)
    }

    /// Slots for the rest of the device's memory.
    fn plan(
        &self,
        room: Room,
        layout: &mut Layout,
        host: &mut Layout,
    ) -> Result<AwayPlan, StartError> {
        let Bank { gate_up, down, experts, inter } = self.bank;
        let each = (bytes_of(gate_up) + bytes_of(down)).0 / u64::from(*experts);
        let [places, tables, counts] = self.lists(room.rows_max, layout);
        let counters = self.chunk(room.rows_max).counters(self.helpers, layout);
        let left = Bytes(room.available.0.saturating_sub(layout.bytes().0));
        let fit = self.slots_within(left, room.available, layout);
        let least = self.least();
        if fit < least {
            return Err(StartError::Shortfall {
                region: "the experts that are on the device at a time",
                wanted: Bytes(each * u64::from(least + 1)),
                available: left,
                remedy:
                    "choose a larger --expert-divisor, or lower --context-max or --prefill-chunk"
                        .into(),
            });
        }
        let (prefill, decode) = (self.prefill, self.decode);
        let moving = match prefill {
            PrefillStrategy::Chunked | PrefillStrategy::ActiveOnly => (*experts).min(fit),
            // Twice, so that the next layers come while these are at work.
            _ => 2 * self.part_of_group(),
        };
        let moving = moving.min(fit);
        let desk_rows = room.threshold.saturating_sub(1).max(1);
        Ok(AwayPlan {
            prefill,
            decode,
            threshold: room.threshold,
            pool: self.place(fit, layout),
            places,
            tables,
            counts,
            moving,
            hot: hot_slots(prefill, decode, fit, moving),
            desk: Desk::plan(desk_rows, self.hidden, self.top_k, *inter, host),
            counters,
            helpers: Vec::new(),
        })
    }
}

/// What the slots of a layer may lose between them: a page each of the large ones.
const ALIGNMENT: u64 = 32 << 10;

/// What decides how many tokens are remembered.
struct CacheRules {
    dtype: KvDtype,
    rows_max: u32,
    sequences: u32,
    /// States of recurrent layers that are kept beside theirs.
    checkpoints: u32,
    choice: Choice,
    /// Whether the device has memory of its own, rather than the host's.
    owns: bool,
    /// What slots for experts need at least.
    slots_min: Bytes,
}

impl CacheRules {
    /// The longest context and the KV pages of all sequences, behind what `layout` has already.
    ///
    /// A context that was asked for is had, or the plan fails. Without a wish it is as long as the
    /// model's own, or as memory allows: on a GPU, all that is left once weights and buffers lie; with
    /// experts in host memory half of that, and no more than the choice says, because hot experts are
    /// worth more; in host memory half of what is left, the other half being the system's
    /// and the file cache's.
    fn shape(
        &self,
        model: &Model<Source>,
        options: &Options,
        layout: &Layout,
        available: Bytes,
    ) -> Result<(u32, CacheShape), StartError> {
        let (dtype, sequences) = (self.dtype, self.sequences);
        let page_bytes = Cache::page_bytes(model, PAGE, dtype).0.max(1);
        let left = match self.owns {
            true => available.0.saturating_sub(self.fixed(model, options, layout).0),
            false => available.0.saturating_sub(layout.bytes().0) / 2,
        };
        // A page more per sequence: the last of each is seldom full. In the host's half there is room.
        let spare = if self.owns { sequences } else { 0 };
        let tokens_in = |bytes: u64| {
            let pages = (bytes / page_bytes).saturating_sub(u64::from(spare));
            u32::try_from(pages).unwrap_or(u32::MAX).min(u32::MAX / PAGE) * PAGE
        };
        let away = self.choice.away.is_some() || self.choice.spill == Spill::ToDisk;
        let most = self.choice.context_most;
        let fits = tokens_in(left);
        let context_max = match options.context_max {
            Some(wanted) if wanted > model.context_max => {
                return Err(StartError::Context { wanted, model: model.context_max });
            }
            Some(wanted) => wanted.max(1),
            None if away => model.context_max.min(most).min(tokens_in(left / 2).max(PAGE)),
            None => model.context_max.min(fits.max(PAGE)),
        };
        let least = if options.context_max.is_none() { self.choice.context_min } else { 1 };
        if context_max > fits.max(PAGE) || context_max < least.min(model.context_max) {
            let pages = u64::from(context_max.max(least).div_ceil(PAGE) + spare);
            return Err(StartError::Shortfall {
                region: "the KV cache of one whole context",
                wanted: Bytes(page_bytes * pages),
                available: Bytes(left),
                remedy: "lower --context-max or choose --kv-dtype fp8_e4m3".into(),
            });
        }
        let together = if away { 0 } else { KV_TOKENS_DEFAULT };
        let tokens = context_max.saturating_mul(sequences).min(together).min(fits).max(context_max);
        let pages = match options.kv_pages {
            Some(pages) => pages.max(context_max.div_ceil(PAGE)),
            None => tokens.div_ceil(PAGE) + sequences,
        };
        let places = sequences + self.checkpoints;
        Ok((context_max, CacheShape { pages, page: PAGE, places, dtype }))
    }

    /// What is there behind `layout` whatever the context is: state of delta nets, lists of steps, slots
    /// for experts.
    fn fixed(&self, model: &Model<Source>, options: &Options, layout: &Layout) -> Bytes {
        let mut fixed = layout.clone();
        let (places, dtype) = (self.sequences + self.checkpoints, self.dtype);
        Cache::plan(model, CacheShape { pages: 0, page: PAGE, places, dtype }, &mut fixed);
        let pages_most = options.context_max.unwrap_or(model.context_max).div_ceil(PAGE);
        StepSlots::plan(self.rows_max, self.sequences, pages_most, model, &mut fixed);
        // What alignment takes is seen when everything is laid out; a context that nobody asked for must
        // not fail then.
        let alignment = match options.context_max {
            Some(_) => 0,
            None => ALIGNMENT * (1 + model.layers.len() as u64),
        };
        fixed.bytes() + self.slots_min + Bytes(alignment)
    }
}

/// Places for checkpoints of recurrent state.
fn checkpoints(model: &Model<Source>, options: &Options, available: Bytes) -> u32 {
    let each = Cache::place_bytes(model).0;
    if each == 0 || options.prefix.reuse == Reuse::Nothing {
        return 0;
    }
    let fit = u32::try_from(available.0 / CHECKPOINTS_PART / each).unwrap_or(u32::MAX);
    options.prefix.checkpoints.unwrap_or(fit.min(CHECKPOINTS_DEFAULT))
}

/// Host memory for prefixes beyond the device's, and all that keeping them takes of the host.
fn prefix_ram(options: &Options, site: &Site) -> (Bytes, Bytes) {
    let PrefixOptions { reuse, ram, disk, .. } = &options.prefix;
    if *reuse == Reuse::Nothing {
        return (Bytes(0), Bytes(0));
    }
    let default = || match site.host.machine.available() {
        Some(available) if site.card.is_some() => PREFIX_RAM_DEFAULT.min(Bytes(available.0 / 8)),
        _ => Bytes(0),
    };
    let ram = ram.unwrap_or_else(default);
    (ram, ram + if disk.is_some() { HOST_BYTES } else { Bytes(0) })
}
