//! Products with weights in lines against the limits of the machine, measured in the same run:
//! `cargo bench -p krasis-ops --bench lines [-- THREADS] [vectors|batches]`.
//!
//! Matrices are larger than any cache. Machines are shared, so each run is divided by the limit
//! measured right before it; printed are medians of rates, limits, and these quotients.

use half::bf16;
use krasis_core::lines::{Bits, ROWS};
use krasis_core::{Bytes, Layout, Lines, Slot};
use krasis_cpu::isa::Isa;
use krasis_cpu::lines::{Matrix, Tokens, multiply};
use krasis_cpu::{Arena, Team, Tiles};
use std::hint::black_box;
use std::time::Instant;

/// Inputs of the matrices: the hidden size of Qwen3-30B-A3B.
const COLS: usize = 2048;

/// Weights of the matrices: nothing keeps 2 GiB in cache.
const BYTES: usize = 2 << 30;

/// Repetitions of which the median is reported.
const RUNS: usize = 7;

fn main() {
    let wanted = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let threads: usize =
        wanted.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let only = |name: &str| {
        let named = |arg: &String| ["vectors", "batches"].contains(&arg.as_str());
        std::env::args().find(named).is_none_or(|arg| arg == name)
    };
    let mut layout = Layout::new(4);
    let data = layout.slot::<u8>(BYTES as u64);
    let scales = layout.slot::<bf16>((BYTES / 16) as u64);
    let mut arena = Arena::new(&layout).expect("3 GiB of memory");
    fill(&mut arena, data, scales);

    let mut counts = vec![1, threads];
    counts.dedup();
    for threads in counts {
        let team = Team::new(Some(threads));
        println!("\n{threads} thread(s), medians of {RUNS}");
        let reading = || read(&team, arena.slice(data));
        println!("  memory read, {}: {:.1} GB/s", Bytes(BYTES as u64), median(reading));
        if only("vectors") {
            vectors(&arena, data, scales, &team);
        }
        if only("batches") {
            batches(&arena, data, scales, &team);
        }
    }
}

/// Random bytes, and scales around a hundredth.
fn fill(arena: &mut Arena, data: Slot<u8>, scales: Slot<bf16>) {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state
    };
    for chunk in arena.slice_mut(data).as_chunks_mut::<8>().0 {
        *chunk = random().to_le_bytes();
    }
    for scale in arena.slice_mut(scales) {
        *scale = bf16::from_f32((random() >> 40) as f32 / (1u64 << 30) as f32);
    }
}

/// One token: bytes per second against plain reading.
fn vectors(arena: &Arena, data: Slot<u8>, scales: Slot<bf16>, team: &Team) {
    for lines in formats() {
        let w = matrix(arena, data, scales, lines, BYTES);
        let bytes = w.blocks() * bytes_of_block(lines);
        for isa in Isa::all().into_iter().skip(1) {
            for count in [1, 2, 3, 4, 8] {
                let x = tokens(isa, team, lines, count);
                let mut out = vec![0.0; count * w.blocks() * ROWS];
                let (mut rates, mut limits) = (vec![], vec![]);
                for _ in 0..if count == 1 { RUNS } else { 3 } {
                    limits.push(read(team, arena.slice(data)));
                    let seconds = time(|| product(isa, &w, &x, count, team, &mut out));
                    rates.push(bytes as f64 / seconds / 1e9);
                }
                black_box(&out);
                let shares = rates.iter().zip(&limits).map(|(rate, limit)| 100.0 * rate / limit);
                let share = middle(shares.collect());
                let (rate, limit) = (middle(rates), middle(limits));
                let isa = isa.name();
                println!("  {lines} x {count}, {isa}: {rate:.1} GB/s of {limit:.1}, {share:.0} %");
            }
        }
    }
}

