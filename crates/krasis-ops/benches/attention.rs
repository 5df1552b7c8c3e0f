//! The mixers of tokens against the limits of the machine, measured in the same run:
//! `cargo bench -p krasis-ops --bench attention [-- THREADS] [prefill|decode]`.
//!
//! Prefill is compared with multiplications of floats in registers, decode with reading memory.
//! Machines are shared, so each run is divided by the limit measured right before it; printed are
//! medians of rates, limits, and these quotients.

use krasis_core::{Act, DType, Format, KvDtype, Layout, Mat, Slot, Weight};
use krasis_cpu::isa::Isa;
use krasis_cpu::{Arena, Team, limits};
use krasis_ops::{Cpu, DeltaHeads, KvStore, Memory, Ops, Prompts, Seqs, StateStore};
use std::hint::black_box;
use std::time::Instant;

/// Repetitions of which the median is reported.
const RUNS: usize = 5;

/// Tokens of a KV page, as the engine has it.
const PAGE: u32 = 16;

fn main() {
    let wanted = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let threads: usize =
        wanted.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let only = |name: &str| {
        let named = |arg: &String| ["prefill", "decode"].contains(&arg.as_str());
        std::env::args().find(named).is_none_or(|arg| arg == name)
    };
    let mut counts = vec![1, threads];
    counts.dedup();
    for threads in counts {
        println!("\n{threads} thread(s), medians of {RUNS}");
        // The others multiply floats as one of these does.
        let floats = |isa: &Isa| matches!(isa, Isa::Avx2(_) | Isa::Avx512Vnni(_));
        for isa in Isa::all().into_iter().filter(floats) {
            if only("prefill") {
                prefill(isa, threads);
            }
        }
        if only("decode") {
            decode(threads);
        }
    }
}

/// `(name, query heads, KV heads, dimensions of a head)`.
const GROUPED: [(&str, u32, u32, u32); 2] =
    [("GQA 32/4 heads of 128", 32, 4, 128), ("GQA 16/2 heads of 256", 16, 2, 256)];

/// Heads of latent attention with 512 latent and 64 rotated dimensions.
const LATENT: [u32; 2] = [16, 128];

fn prefill(isa: Isa, threads: usize) {
    let float = Team::new(Some(threads));
    let peak = || {
        const ROUNDS: usize = 1 << 22;
        let each = limits::float_products(isa, 1) * (ROUNDS * threads) as u64;
        let seconds = time(|| {
            float.each(threads, |_, _| {
                black_box(limits::float_products(isa, ROUNDS));
            });
        });
        2.0 * each as f64 / seconds / 1e9
    };
    let report = |name: &str, operations: f64, run: &mut dyn FnMut()| {
        measure(&format!("{name}, {}", isa.name()), "GFLOP/s", operations, peak, run);
    };
    for (tokens, past) in [(512, 0), (2048, 0), (512, 1536)] {
        // Rows see the past, themselves, and half of the others.
        let seen = f64::from(tokens) * (f64::from(past) + f64::from(tokens + 1) / 2.0);
        for (name, heads, kv_heads, dim) in GROUPED {
            let mut step = Step::new(past, tokens, past + tokens);
            let (q, out) = (step.act(tokens, heads * dim), step.act(tokens, heads * dim));
            let (k, v) = (step.store(kv_heads, dim), step.store(kv_heads, dim));
            let (mut d, seqs) = step.device(isa, threads);
            let operations = 4.0 * seen * f64::from(heads * dim);
            report(&format!("{name}, {tokens} after {past}"), operations, &mut || {
                d.attend(q, &k, &v, &seqs, 0.1, out);
            });
        }
        for heads in LATENT.into_iter().filter(|heads| *heads == 16 || tokens + past == 512) {
            let mut step = Step::new(past, tokens, past + tokens);
            let (q, out) = (step.act(tokens, heads * 512), step.act(tokens, heads * 512));
            let q_rope = step.act(tokens, heads * 64);
            let (latent, rope) = (step.store(1, 512), step.store(1, 64));
            let (mut d, seqs) = step.device(isa, threads);
            let operations = 2.0 * seen * f64::from(heads * (512 + 64 + 512));
            report(&format!("MLA {heads} heads, {tokens} after {past}"), operations, &mut || {
                d.mla_attend(q, q_rope, &latent, &rope, &seqs, 0.1, out);
            });
        }
    }
    let tokens = 512;
    for (name, inputs, outputs) in [("absorbed keys", 128, 512), ("absorbed values", 512, 128)] {
        let mut step = Step::new(0, tokens, tokens);
        let (x, out) = (step.act(tokens, 16 * inputs), step.act(tokens, 16 * outputs));
        let w = step.weight(16 * outputs, inputs);
        let (mut d, _) = step.device(isa, threads);
        let operations = 2.0 * f64::from(tokens * 16 * inputs * outputs);
        report(&format!("{name} of 16 heads, {tokens}"), operations, &mut || {
            d.linear_heads(x, &w, 16, out);
        });
    }
    let h = DeltaHeads { key: 16, value: 32, key_dim: 128, value_dim: 128 };
    let mut step = Step::new(0, tokens, tokens);
    let (qkv, ba) = (step.act(tokens, h.channels()), step.act(tokens, 2 * h.value));
    let (a_log, dt_bias) = (step.weight(1, h.value), step.weight(1, h.value));
    let state = StateStore { data: step.layout.slot(u64::from(h.state())), each: h.state() };
    let out = step.act(tokens, h.width());
    let (mut d, seqs) = step.device(isa, threads);
    // Two products to recall, one to fade, one to add.
    let operations = 7.0 * f64::from(tokens) * f64::from(h.state());
    report(&format!("delta rule of Qwen3-Next, {tokens}"), operations, &mut || {
        d.delta_rule(qkv, ba, &h, &a_log, &dt_bias, &state, &seqs, out);
    });
}

