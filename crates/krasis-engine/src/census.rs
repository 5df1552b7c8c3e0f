//! What the engine's thread counts while it works, for whoever wants to look from outside.

use crate::experts::{DecodeStrategy, PrefillStrategy, Traffic};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// Numbers that the engine's thread writes after each step and others read at any time. Each is true
/// by itself; two of them may come from different steps.
#[derive(Debug, Default)]
pub struct Census {
    /// Requests on their way to the engine's thread.
    pub queued: AtomicU64,
    /// Requests that the thread has taken and that wait for memory.
    pub waiting: AtomicU64,
    /// Requests that run.
    pub running: AtomicU64,
    /// KV pages of the plan.
    pub pages: AtomicU64,
    /// Those that a new request could get; some hold a past that may be found again.
    pub pages_available: AtomicU64,
    /// Prompt tokens that were looked for among known prefixes.
    pub prefix_queries: AtomicU64,
    /// Those that were found.
    pub prefix_hits: AtomicU64,
    /// Those of them that lay in the device's memory.
    pub prefix_hits_device: AtomicU64,
    /// Those that came from host memory beyond it.
    pub prefix_hits_ram: AtomicU64,
    /// Those that were read from the disk.
    pub prefix_hits_disk: AtomicU64,
    /// Those that nobody had computed before, or that nothing is left of.
    pub prefix_misses_new: AtomicU64,
    /// Those that were computed, but whose memory was needed, behind others that are known.
    pub prefix_misses_forgotten: AtomicU64,
    /// Those whose keys and values are known, but no state of recurrent layers behind them.
    pub prefix_misses_state: AtomicU64,
    /// Those that the disk has, but not as fast as they are computed.
    pub prefix_misses_slow: AtomicU64,
    /// Those that were found on the disk, and then could not be read.
    pub prefix_misses_damaged: AtomicU64,
    /// Bytes of host memory that pages and states take beyond the device's memory.
    pub prefix_ram_bytes: AtomicU64,
    /// Bytes of those on the disk that can be found.
    pub prefix_disk_bytes: AtomicU64,
    /// Sequences that went back to the queue because memory ended.
    pub preemptions: AtomicU64,
    /// Forward passes.
    pub steps: AtomicU64,
    /// Grows while the thread is at work: with each forward pass that begins, and in a long one with each
    /// group of layers. As long as it does, nothing hangs.
    pub pulse: AtomicU64,
    /// Those that read prompts, with what was decoded beside them.
    pub prompts: Pace,
    /// Those that only decoded.
    pub decodes: Pace,
    /// The routed experts, once there is a model.
    pub experts: OnceLock<Arc<ExpertCensus>>,
    /// Where the model is slower than was foretold, and what was done about it, in sentences.
    pub remarks: Mutex<Vec<String>>,
}

/// How much was computed in how much time.
#[derive(Debug, Default)]
pub struct Pace {
    /// Tokens.
    pub tokens: AtomicU64,
    /// Time of the passes that they were in.
    pub nanoseconds: AtomicU64,
}

/// Where routed experts lie and who of them is asked for.
#[derive(Debug)]
pub struct ExpertCensus {
    /// For prompts, if experts lie in host memory.
    prefill: Option<PrefillStrategy>,
    /// For few rows, and the rows from which a pass is a prompt's.
    policy: AtomicU64,
    /// What the next ones are to be when nobody is being answered; 0 for no wish.
    wished: AtomicU64,
    /// Experts that the device has room for, where they lie in host memory.
    pub slots: u32,
    /// Experts copied to the device.
    pub brought: AtomicU64,
    /// Pairs of tokens and experts in host memory that were computed on the device.
    pub on_the_device: AtomicU64,
    /// Those that the CPU computed.
    pub on_the_cpu: AtomicU64,
    /// `[layer][expert]`, nothing for dense layers; empty where nobody looks.
    asked: Vec<Vec<AtomicU64>>,
}

/// What a device with some of the layers notes; it counts its own from 0.
#[derive(Clone, Debug)]
pub struct LayersCensus {
    /// Of all layers.
    pub all: Arc<ExpertCensus>,
    /// Layers before its own.
    pub first: usize,
}

impl LayersCensus {
    /// Notes who was asked for in a layer.
    pub(crate) fn note(&self, layer: usize, chosen: &[u32]) {
        self.all.note(self.first + layer, chosen);
    }

    /// Notes how often each expert of a layer was asked for.
    pub(crate) fn note_counts(&self, layer: usize, counts: &[u32]) {
        self.all.note_counts(self.first + layer, counts);
    }
}

impl Census {
    /// Whether the thread has something to do.
    pub fn is_busy(&self) -> bool {
        [&self.queued, &self.waiting, &self.running].into_iter().any(|n| Census::read(n) > 0)
    }