/// Many tokens: operations per second against products of registers alone. 32 tokens come once more to
/// weights from memory, as they do in the prefill of a model of many experts.
fn batches(arena: &Arena, data: Slot<u8>, scales: Slot<bf16>, team: &Team) {
    // An expert of Qwen3-30B-A3B is this large, and its rows meet all tokens.
    const EXPERT: usize = 768 * 2 * COLS / 2;
    const CASES: [(usize, usize, &str); 6] = [
        (4, EXPERT, "cache"),
        (8, EXPERT, "cache"),
        (32, EXPERT, "cache"),
        (128, EXPERT, "cache"),
        (512, EXPERT, "cache"),
        (32, BYTES / 8, "memory"),
    ];
    for lines in formats() {
        for isa in Isa::all().into_iter().skip(1) {
            for (count, bytes, place) in CASES {
                let w = matrix(arena, data, scales, lines, bytes);
                let x = tokens(isa, team, lines, count);
                let mut out = vec![0.0; count * w.blocks() * ROWS];
                let (mut rates, mut limits) = (vec![], vec![]);
                let operations = (2 * w.blocks() * ROWS * COLS * count) as f64;
                for _ in 0..RUNS {
                    limits.push(peak(isa, team));
                    let repeat = (2048 * EXPERT / count / bytes).max(1);
                    let seconds = time(|| {
                        (0..repeat).for_each(|_| product(isa, &w, &x, count, team, &mut out));
                    });
                    rates.push(operations * repeat as f64 / seconds / 1e9);
                }
                black_box(&out);
                let shares = rates.iter().zip(&limits).map(|(rate, limit)| 100.0 * rate / limit);
                let share = middle(shares.collect());
                let (rate, limit) = (middle(rates), middle(limits));
                let isa = isa.name();
                println!(
                    "  {lines} x {count} from {place}, {isa}: {rate:.0} Gop/s of {limit:.0}, {share:.0} %"
                );
            }
        }
    }
}

fn formats() -> impl Iterator<Item = Lines> {
    let each = [(Bits::Four, 128), (Bits::Four, 32), (Bits::Eight, 128)];
    each.into_iter().map(|(bits, group)| Lines::new(bits, group).expect("a group of lines"))
}

fn bytes_of_block(lines: Lines) -> usize {
    lines.block_bytes(COLS) + lines.block_scales(COLS) * size_of::<bf16>()
}

fn matrix<'a>(
    arena: &'a Arena,
    data: Slot<u8>,
    scales: Slot<bf16>,
    lines: Lines,
    bytes: usize,
) -> Matrix<'a> {
    let blocks = bytes / lines.block_bytes(COLS);
    let data = &arena.slice(data)[..blocks * lines.block_bytes(COLS)];
    let scales = &arena.slice(scales)[..blocks * lines.block_scales(COLS)];
    Matrix::new(lines, COLS, data, scales)
}

fn tokens(isa: Isa, team: &Team, lines: Lines, count: usize) -> Tokens {
    let x: Vec<f32> = (0..count * COLS).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let mut tokens = Tokens::new();
    tokens.fill(isa, team, lines, COLS, count, |i| &x[i * COLS..][..COLS]);
    tokens
}

fn product(isa: Isa, w: &Matrix, x: &Tokens, count: usize, team: &Team, out: &mut [f32]) {
    let chosen: Vec<u32> = (0..count as u32).collect();
    let tiles = Tiles::new(out, w.blocks() * ROWS);
    team.split(w.blocks().div_ceil(8), 1, |panels| {
        let blocks = panels.start * 8..(panels.end * 8).min(w.blocks());
        multiply(isa, w, blocks, x, &chosen, |i, row, sums| {
            // SAFETY: the ranges of `split` are disjoint.
            unsafe { tiles.tile(i, row..row + sums.len()) }.copy_from_slice(sums);
        });
    });
}

/// GB/s of adding up all words.
fn read(team: &Team, data: &[u8]) -> f64 {
    let chunks = data.as_chunks::<4096>().0;
    let seconds = time(|| {
        team.split(chunks.len(), 1, |range| {
            black_box(krasis_cpu::limits::read(&chunks[range]));
        });
    });
    data.len() as f64 / seconds / 1e9
}

/// Gop/s of byte products without memory.
fn peak(isa: Isa, team: &Team) -> f64 {
    const ROUNDS: usize = 1 << 22;
    let each = krasis_cpu::limits::byte_products(isa, 1);
    let seconds = time(|| {
        team.split(team.threads(), 1, |range| {
            range.for_each(|_| {
                black_box(krasis_cpu::limits::byte_products(isa, ROUNDS));
            });
        });
    });
    2.0 * (each * ROUNDS as u64 * team.threads() as u64) as f64 / seconds / 1e9
}

fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(measure: impl Fn() -> f64) -> f64 {
    middle((0..RUNS).map(|_| measure()).collect())
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