fn decode(threads: usize) {
    let isa = Isa::best();
    let team = Team::new(Some(threads));
    let pages = vec![[1u8; 4096]; 1 << 17];
    let bandwidth = || {
        let seconds = time(|| {
            team.split(pages.len(), 256, |range| {
                black_box(limits::read(&pages[range]));
            });
        });
        (pages.len() * 4096) as f64 / seconds / 1e9
    };
    for context in [8192, 32768] {
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::F16, KvDtype::F8E4M3] {
            for (name, heads, kv_heads, dim) in GROUPED {
                let mut step = Step { dtype, ..Step::new(context - 1, 1, context) };
                let (q, out) = (step.act(1, heads * dim), step.act(1, heads * dim));
                let (k, v) = (step.store(kv_heads, dim), step.store(kv_heads, dim));
                let (mut d, seqs) = step.device(isa, threads);
                let bytes = f64::from(2 * context * kv_heads * dim * dtype.bytes());
                let name = format!("{name}, {dtype:?}, decode at {context}");
                measure(&name, "GB/s", bytes, bandwidth, &mut || {
                    d.attend(q, &k, &v, &seqs, 0.1, out);
                });
            }
            let mut step = Step { dtype, ..Step::new(context - 1, 1, context) };
            let (q, q_rope) = (step.act(1, 16 * 512), step.act(1, 16 * 64));
            let (latent, rope) = (step.store(1, 512), step.store(1, 64));
            let out = step.act(1, 16 * 512);
            let (mut d, seqs) = step.device(isa, threads);
            let bytes = f64::from(context * (512 + 64) * dtype.bytes());
            let name = format!("MLA 16 heads, {dtype:?}, decode at {context}");
            measure(&name, "GB/s", bytes, bandwidth, &mut || {
                d.mla_attend(q, q_rope, &latent, &rope, &seqs, 0.1, out);
            });
        }
    }
}

/// One sequence's step, laid out bit by bit.
struct Step {
    layout: Layout,
    past: u32,
    rows: u32,
    context: u32,
    dtype: KvDtype,
    seqs: Seqs,
}

impl Step {
    fn new(past: u32, rows: u32, context: u32) -> Step {
        let mut layout = Layout::new(4);
        let pages_max = context.div_ceil(PAGE);
        let seqs = Seqs {
            count: 1,
            row_seq: layout.slot(rows.into()),
            positions: layout.slot(rows.into()),
            first_row: layout.slot(2),
            pages: layout.slot(pages_max.into()),
            pages_max,
            state: layout.slot(1),
            prompts: Prompts::NONE,
        };
        Step { layout, past, rows, context, dtype: KvDtype::F32, seqs }
    }

    fn act(&mut self, rows: u32, cols: u32) -> Mat<Act> {
        let slot = self.layout.slot::<f32>(u64::from(rows) * u64::from(cols));
        Mat::new(Slot::new(slot.start, slot.len), rows, cols)
    }

    fn weight(&mut self, rows: u32, cols: u32) -> Weight {
        let data = self.layout.slot(4 * u64::from(rows) * u64::from(cols));
        Weight { format: Format::Float(DType::F32), rows, cols, data, scales: Slot::EMPTY }
    }

    fn store(&mut self, heads: u32, dim: u32) -> KvStore {
        let tokens = u64::from(self.context.next_multiple_of(PAGE));
        let (vectors, dtype) = (tokens * u64::from(heads), self.dtype);
        let data = self.layout.slot(vectors * u64::from(dim * dtype.bytes()));
        KvStore { data, scales: self.layout.slot(vectors), dtype, heads, dim, page: PAGE }
    }

    /// A device full of small numbers, and the step.
    fn device(self, isa: Isa, threads: usize) -> (Cpu, Seqs) {
        let mut arena = Arena::new(&self.layout).expect("memory for a bench");
        let all = arena.slice_mut(Slot::<u32>::new(0, self.layout.bytes().0 / 4));
        let mut state = 1u32;
        for word in all {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // As four bytes, two halves or one float: between a sixteenth and two, of either sign.
            *word = state & 0x80ff_80ff | 0x3d00_3d00;
        }
        let mut d = Cpu::with_isa(arena, Team::new(Some(threads)), isa);
        let rows: Vec<u32> = (0..self.rows).collect();
        d.upload(self.seqs.row_seq, &vec![0; rows.len()]);
        d.upload(self.seqs.positions, &rows.iter().map(|row| self.past + row).collect::<Vec<_>>());
        d.upload(self.seqs.first_row, &[0, self.rows]);
        d.upload(self.seqs.pages, &(0..self.seqs.pages_max).rev().collect::<Vec<_>>());
        d.upload(self.seqs.state, &[0]);
        (d, self.seqs)
    }
}

/// Medians of a rate, of its limit, and of the share.
fn measure(name: &str, unit: &str, work: f64, limit: impl Fn() -> f64, run: &mut dyn FnMut()) {
    run();
    let (mut rates, mut limits) = (vec![], vec![]);
    let repeat = (0.05 / time(&mut *run)).ceil().clamp(1.0, 1000.0);
    for _ in 0..RUNS {
        limits.push(limit());
        let seconds = time(|| (0..repeat as usize).for_each(|_| run()));
        rates.push(work * repeat / seconds / 1e9);
    }
    let shares = rates.iter().zip(&limits).map(|(rate, limit)| 100.0 * rate / limit);
    let share = middle(shares.collect());
    let (rate, limit) = (middle(rates), middle(limits));
    println!("  {name}: {rate:.1} {unit} of {limit:.1}, {share:.0} %");
}

fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