    /// A number as it is now.
    pub fn read(number: &AtomicU64) -> u64 {
        number.load(Ordering::Relaxed)
    }
}

impl Pace {
    /// A pass is over.
    pub(crate) fn add(&self, tokens: usize, time: Duration) {
        self.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        self.nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// A strategy for few rows with the rows from which a pass is a prompt's, as one number but 0.
fn packed((decode, threshold): (DecodeStrategy, u32)) -> u64 {
    1 << 40 | (decode as u64) << 32 | u64::from(threshold)
}

fn unpacked(number: u64) -> Option<(DecodeStrategy, u32)> {
    let decode = DecodeStrategy::ALL.into_iter().find(|&of| of as u64 == number >> 32 & 0xff);
    decode.filter(|_| number != 0).map(|decode| (decode, number as u32))
}

impl ExpertCensus {
    /// `experts` of each layer are counted; none of any where looking would keep the device waiting.
    /// `away` says what becomes of those in host memory, for prompts of so many rows and more and for fewer.
    pub fn new(
        away: Option<(PrefillStrategy, DecodeStrategy, u32)>,
        slots: u32,
        experts: impl Iterator<Item = u32>,
    ) -> ExpertCensus {
        ExpertCensus {
            prefill: away.map(|(prefill, ..)| prefill),
            policy: AtomicU64::new(away.map_or(0, |(_, decode, rows)| packed((decode, rows)))),
            wished: AtomicU64::new(0),
            slots,
            brought: AtomicU64::new(0),
            on_the_device: AtomicU64::new(0),
            on_the_cpu: AtomicU64::new(0),
            asked: experts.map(|n| (0..n).map(|_| AtomicU64::new(0)).collect()).collect(),
        }
    }

    /// What becomes of experts in host memory now, for prompts and for few rows; none if all lie on the
    /// device.
    pub fn strategies(&self) -> Option<(PrefillStrategy, DecodeStrategy)> {
        Some((self.prefill?, self.policy()?.0))
    }

    /// For few rows, and the rows from which a pass is a prompt's.
    pub fn policy(&self) -> Option<(DecodeStrategy, u32)> {
        unpacked(Census::read(&self.policy))
    }

    /// Asks for another policy from the next moment on in which nobody is being answered: answers that
    /// have begun keep theirs. It stays as it is where there is no room for another.
    pub fn wish(&self, decode: DecodeStrategy, threshold: u32) {
        self.wished.store(packed((decode, threshold)), Ordering::Relaxed);
    }

    /// What was wished for since the last time.
    pub(crate) fn take_wish(&self) -> Option<(DecodeStrategy, u32)> {
        unpacked(self.wished.swap(0, Ordering::Relaxed))
    }

    pub(crate) fn switched(&self, decode: DecodeStrategy, threshold: u32) {
        self.policy.store(packed((decode, threshold)), Ordering::Relaxed);
    }

    /// How many tokens were routed to each expert since the start, by layers that have experts; none
    /// where nobody looks.
    pub fn asked(&self) -> Option<impl Iterator<Item = (usize, Vec<u64>)>> {
        let layers = self.asked.iter().enumerate().filter(|(_, experts)| !experts.is_empty());
        let counts =
            layers.map(|(layer, experts)| (layer, experts.iter().map(Census::read).collect()));
        (!self.asked.is_empty()).then_some(counts)
    }

    /// How many tokens were routed to each expert of a layer; nothing where nobody looks.
    pub(crate) fn asked_of(&self, layer: usize) -> impl ExactSizeIterator<Item = u64> {
        self.asked.get(layer).map_or(&[][..], |experts| experts).iter().map(Census::read)
    }

    /// Notes who was asked for in a layer. There is one writer, so nothing has to be locked.
    pub(crate) fn note(&self, layer: usize, chosen: &[u32]) {
        let layer = &self.asked[layer];
        for &expert in chosen {
            let count = &layer[expert as usize];
            count.store(Census::read(count) + 1, Ordering::Relaxed);
        }
    }

    /// Notes how often each expert of a layer was asked for.
    pub(crate) fn note_counts(&self, layer: usize, counts: &[u32]) {
        for (count, &more) in self.asked[layer].iter().zip(counts) {
            count.store(Census::read(count) + u64::from(more), Ordering::Relaxed);
        }
    }

    /// What was copied and computed where, up to now.
    pub(crate) fn moved(&self, traffic: Traffic) {
        let Traffic { brought, on_the_device, on_the_cpu, .. } = traffic;
        self.brought.store(brought, Ordering::Relaxed);
        self.on_the_device.store(on_the_device, Ordering::Relaxed);
        self.on_the_cpu.store(on_the_cpu, Ordering::Relaxed);
    }
}
