//! Whole models on an NVIDIA GPU against transformers.

mod common;

use common::{Compared, FIXTURES, compare, defaults, dir};
use krasis_engine::{Activations, DeviceKind, ExpertBits, Options, Quant, StartError, start};

/// Runs every fixture, prints a line for each, and fails at the end with all that are off.
fn each(what: &str, options: &Options, good: impl Fn(&Compared) -> bool) {
    let mut bad = Vec::new();
    for fixture in FIXTURES {
        match start(&dir(fixture), options) {
            // Without a GPU, a driver or a compiler there is nothing to compare.
            Err(StartError::Gpu(error)) => return println!("skipped: no GPU ({error})"),
            Err(error) => bad.push(format!("{fixture}: {error}")),
            Ok(running) => {
                let got = compare(fixture, &running.handle);
                let Compared { mean, worst, same } = got;
                println!(
                    "{fixture}, {what}: mean {mean:.1e}, worst {worst:.1e}, greedy {same} of 24"
                );
                if !good(&got) {
                    bad.push(format!("{fixture}: mean {mean}, worst {worst}, greedy {same} of 24"));
                }
            }
        }
    }
    assert!(bad.is_empty(), "{what}:\n{}", bad.join("\n"));
}

fn on_gpu(activations: Activations) -> Options {
    let kernel_cache = Some(std::env::temp_dir().join("krasis-test-kernels"));
    Options { device: DeviceKind::Cuda(activations), kernel_cache, threads: None, ..defaults() }
}

/// Products are split until nothing is lost, so only the order of additions differs.
#[test]
fn f32_activations_give_what_transformers_does() {
    let good = |got: &Compared| got.mean < 1e-3 && got.worst < 2e-2 && got.same == 24;
    each("f32 activations", &on_gpu(Activations::F32), good);
}

/// Rounding flips routes of random models: the CPU with all activations rounded is 0.01 to 0.12 off
/// in the mean. This only guards against nonsense; the test above and the demo model judge.
#[test]
fn bf16_activations_stay_near() {
    each("BF16 activations", &on_gpu(Activations::Bf16), |got| got.mean < 0.3);
}

#[test]
fn quantised_weights_stay_near() {
    for (what, expert_bits) in [("INT8", ExpertBits::Int8), ("INT4", ExpertBits::Int4)] {
        let options = Options {
            expert_bits,
            attention: Quant::Int8,
            dense_mlp: Quant::Int8,
            group: 32,
            ..on_gpu(Activations::F32)
        };
        each(what, &options, |got| got.mean < 0.8);
    }
}
