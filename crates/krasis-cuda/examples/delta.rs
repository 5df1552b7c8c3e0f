//! Milliseconds of a delta net's layer on a GPU, heads as in Qwen3-Next: `delta [TOKENS…]`, of one
//! sequence in chunks, of the same a token at a time, and of its convolution.

mod on_gpu;

use krasis_core::{Act, DType, Format, Mat};
use krasis_cuda::CudaError;
use krasis_ops::testing::Case;
use krasis_ops::{DeltaHeads, Ops};
use on_gpu::{Device, device_with, timed};

const HEADS: DeltaHeads = DeltaHeads { key: 16, value: 32, key_dim: 128, value_dim: 128 };

/// Runs of which the mean is printed, after one that warms up.
const RUNS: u32 = 10;

fn main() -> Result<(), CudaError> {
    let mut tokens: Vec<u32> =
        std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    if tokens.is_empty() {
        tokens = vec![2048, 8192];
    }
    for tokens in tokens {
        measure(tokens)?;
    }
    Ok(())
}

fn measure(tokens: u32) -> Result<(), CudaError> {
    let mut case = Case::new(1);
    let (x, qkv) = (case.act(tokens, HEADS.channels()), case.act(tokens, HEADS.channels()));
    let ba = case.act(tokens, 2 * HEADS.value);
    let (a_log, dt_bias) = (case.vector(HEADS.value), case.vector(HEADS.value));
    let taps = case.weight(HEADS.channels(), 4, Format::Float(DType::Bf16));
    let (seqs, _) = case.seqs(&[(0, tokens)], 16);
    let (state, past) = (case.state(1, HEADS.state()), case.state(1, 3 * HEADS.channels()));
    let wide = case.blank(tokens, HEADS.width() + 8);
    // What does not begin at 16 bytes goes token by token.
    let (whole, apart) = (wide.cols(0, HEADS.width()), wide.cols(1, HEADS.width()));

    let mut device = device_with(&case)?;
    let mut report = |name: &str, run: &dyn Fn(&mut Device, Mat<Act>), out: Mat<Act>| {
        let mut ms =
            |runs| 1e3 * timed(&mut device, seqs.first_row, runs, &mut |device| run(device, out));
        ms(1);
        println!("{name}, {tokens} tokens: {:.3} ms", ms(RUNS));
    };
    let rule = |device: &mut Device, out: Mat<Act>| {
        device.delta_rule(qkv, ba, &HEADS, &a_log, &dt_bias, &state, &seqs, out);
    };
    report("delta rule in chunks", &rule, whole);
    report("delta rule by token", &rule, apart);
    let convolve = |device: &mut Device, out: Mat<Act>| {
        device.causal_conv(x, &taps, &past, &seqs, out);
    };
    report("convolution", &convolve, qkv);
    Ok(())
}
