//! How near products of few rows come to the speed of memory, in the shapes of whole models:
//! `bash .gpu/run.sh bench` runs it. Weights take turns, so that none is in the L2 cache any more.
//!
//! Times are those of the GPU: while it is busy with what its memory allows at most, all launches
//! are queued, so that it does not wait for them.

use half::bf16;
use krasis_core::lines::{Bits, Lines};
use krasis_core::random::SplitMix64;
use krasis_core::{Act, DType, Format, Layout, Mat, Slot, Weight};
use krasis_cuda::gpu::Checking;
use krasis_cuda::{Cuda, CudaError, Gpu, driver};
use krasis_ops::{Bank, Memory, Ops, Routes};
use std::process::ExitCode;
use std::time::Instant;

/// Where weights lie: many times the L2 cache.
const REGION: u64 = 2 << 30;

/// Readings of the region before the launches that are timed, about half a millisecond each.
const AHEAD: u32 = 14;

/// The most launches that are queued, and tokens whose experts are drawn.
const CALLS: u64 = 240;
const TOKENS: u32 = 64;

const BF16: Format = Format::Float(DType::Bf16);
const INT4: Format = Format::Lines(Lines::new(Bits::Four, 128).unwrap());
const INT8: Format = Format::Lines(Lines::new(Bits::Eight, 128).unwrap());

/// Name, format, heads, outputs of each, inputs of each.
const LINEAR: [(&str, Format, u32, u32, u32); 16] = [
    ("Qwen3-30B qkv", BF16, 1, 5120, 2048),
    ("Qwen3-30B qkv", INT8, 1, 5120, 2048),
    ("Qwen3-30B qkv", INT4, 1, 5120, 2048),
    ("Qwen3-30B o", BF16, 1, 2048, 4096),
    ("Qwen3-30B o", INT4, 1, 2048, 4096),
    ("Qwen3-30B router", BF16, 1, 128, 2048),
    ("Qwen3-30B lm_head", BF16, 1, 151_936, 2048),
    ("Qwen3-30B lm_head", INT4, 1, 151_936, 2048),
    ("V2-Lite q", BF16, 1, 3072, 2048),
    ("V2-Lite kv_a", BF16, 1, 576, 2048),
    ("V2-Lite absorb", BF16, 16, 512, 128),
    ("V2-Lite dense down", BF16, 1, 2048, 10_944),
    ("V2-Lite shared gate_up", INT4, 1, 5632, 2048),
    ("QCN qkvz", BF16, 1, 12_288, 2048),
    ("QCN shared down", INT4, 1, 2048, 512),
    ("QCN router", BF16, 1, 512, 2048),
];

/// Name, format, experts, chosen, intermediate and hidden size.
const EXPERTS: [(&str, Format, u32, u32, u32, u32); 4] = [
    ("Qwen3-30B experts", INT4, 128, 8, 768, 2048),
    ("Qwen3-30B experts", INT8, 128, 8, 768, 2048),
    ("V2-Lite experts", INT4, 64, 6, 1408, 2048),
    ("QCN experts", INT4, 512, 10, 512, 2048),
];

struct Bench {
    device: Cuda<bf16, Gpu>,
    region: Slot<u8>,
    x: Slot<Act>,
    out: Slot<Act>,
    inner: Slot<Act>,
    chosen: Slot<u32>,
    mark: Slot<u32>,
    /// Seconds and bytes per second of reading the region.
    ahead: f64,
    speed: f64,
}

fn main() -> ExitCode {
    match open() {
        Ok(mut bench) => {
            bench.measure_reading();
            LINEAR.iter().for_each(|shape| bench.linear(*shape));
            EXPERTS.iter().for_each(|shape| bench.experts(*shape));
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("skipped: no GPU ({error})");
            ExitCode::SUCCESS
        }
    }
}

fn open() -> Result<Bench, CudaError> {
    let mut plan = Layout::new(2);
    let (region, x) = (plan.slot(REGION), plan.act(TOKENS, 10_944).at);
    let (out, inner) = (plan.act(TOKENS, 151_936).at, plan.act(TOKENS * 10, 2048).at);
    let (chosen, mark) = (plan.slot(CALLS * u64::from(TOKENS * 10)), plan.slot(1));
    let cache = std::env::temp_dir().join("krasis-test-kernels");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut gpu = Gpu::open::<bf16>(driver::first()?, Some(&cache), threads, Checking::Reads)?;
    gpu.allocate(Cuda::<bf16, Gpu>::arena_bytes(&plan))?;
    let mut device = Cuda::new(&plan, gpu);
    // Numbers below two, for zeros would need less power than weights do.
    let mut random = SplitMix64(1);
    let some: Vec<u64> = (0..8 << 20).map(|_| random.bits() & 0xbfff_bfff_bfff_bfff).collect();
    let bytes = size_of_val(&*some) as u64;
    for part in 0..REGION / bytes {
        device.upload(Slot::new(region.start + part * bytes, bytes / 8), &some);
    }
    device.upload(Slot::new(x.start, x.len * 2 / 8), &some[..(x.len * 2 / 8) as usize]);
    Ok(Bench { device, region, x, out, inner, chosen, mark, ahead: 0.0, speed: 0.0 })
}

