//! What would have to change for a plan to work: settings one at a time, each as little as helps.

use super::{Draft, Site};
use crate::error::StartError;
use crate::experts::PrefillStrategy;
use crate::load::Stock;
use crate::options::{CacheUse, DeviceKind, ExpertBits, Options, Quant, Ranks, Residency};
use krasis_core::{Bytes, KvDtype};

/// Alternatives that a sentence names.
const NAMED: usize = 3;

const MEBIBYTE: u64 = 1 << 20;

impl<S: Stock> Draft<'_, S> {
    /// Whether these options would do.
    fn works(&self, options: &Options) -> bool {
        Draft { options, ..*self }.choose().is_ok()
    }

    /// The same error with what would help.
    pub(super) fn with_the_nearest(&self, error: StartError) -> StartError {
        match error {
            StartError::Shortfall { region, wanted, available, remedy } => {
                let remedy = match (self.remedy(), &self.site.card) {
                    (Some(found), _) => found,
                    // Whoever imitates a device has other ways.
                    (None, None) => remedy,
                    (None, Some(_)) => "no other setting makes it fit this machine".into(),
                };
                StartError::Shortfall { region, wanted, available, remedy }
            }
            StartError::Refused { sentence } => {
                let sentence = match self.remedy() {
                    Some(remedy) => format!("{sentence}; it would fit if you {remedy}"),
                    None => format!("{sentence}; no other setting alone makes it fit"),
                };
                StartError::Refused { sentence }
            }
            other => other,
        }
    }

    /// Changes that suffice, the smallest first.
    fn remedy(&self) -> Option<String> {
        let memory = [
            self.partition(),
            self.divisor(),
            self.context(),
            self.chunk(),
            self.bits(),
            self.cap(),
        ];
        let all = memory.into_iter().chain([self.ram(), self.spill()]);
        let found: Vec<String> = all.flatten().take(NAMED).collect();
        (!found.is_empty()).then(|| found.join(", or "))
    }

    fn with(&self, change: impl FnOnce(&mut Options)) -> Options {
        let mut options = self.options.clone();
        change(&mut options);
        options
    }

    /// Layers by memory, where they were told to go elsewhere.
    fn partition(&self) -> Option<String> {
        let ranks = &self.options.ranks;
        if ranks.partition.is_empty() {
            return None;
        }
        let count = Some(ranks.partition.len());
        let by_memory = Ranks { count, partition: Vec::new(), ..ranks.clone() };
        let parts = Draft { options: &self.with(|options| options.ranks = by_memory), ..*self };
        let layers: Vec<String> =
            parts.choose().ok()?.iter().map(|part| part.layers.len().to_string()).collect();
        Some(format!("choose --pp-partition {}", layers.join(",")))
    }

    /// More groups of layers, or none of what was asked for about experts.
    fn divisor(&self) -> Option<String> {
        let residency = |residency| self.with(|options| options.residency = residency);
        if let Residency::Host { prefill: PrefillStrategy::LayerGrouped(groups), decode } =
            self.options.residency
        {
            let more = |groups| {
                let prefill = PrefillStrategy::LayerGrouped(groups);
                residency(Residency::Host { prefill, decode })
            };
            let layers = self.model.layers.len() as u32;
            let enough = least(groups + 1, layers, |groups| self.works(&more(groups)));
            if let Some(groups) = enough {
                return Some(format!("choose --expert-divisor {groups}"));
            }
        }
        let asked = self.options.residency != Residency::Auto;
        let works = asked && self.site.card.is_some() && self.works(&residency(Residency::Auto));
        works.then(|| "leave --expert-divisor out".into())
    }

    /// Experts on the disk, if that was excluded, or if it takes a plan without a GPU.
    fn spill(&self) -> Option<String> {
        let cache = |options: &mut Options| options.cache = CacheUse::Auto;
        if self.options.cache == CacheUse::Off && self.works(&self.with(cache)) {
            return Some("leave --no-cache out, so that experts may stay on the disk".into());
        }
        let host = |options: &mut Options| {
            cache(options);
            options.device = DeviceKind::Cpu;
            options.residency = Residency::Auto;
            options.device_bytes = None;
            options.prefill_chunk = options.prefill_chunk.min(512);
        };
        let options = self.with(host);
        let site = Site { card: None, others: Vec::new(), host: self.site.host.clone() };
        let alone = Draft { options: &options, site: &site, act_bytes: 4, ..*self };
        let works = self.site.card.is_some() && alone.choose().is_ok();
        works.then(|| "run it on the CPU, with experts that stay on the disk (--device cpu)".into())
    }

    /// A shorter context.
    fn context(&self) -> Option<String> {
        let wanted = self.options.context_max?;
        let with = |tokens| self.with(|options| options.context_max = Some(tokens));
        let longest = most(1, wanted.saturating_sub(1), |tokens| self.works(&with(tokens)))?;
        Some(format!("lower --context-max to {longest}"))
    }

    /// Shorter chunks, down to those of the CPU.
    fn chunk(&self) -> Option<String> {
        let halves = std::iter::successors(Some(self.options.prefill_chunk / 2), |n| Some(n / 2));
        let mut halves = halves.take_while(|&rows| rows >= 256);
        let with = |rows: u32| {
            self.with(|options| {
                options.prefill_chunk = rows;
            })
        };
        let rows = halves.find(|&rows| self.works(&with(rows)))?;
        Some(format!("lower --prefill-chunk to {rows}"))
    }

    /// Fewer bits, of the experts first.
    fn bits(&self) -> Option<String> {
        let now = self.options.expert_bits;
        let fewer = [(ExpertBits::Int8, "8"), (ExpertBits::Int4, "4")];
        let from = match now {
            ExpertBits::AsStored => 0,
            ExpertBits::Int8 => 1,
            ExpertBits::Int4 => 2,
        };
        for (bits, name) in &fewer[from..] {
            if self.works(&self.with(|options| options.expert_bits = *bits)) {
                return Some(format!("store experts in {name} bits (--cpu-expert-bits {name})"));
            }
        }
        let all = |options: &mut Options| {
            options.expert_bits = ExpertBits::Int4;
            let Options { attention, shared_expert, dense_mlp, lm_head, .. } = options;
            [attention, shared_expert, dense_mlp, lm_head]
                .into_iter()
                .for_each(|q| *q = Quant::Int4);
        };
        if self.works(&self.with(all)) {
            let flags = "--cpu-expert-bits 4, and int4 for --attention-quant, --shared-expert-quant, \
                         --dense-mlp-quant and --lm-head-quant";
            return Some(format!("store everything in 4 bits ({flags})"));
        }
        let small_cache = |options: &mut Options| {
            all(options);
            options.kv = Some(KvDtype::F8E4M3);
            options.prefill_chunk = options.prefill_chunk.min(256);
        };
        let tight = self.works(&self.with(small_cache));
        tight.then(|| {
            "store everything in 4 bits (all of --*-quant int4 and --cpu-expert-bits 4) with \
             --kv-dtype fp8_e4m3 and --prefill-chunk 256"
                .into()
        })
    }

    /// More of the host's memory, if it was capped.
    fn ram(&self) -> Option<String> {
        let cap = self.options.ram?;
        let with = |mib: u64| self.with(|options| options.ram = Some(Bytes(mib * MEBIBYTE)));
        let all = self.site.host.machine.available()?;
        let most = u32::try_from(all.0 / MEBIBYTE).ok()?;
        let first = u32::try_from(cap.0 / MEBIBYTE).ok()?.saturating_add(1);
        let enough = least(first, most, |mib| self.works(&with(mib.into())))?;
        Some(format!("raise --ram-mb to {enough}"))
    }

    /// More of the GPU's memory, if it was capped.
    fn cap(&self) -> Option<String> {
        let cap = self.options.device_bytes?;
        let with =
            |mib: u64| self.with(|options| options.device_bytes = Some(Bytes(mib * MEBIBYTE)));
        let free = self.site.available(&Options { device_bytes: None, ..self.options.clone() });
        // Memory of unknown size has no nearest setting below it.
        let most = u32::try_from(free.0 / MEBIBYTE).ok()?;
        let first = u32::try_from(cap.0 / MEBIBYTE).ok()?.saturating_add(1);
        let enough = least(first, most, |mib| self.works(&with(mib.into())))?;
        Some(format!("raise --gpu-vram-mb to {enough}"))
    }
}

/// The least number from `low` to `high` that works, if all above it do.
fn least(low: u32, high: u32, works: impl Fn(u32) -> bool) -> Option<u32> {
    if low > high || !works(high) {
        return None;
    }
    let (mut low, mut high) = (low, high);
    while low < high {
        let middle = low + (high - low) / 2;
        if works(middle) { high = middle } else { low = middle + 1 }
    }
    Some(low)
}

/// The largest number from `low` to `high` that works, if all below it do.
fn most(low: u32, high: u32, works: impl Fn(u32) -> bool) -> Option<u32> {
    if low > high || !works(low) {
        return None;
    }
    let (mut low, mut high) = (low, high);
    while low < high {
        let middle = high - (high - low) / 2;
        if works(middle) { low = middle } else { high = middle - 1 }
    }
    Some(low)
}
