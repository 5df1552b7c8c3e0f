//! How fast a plan will be: what bytes, bus and operations take at least, and what our kernels make of
//! that. A machine's own limits are in [`Site`]; the shares of them below are measured, each from the
//! table of the README or from `krasis bench` on the machines that it quotes.

use super::site::{Card, Host, Site};
use super::work::{Count, Work};
use crate::experts::{AwayPlan, DecodeStrategy, PrefillStrategy};
use crate::plan::Plan;
use krasis_model::{Model, Source};

/// Shares of a GPU's limits, and times. From Qwen3-30B-A3B, V2-Lite and Qwen3-Coder-Next on one H200,
/// prompts of 512 to 30,000 tokens (read at 4.2 TB/s, multiplied at 640 TFLOP/s, brought at 55 GB/s).
mod card {
    /// Of the tensor cores: products with weights, 403 TFLOP/s.
    pub const PRODUCT: f64 = 0.63;
    /// Rows that an expert's last tile leaves empty, in the mean: half of 128.
    pub const TILE: f64 = 64.0;
    /// Of the tensor cores: grouped attention, 357 TFLOP/s.
    pub const ATTEND: f64 = 0.56;
    /// Of the tensor cores: latent attention over keys and values that are made for it, 340 TFLOP/s.
    pub const LATENT: f64 = 0.53;
    /// Of the tensor cores: delta rules, 46 TFLOP/s.
    pub const DELTA: f64 = 0.07;
    /// Seconds more that a layer of latent attention takes for each chunk: its heads' products are small.
    pub const LATENT_LAYER: f64 = 0.2e-3;
    /// Of memory, in steps of few rows.
    pub const READ: f64 = 0.8;
    /// Seconds from one kernel of a remembered step to the next.
    pub const CALL: f64 = 3.2e-6;
    /// Seconds a layer that asks the host where its experts are.
    pub const ASK: f64 = 2e-6;
    /// Seconds more where the CPU takes a part.
    pub const HAND_OFF: f64 = 2e-6;
    /// Seconds more where experts are brought for few rows, and kernels run again. An estimate.
    pub const WAVE: f64 = 40e-6;
    /// Of the bus: whole layers.
    pub const BUS: f64 = 1.0;
    /// Of the bus: experts here and there.
    pub const BUS_SCATTERED: f64 = 0.92;
    /// Of the shorter of copies and computing, how much hides behind the longer.
    pub const OVERLAP: f64 = 0.9;
}

/// Shares of a CPU's limits, and times. From Qwen3-30B-A3B, V2-Lite and Qwen3-Coder-Next on 2 Zen 5
/// cores and 16 Xeon cores with AMX.
mod host {
    /// Threads of the largest team that was measured. Larger ones are taken to lose no more.
    pub const MEASURED: usize = 16;
    /// Of memory, for one thread; see [`super::read_share`].
    pub const READ: f64 = 1.0;
    /// What each thread costs of that, up to [`MEASURED`].
    pub const READ_LOST: f64 = 0.02;
    /// Of INT8 products of vectors, AMX or not, for one thread; and what each thread costs of that.
    pub const LINES: f64 = 0.67;
    pub const LINES_LOST: f64 = 0.035;
    /// Operations of attention and delta rules a second of one thread.
    pub const PAST: f64 = 200e9;
    /// Operations a second of one thread with weights in rows, whose activations are floats.
    pub const ROWS: f64 = 70e9;
    /// Bytes of weights in rows that one thread reads a second: unpacking is its limit.
    pub const ROWS_READ: f64 = 9e9;
    /// Seconds a call, and more for each thread of the team.
    pub const CALL: f64 = 1e-6;
    pub const CALL_THREAD: f64 = 0.4e-6;
    /// Seconds a layer of latent attention with one row, and more if few threads share it.
    pub const LATENT: f64 = 100e-6;
    pub const LATENT_THREAD: f64 = 200e-6;
}

/// Experts on a disk. Estimates: few requests at a time leave a disk idle now and then.
mod disk {
    /// Bytes a second of a disk that nobody has measured.
    pub const READ: f64 = 2e9;
    /// Of the disk: the few experts that a token lacks of a layer.
    pub const FEW: f64 = 0.8;
    /// Of the disk: whole layers.
    pub const MANY: f64 = 0.95;
}

/// How often the hottest share `f` of all experts is asked for: `1 - (1 - f)^HIT`. Global heat gives 1.3
/// to 2, heat of one conversation 3 to 4; routers that choose evenly, 1.
const HIT: f64 = 2.0;

/// Tokens of past that a decoded token is taken to have.
const PAST: f64 = 512.0;