fn weight(format: Format, rows: u32, cols: u32, start: u64) -> (Weight, u64) {
    let stored = u64::from(rows.next_multiple_of(format.rows_together()));
    let data = Slot::new(start, stored * format.row_bytes(cols));
    let after = (start + data.len).next_multiple_of(256);
    let scales = Slot::new(after, stored * u64::from(format.row_scales(cols)));
    (Weight { format, rows, cols, data, scales }, (after + 2 * scales.len).next_multiple_of(256))
}

/// Rows without gaps at the beginning of a slot.
fn matrix(slot: Slot<Act>, rows: u32, cols: u32) -> Mat<Act> {
    let len = u64::from(rows) * u64::from(cols);
    assert!(len <= slot.len, "{rows} rows of {cols} in {slot:?}");
    Mat::new(Slot::new(slot.start, len), rows, cols)
}

impl Bench {
    /// Seconds of the median of five.
    fn median(&mut self, mut run: impl FnMut(&mut Self)) -> f64 {
        let mut times: Vec<f64> = (0..5)
            .map(|_| {
                self.device.download(self.mark);
                let start = Instant::now();
                run(self);
                self.device.download(self.mark);
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[2]
    }

    fn keep_busy(&mut self) {
        for _ in 0..AHEAD {
            self.device.read_all(self.region);
        }
    }

    fn measure_reading(&mut self) {
        self.median(Self::keep_busy);
        self.ahead = self.median(Self::keep_busy);
        // What launching and waiting take is in neither.
        let twice = self.median(|on| {
            on.keep_busy();
            on.keep_busy();
        });
        self.speed = f64::from(AHEAD) * REGION as f64 / (twice - self.ahead);
        println!("memory is read at {:.0} GB/s", self.speed / 1e9);
    }

    /// Prints what a call for `rows` takes, which reads `bytes`; `call` is told its number.
    fn report(&mut self, rows: u32, bytes: f64, mut call: impl FnMut(&mut Self, u64)) {
        let calls = ((3e9 / bytes) as u64).clamp(12, CALLS);
        call(self, 0);
        let all = self.median(|on| {
            on.keep_busy();
            (0..calls).for_each(|number| call(on, number));
        });
        let each = (all - self.ahead) / calls as f64;
        let speed = bytes / each;
        let part = 100.0 * speed / self.speed;
        print!(" | {rows}: {:.1} us {:.0} GB/s {part:.0} %", each * 1e6, speed / 1e9);
    }

    fn linear(&mut self, (name, format, heads, outputs, inputs): (&str, Format, u32, u32, u32)) {
        let size = weight(format, heads * outputs, inputs, 0).1;
        print!("{name} {heads} x {outputs} x {inputs}, {format}");
        for rows in [1, 4, 8, 32] {
            let x = matrix(self.x, rows, heads * inputs);
            let out = matrix(self.out, rows, heads * outputs);
            self.report(rows, size as f64, |on, call| {
                let start = on.region.start + call % (REGION / size) * size;
                let (w, _) = weight(format, heads * outputs, inputs, start);
                on.device.linear_heads(x, &w, heads, out);
            });
        }
        println!();
    }

    fn experts(
        &mut self,
        (name, format, experts, top_k, inter, hidden): (&str, Format, u32, u32, u32, u32),
    ) {
        let rows = |rows| Bank::rows_of(format, rows);
        let bank = |start| {
            let (gate_up, after) = weight(format, experts * 2 * rows(inter), hidden, start);
            let (down, end) = weight(format, experts * rows(hidden), inter, after);
            (Bank { gate_up, down, experts, inter }, end)
        };
        let size = bank(0).1;
        print!("{name} {top_k} of {experts} x 3 x {inter} x {hidden}, {format}");
        for tokens in [1, 4, 8, 32, 64] {
            let (chosen, each) = draw(experts, top_k, tokens);
            self.device.upload(self.chosen, &chosen);
            let pairs = tokens * top_k;
            let x = matrix(self.x, tokens, hidden);
            let (inner, out) = (matrix(self.inner, pairs, inter), matrix(self.out, pairs, hidden));
            let bytes = each * size as f64 / f64::from(experts);
            self.report(tokens, bytes, |on, call| {
                let start = on.region.start + call % (REGION / size) * size;
                let at = on.chosen.start + call * u64::from(pairs) * 4;
                let experts = Mat::new(Slot::new(at, u64::from(pairs)), tokens, top_k);
                let weights = Mat::new(Slot::EMPTY, 0, top_k);
                on.device.experts(x, Routes { experts, weights }, &bank(start).0, inner, out);
            });
        }
        println!();
    }
}

/// The experts of every call, and how many different ones a call has in the mean.
fn draw(experts: u32, top_k: u32, tokens: u32) -> (Vec<u32>, f64) {
    let mut random = SplitMix64(2);
    let (mut all, mut different) = (Vec::new(), 0);
    for _ in 0..CALLS {
        let mut met = vec![false; experts as usize];
        for _ in 0..tokens {
            let mut own: Vec<u32> = Vec::new();
            while own.len() < top_k as usize {
                let expert = (random.bits() % u64::from(experts)) as u32;
                if !own.contains(&expert) {
                    own.push(expert);
                    met[expert as usize] = true;
                }
            }
            all.extend(own);
        }
        different += met.iter().filter(|met| **met).count();
    }
    (all, different as f64 / CALLS as f64)
}
