//! Attention of prompts on a GPU, in the shapes of whole models, beside what its tensor cores multiply in
//! registers in the same run: `attention [ROWS/PAST…]`. Operations are those of each row with all keys that
//! it sees, and for latent attention those of expanded heads, 192 and 128 columns, whatever else is done.

mod on_gpu;

use krasis_core::{DType, Format, KvDtype};
use krasis_cuda::CudaError;
use krasis_ops::testing::Case;
use krasis_ops::{Ops, Seqs, mla_mix};
use on_gpu::{Device, device_with, timed};

/// Runs of which the mean is printed, after one that warms up.
const RUNS: u32 = 10;

/// Rounds of products in registers: some milliseconds.
const ROUNDS: u32 = 20_000;

/// `(name, query heads, KV heads, dimensions of a head)`.
const GROUPED: [(&str, u32, u32, u32); 2] = [("Qwen3", 32, 4, 128), ("Qwen3-Next", 16, 2, 256)];

/// Of latent attention, whose other dimensions are those of DeepSeek and Kimi.
const HEADS: [(&str, u32); 2] = [("DeepSeek-V2-Lite", 16), ("Kimi", 64)];

fn main() -> Result<(), CudaError> {
    let steps = std::env::args().skip(1).filter_map(|arg| {
        let (rows, past) = arg.split_once('/')?;
        Some((rows.parse().ok()?, past.parse().ok()?))
    });
    let mut steps: Vec<(u32, u32)> = steps.collect();
    if steps.is_empty() {
        steps = vec![(256, 8192), (512, 8192), (2048, 0), (8192, 0), (8192, 8192), (8192, 24_576)];
    }
    for (rows, past) in steps {
        for of in GROUPED {
            grouped(rows, past, of)?;
        }
        for of in HEADS {
            latent(rows, past, of)?;
        }
    }
    Ok(())
}

/// Keys that the rows of a step see together.
fn seen(rows: u32, past: u32) -> f64 {
    f64::from(rows) * (f64::from(past) + f64::from(rows + 1) / 2.0)
}

fn grouped(
    rows: u32,
    past: u32,
    (name, heads, kv_heads, dim): (&str, u32, u32, u32),
) -> Result<(), CudaError> {
    let mut case = Case::new(1);
    let (seqs, tokens) = case.seqs(&[(past, rows)], 16);
    let [k, v] = [(); 2].map(|()| case.store(tokens, kv_heads, dim, KvDtype::Bf16, 16));
    let q = case.act(rows, heads * dim);
    let out = case.layout.act(rows, heads * dim);
    let operations = 4.0 * seen(rows, past) * f64::from(heads * dim);
    let what = format!("{name}, {heads} heads of {dim}, {rows} rows after {past}");
    report(
        &case,
        &seqs,
        &what,
        operations,
        &[("", &|device| {
            device.attend(q, &k, &v, &seqs, 0.1, out);
        })],
    )
}

fn latent(rows: u32, past: u32, (name, heads): (&str, u32)) -> Result<(), CudaError> {
    let mut case = Case::new(1);
    let (seqs, tokens) = case.seqs(&[(past, rows)], 16);
    let [latent, rope] = [512, 64].map(|dim| case.store(tokens, 1, dim, KvDtype::Bf16, 16));
    let bf16 = Format::Float(DType::Bf16);
    let absorb = [case.weight(heads * 512, 128, bf16), case.weight(heads * 128, 512, bf16)];
    let all = case.act(rows, heads * 192);
    let q = [all.cols(0, heads * 128), all.cols(heads * 128, heads * 64)];
    let out = case.layout.act(rows, heads * 128);
    // As the engine has it for prompts in chunks of 8,192 rows.
    let scratch = [8192.max(rows), rows].map(|rows| case.layout.act(rows, heads * 512).at);
    let operations = 2.0 * seen(rows, past) * f64::from(heads * (192 + 128));
    let what = format!("{name}, {heads} latent heads, {rows} rows after {past}");
    let (absorb, stores) = ([&absorb[0], &absorb[1]], [&latent, &rope]);
    report(
        &case,
        &seqs,
        &what,
        operations,
        &[
            ("", &|device| device.mla_mix(q, absorb, stores, &seqs, 0.01, scratch, out)),
            (" absorbed", &|device| {
                mla_mix::absorbed(device, q, absorb, stores, &seqs, 0.01, scratch, out);
            }),
        ],
    )
}

type Way<'a> = (&'a str, &'a dyn Fn(&mut Device));

fn report(
    case: &Case,
    seqs: &Seqs,
    what: &str,
    operations: f64,
    ways: &[Way],
) -> Result<(), CudaError> {
    let mut device = device_with(case)?;
    let mut timed =
        |runs: u32, run: &mut dyn FnMut(&mut Device)| timed(&mut device, seqs.first_row, runs, run);
    for (way, run) in ways {
        timed(1, &mut |device| run(device));
        let seconds = timed(RUNS, &mut |device| run(device));
        let mut multiplied = 0.0;
        timed(1, &mut |device| multiplied = device.multiply_all(ROUNDS));
        let most = multiplied / timed(1, &mut |device| multiplied = device.multiply_all(ROUNDS));
        let rate = operations / seconds;
        println!(
            "{what}{way}: {:.3} ms, {:.0} TFLOP/s, {:.0} % of {:.0}",
            seconds * 1e3,
            rate / 1e12,
            100.0 * rate / most,
            most / 1e12
        );
    }
    Ok(())
}