/// What a time consists of at the least, and what rules it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Time {
    /// Expected.
    pub seconds: f64,
    /// Bytes of weights and past through the memory of whoever reads them.
    pub bytes: f64,
    /// Bytes over the bus, or from the disk.
    pub bus: f64,
    /// Operations.
    pub operations: f64,
}

/// The longest of the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Memory.
    Bytes,
    /// The bus between host and GPU, or the disk that experts are on.
    Bus,
    /// Operations.
    Operations,
}

impl Time {
    /// No machine of this kind is faster.
    pub fn bound(&self) -> f64 {
        self.bytes.max(self.bus).max(self.operations)
    }

    /// What the bound is made of.
    pub fn rule(&self) -> Rule {
        match self.bound() {
            bound if bound == self.operations => Rule::Operations,
            bound if bound == self.bus => Rule::Bus,
            _ => Rule::Bytes,
        }
    }
}

/// One after the other.
impl std::iter::Sum for Time {
    fn sum<I: Iterator<Item = Time>>(all: I) -> Time {
        all.fold(Time::default(), |sum, one| Time {
            seconds: sum.seconds + one.seconds,
            bytes: sum.bytes + one.bytes,
            bus: sum.bus + one.bus,
            operations: sum.operations + one.operations,
        })
    }
}

/// Speeds of a plan.
pub struct Forecast<'a> {
    work: Work,
    site: &'a Site,
    away: Option<&'a AwayPlan>,
    /// Slots for experts on the disk.
    overflow: Option<u32>,
    /// Rows of a chunk, and tokens of a pass.
    chunk: f64,
    pass: f64,
}

