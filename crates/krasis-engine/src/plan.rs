//! Everything that will be allocated, decided before anything is: weights, buffers, KV pages.

use crate::error::StartError;
use crate::load::{Placed, Stock};
use crate::options::Options;
use crate::runner::StepSlots;
use krasis_core::{Bytes, KvDtype, Layout};
use krasis_model::{Buffers, Cache, CacheShape, Mixer, Model, Source};

/// Tokens of a KV page: small enough that a shared prefix is found almost whole.
const PAGE: u32 = 16;

/// Context without a wish: what coding agents send, not what models were stretched to.
const CONTEXT_DEFAULT: u32 = 32_768;

/// KV tokens without a wish, shared by all sequences.
const KV_TOKENS_DEFAULT: u32 = 65_536;

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
    /// Rows of a step.
    pub rows_max: u32,
    /// Parts of the arena, for people.
    pub regions: Vec<(&'static str, Bytes)>,
}

impl Plan {
    /// Plans `model` for a device whose activations take `act_bytes`, in `available` memory.
    pub fn new(
        model: &Model<Source>,
        stock: &impl Stock,
        options: &Options,
        act_bytes: u32,
        available: Bytes,
    ) -> Result<Plan, StartError> {
        let mut layout = Layout::new(act_bytes);
        let mut regions = Vec::new();
        let mut mark = |name, layout: &Layout| {
            let before: Bytes = regions.iter().map(|(_, bytes)| *bytes).sum();
            regions.push((name, Bytes(layout.bytes().0 - before.0)));
        };

        let placed = Placed::plan(model, stock, options, &mut layout)?;
        mark("weights", &layout);
        let rows_max = options.prefill_chunk.max(1) + options.sequences_max.max(1);
        let buffers = Buffers::plan(model, rows_max, &mut layout);
        mark("buffers", &layout);
        let fixed = layout.bytes();
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
        let (context_max, cache) = cache_shape(model, options, dtype, left)?;
        let step = StepSlots::plan(
            rows_max,
            options.sequences_max.max(1),
            context_max.div_ceil(PAGE),
            model,
            &mut layout,
        );
        let caches = Cache::plan(model, cache, &mut layout);
        mark("KV cache", &layout);
        Ok(Plan { layout, placed, caches, buffers, step, cache, context_max, rows_max, regions })
    }
}

fn cache_shape(
    model: &Model<Source>,
    options: &Options,
    dtype: KvDtype,
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
        context_max.saturating_mul(sequences).min(KV_TOKENS_DEFAULT).min(fits).max(context_max);
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