impl<'a> Forecast<'a> {
    /// Of a plan.
    pub fn new(model: &Model<Source>, plan: &'a Plan, site: &'a Site) -> Forecast<'a> {
        Forecast {
            work: Work::of(model, &plan.placed, plan.cache),
            site,
            away: plan.away.as_ref(),
            overflow: plan.overflow.as_ref().map(|overflow| overflow.pool.experts),
            chunk: f64::from(plan.rows_max),
            pass: f64::from(plan.pass_tokens),
        }
    }

    /// What there is to do.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// The share of routed tokens whose expert lies on the device.
    pub fn hit(&self) -> f64 {
        let kept = match (self.away, self.overflow) {
            (None, None) => return 1.0,
            (None, Some(slots)) => slots,
            (Some(away), _) => match away.decode {
                DecodeStrategy::PureCpu => 0,
                DecodeStrategy::HcsHybrid => away.hot,
                DecodeStrategy::Compact | DecodeStrategy::Lru => away.pool.experts,
            },
        };
        1.0 - (1.0 - self.share_of(kept)).max(0.0).powf(HIT)
    }

    /// Bytes a second from the disk that experts are on.
    fn disk(&self) -> f64 {
        self.site.host.disk.unwrap_or(disk::READ)
    }

    /// Bytes that a prompt reads from the disk: what its passes ask for and memory does not hold.
    fn prompt_from_disk(&self, slots: u32, tokens: f64) -> f64 {
        let w = &self.work;
        let passes = (tokens / self.pass).ceil();
        let asked = w.expert.bytes * w.touched(tokens.min(self.pass)) * w.moe_layers;
        (1.0 - self.share_of(slots)).max(0.0) * asked * passes
    }

    fn share_of(&self, slots: u32) -> f64 {
        f64::from(slots) / (self.work.experts * self.work.moe_layers).max(1.0)
    }

    /// A prompt of so many tokens until the first token of the answer.
    pub fn prompt(&self, tokens: u32) -> Time {
        let n = f64::from(tokens);
        let Some(card) = &self.site.card else {
            let seconds = host_prompt(&self.work, &self.site.host, n);
            let Host { read, multiply, .. } = self.site.host;
            let from_disk = self.overflow.map_or(0.0, |slots| self.prompt_from_disk(slots, n));
            let reading = from_disk / self.disk() / disk::MANY;
            return Time {
                seconds: seconds + reading - card::OVERLAP * reading.min(seconds),
                bytes: self.work.prompt_bytes(n) / read,
                bus: from_disk / self.disk(),
                operations: self.work.prompt_operations(n) / multiply,
            };
        };
        let computing = card_prompt(&self.work, card, n, self.chunk);
        let mut time = Time {
            seconds: computing,
            bytes: self.work.prompt_bytes(n) / card.read,
            bus: 0.0,
            operations: self.work.prompt_operations(n) / card.multiply,
        };
        let Some(away) = self.away else { return time };
        if tokens < away.threshold {
            time.seconds = self.short_prompt(card, n);
            return time;
        }
        // The whole prompt in passes, each of which brings what it lacks; by chunks, each chunk does.
        let each = if away.prefill.by_layers() { self.pass } else { self.chunk };
        let (mut bytes, mut left) = (0.0, n);
        while left > 0.0 {
            bytes += self.brought(away, left.min(each));
            left -= each;
        }
        let share = match away.prefill {
            PrefillStrategy::LayerGrouped(_) | PrefillStrategy::Chunked => card::BUS,
            PrefillStrategy::ActiveOnly => card::BUS_SCATTERED,
            PrefillStrategy::HcsPrefill if away.hot == 0 => card::BUS,
            PrefillStrategy::HcsPrefill => card::BUS_SCATTERED,
        };
        // Each helper brings as much as the first, over a link of its own.
        time.bus = bytes / card.bus / (1.0 + away.helpers.len() as f64);
        let copying = time.bus / share;
        time.seconds = copying + computing - card::OVERLAP * copying.min(computing);
        time
    }

    /// Bytes that a pass over so many tokens brings to the device.
    fn brought(&self, away: &AwayPlan, tokens: f64) -> f64 {
        let all = self.work.all_experts().bytes;
        let kept = self.share_of(away.hot);
        match away.prefill {
            PrefillStrategy::ActiveOnly => {
                (1.0 - kept) * all * self.work.touched(tokens) / self.work.experts.max(1.0)
            }
            _ => (1.0 - kept) * all,
        }
    }

    /// A prompt whose experts are computed where they lie.
    fn short_prompt(&self, card: &Card, n: f64) -> f64 {
        let w = &self.work;
        let others = Work { expert: Count::default(), ..w.clone() };
        let cold = 1.0 - self.hit();
        card_prompt(&others, card, n, self.chunk)
            + cold * host_experts(w, &self.site.host, n)
            + w.moe_layers * (card::ASK + card::HAND_OFF)
    }

    /// Rows from which bringing experts is faster than having the CPU compute them, if the bus ever is.
    pub(super) fn threshold(work: &Work, card: &Card, host: &Host, most: u32) -> u32 {
        let bringing = |n: f64| {
            let bytes = work.all_experts().bytes;
            bytes / card.bus / card::BUS + card_prompt(work, card, n, n)
        };
        let others = Work { expert: Count::default(), ..work.clone() };
        let computing = |n: f64| {
            card_prompt(&others, card, n, n)
                + host_experts(work, host, n)
                + work.moe_layers * (card::ASK + card::HAND_OFF)
        };
        // The CPU's time grows with rows, and the bus's does not.
        let (mut low, mut high) = (1, most.max(1));
        while low < high {
            let middle = low + (high - low) / 2;
            let n = f64::from(middle);
            if bringing(n) <= computing(n) { high = middle } else { low = middle + 1 }
        }
        low
    }

    /// Whether the host plays a GPU, whose times nobody knows.
    pub(crate) fn is_of_a_player(&self) -> bool {
        self.site.card.is_none() && self.away.is_some()
    }

    /// One token of an answer.
    pub fn token(&self) -> Time {
        self.token_after(PAST)
    }

    /// One token behind so many.
    pub fn token_after(&self, past: f64) -> Time {
        let (w, host) = (&self.work, &self.site.host);
        let (dense, active) = (w.dense_bytes() + past * w.past_bytes, w.active_experts());
        let weights = w.lines.numbers + w.rows.numbers + w.head.numbers;
        let others = 2.0 * weights + (w.attend + w.latent) * past + w.delta;
        let Some(card) = &self.site.card else {
            let from_disk = (1.0 - self.hit()) * active.bytes / self.disk();
            return Time {
                seconds: host_token(w, host, past) + from_disk / disk::FEW,
                bytes: (dense + active.bytes) / host.read,
                bus: from_disk,
                operations: (others + 2.0 * active.numbers) / host.multiply,
            };
        };
        let hit = self.hit();
        let here = dense + hit * active.bytes;
        let mut time = Time {
            seconds: here / (card.read * card::READ) + w.calls * card::CALL,
            bytes: here / card.read,
            bus: 0.0,
            operations: (others + 2.0 * hit * active.numbers) / card.multiply,
        };
        let Some(away) = self.away else { return time };
        time.seconds += w.moe_layers * card::ASK;
        let cold = (1.0 - hit) * active.bytes;
        // Layers where some expert is missing.
        let missing = w.moe_layers * (1.0 - hit.powf(w.top_k));
        match away.decode {
            DecodeStrategy::PureCpu | DecodeStrategy::HcsHybrid if cold > 0.0 => {
                time.seconds += (1.0 - hit) * host_experts(w, host, 1.0) + missing * card::HAND_OFF;
                // Both may read at the same time.
                time.bytes = time.bytes.max(cold / host.read);
            }
            DecodeStrategy::PureCpu | DecodeStrategy::HcsHybrid => {}
            DecodeStrategy::Compact | DecodeStrategy::Lru => {
                time.bus = cold / card.bus;
                time.seconds += time.bus / card::BUS_SCATTERED + missing * card::WAVE;
            }
        }
        time
    }
}

/// Seconds of a GPU for a prompt whose weights are all there.
fn card_prompt(w: &Work, card: &Card, tokens: f64, chunk: f64) -> f64 {
    let (mut seconds, mut left) = (0.0, tokens);
    while left > 0.0 {
        let rows = left.min(chunk);
        let touched = w.touched(rows) * w.moe_layers;
        let pairs = rows * w.top_k * w.moe_layers + card::TILE * touched;
        let numbers = rows * (w.lines.numbers + w.rows.numbers) + pairs * w.expert.numbers;
        let bytes = w.lines.bytes + w.rows.bytes + touched * w.expert.bytes;
        let products = 2.0 * numbers / (card.multiply * card::PRODUCT);
        let read = card.read * card::READ;
        seconds += products.max(bytes / read) + rows * w.activations / read;
        seconds += w.calls * card::CALL + w.latent_layers * card::LATENT_LAYER;
        left -= rows;
    }
    let past = tokens * tokens / 2.0 / card.multiply;
    seconds
        + past * (w.attend / card::ATTEND + w.expanded / card::LATENT)
        + tokens * w.expand / (card.multiply * card::PRODUCT)
        + tokens * w.delta / (card.multiply * card::DELTA)
        + w.head.bytes / (card.read * card::READ)
}

/// Threads that are waited for.
fn measured(host: &Host) -> f64 {
    host.threads.min(host::MEASURED) as f64
}

/// The part of its bandwidth that a team of many threads reads weights with: they wait for each other.
fn read_share(host: &Host) -> f64 {
    host::READ / (1.0 + host::READ_LOST * measured(host))
}

/// INT8 operations a second that it multiplies weights in lines with.
fn int8(host: &Host) -> f64 {
    host.multiply * host::LINES / (1.0 + host::LINES_LOST * measured(host))
}

/// Seconds of a CPU for products of so many rows.
fn host_products(host: &Host, count: Count, rows: f64, in_lines: bool) -> f64 {
    let threads = host.threads as f64;
    let read = host.read * read_share(host);
    match in_lines {
        true => (count.bytes / read).max(2.0 * count.numbers * rows / int8(host)),
        false => (count.bytes / read.min(host::ROWS_READ * threads))
            .max(2.0 * count.numbers * rows / (host::ROWS * threads)),
    }
}

/// Seconds of a CPU for the routed experts of so many tokens.
fn host_experts(w: &Work, host: &Host, tokens: f64) -> f64 {
    let (touched, pairs) = (w.touched(tokens) * w.moe_layers, tokens * w.top_k * w.moe_layers);
    let Count { bytes, numbers } = w.expert;
    let of = Count { bytes: bytes * touched, numbers: numbers * pairs };
    host_products(host, of, 1.0, w.experts_in_lines) + w.moe_layers * host_call(host)
}

fn host_call(host: &Host) -> f64 {
    host::CALL + host::CALL_THREAD * measured(host)
}

/// Seconds of a CPU for a prompt.
fn host_prompt(w: &Work, host: &Host, tokens: f64) -> f64 {
    let floats = host::PAST * host.threads as f64;
    let past = (w.attend + w.latent) * tokens * tokens / 2.0;
    host_products(host, w.lines, tokens, true)
        + host_products(host, w.rows, tokens, false)
        + host_products(host, w.head, 1.0, w.head_in_lines)
        + host_experts(w, host, tokens)
        + (past + w.delta * tokens) / floats
        + w.calls * host_call(host)
}

/// Seconds of a CPU for one token of an answer.
fn host_token(w: &Work, host: &Host, past: f64) -> f64 {
    let latent = host::LATENT + host::LATENT_THREAD / host.threads as f64;
    host_products(host, w.lines, 1.0, true)
        + host_products(host, w.rows, 1.0, false)
        + host_products(host, w.head, 1.0, w.head_in_lines)
        + host_experts(w, host, 1.0)
        + past * w.past_bytes / (host.read * read_share(host))
        + w.latent_layers * latent
        + w.calls * host_call(host)
}
