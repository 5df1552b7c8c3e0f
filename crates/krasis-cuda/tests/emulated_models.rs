//! Whole fixtures on the kernels as C++, through the engine: every architecture's order of launches,
//! without a GPU.

mod emulated;
#[path = "../../krasis-engine/tests/common/mod.rs"]
mod fixtures;
#[path = "emulated/home.rs"]
mod home;

use emulated::{Kernels, LARGE, possible};
use fixtures::{Compared, FIXTURES, Golden, answer, compare, defaults, dir, greedy, logprobs};
use half::bf16;
use home::Here;
use krasis_core::Bytes;
use krasis_cuda::Activation;
use krasis_engine::{
    DecodeStrategy, Engine, Loaded, Options, PrefillStrategy, Ranks, Residency, Shared,
};
use std::marker::PhantomData;

fn each<A: Activation>(fixtures: &[&str], good: impl Fn(&Compared) -> bool) {
    let options = Options { context_max: Some(320), ..defaults() };
    let runs: Vec<_> = fixtures.iter().map(|fixture| (*fixture, options.clone())).collect();
    each_with::<A>(&runs, good);
}

fn each_with<A: Activation>(runs: &[(&str, Options)], good: impl Fn(&Compared) -> bool) {
    if !possible() {
        return;
    }
    let kernels = Kernels::new::<A>(LARGE);
    let mut bad = Vec::new();
    for (fixture, options) in runs {
        let home = Here::<A>(kernels.clone(), PhantomData);
        let Loaded { mut engine, handle, submissions, .. } =
            Engine::load(&dir(fixture), options, home).unwrap();
        let serving = std::thread::spawn(move || engine.serve(&submissions));
        let got = compare(fixture, &handle);
        // A kernel still running while the process ends would find its statics destroyed.
        drop(handle);
        serving.join().unwrap();
        let Compared { mean, worst, same } = got;
        println!("{fixture} in {}: mean {mean:.1e}, worst {worst:.1e}, greedy {same}", A::NAME);
        if !good(&got) {
            bad.push(format!("{fixture}: mean {mean}, worst {worst}, greedy {same} of 24"));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn f32_activations_give_what_transformers_does() {
    each::<f32>(&FIXTURES, |got| got.mean < 1e-3 && got.worst < 2e-2 && got.same == 24);
}

/// Rounding flips routes of random models: this only guards against nonsense, so two are enough.
#[test]
fn bf16_activations_stay_near() {
    each::<bf16>(&["deepseek_v2", "qwen3_next"], |got| got.mean < 0.3);
}

/// Experts in host memory, brought by copies that come as late as they may: until they are waited for
/// there is nothing but NaN.
#[test]
fn experts_are_waited_for() {
    let with = |prefill, decode| Options {
        residency: Residency::Host { prefill, decode },
        prompt_rows: Some(12),
        prefill_chunk: 48,
        pass_tokens: 120,
        context_max: Some(320),
        ..defaults()
    };
    use {DecodeStrategy as D, PrefillStrategy as P};
    // Room for about half of the experts.
    let some = |options: Options| Options { device_bytes: Some(Bytes(3 << 20)), ..options };
    each_with::<f32>(
        &[
            ("qwen3_moe", some(with(P::HcsPrefill, D::HcsHybrid))),
            ("qwen3_next", some(with(P::LayerGrouped(3), D::PureCpu))),
            ("deepseek_v2_lite", some(with(P::ActiveOnly, D::Lru))),
        ],
        |got| got.mean < 1e-3 && got.worst < 2e-2 && got.same == 24,
    );
}

/// Layers on two or three GPUs, or a part of the experts: the bits of one, in steps that are recorded too.
#[test]
fn several_gpus_give_the_bits_of_one() {
    if !possible() {
        return;
    }
    let kernels = Kernels::new::<bf16>(LARGE);
    use {DecodeStrategy as D, PrefillStrategy as P};
    let hybrid = Residency::Host { prefill: P::HcsPrefill, decode: D::HcsHybrid };
    let grouped = Residency::Host { prefill: P::LayerGrouped(2), decode: D::PureCpu };
    use Shared::{Experts, Layers};
    for (fixture, residency, shared) in [
        ("qwen3_next", Residency::Device, Layers),
        ("qwen3_moe", hybrid, Layers),
        ("deepseek_v3", grouped, Experts),
    ] {
        let golden = Golden::of(fixture);
        let run = |ranks| {
            let options = Options {
                ranks: Ranks { count: Some(ranks), shared, ..Ranks::default() },
                context_max: Some(320),
                residency,
                prompt_rows: Some(12),
                prefill_chunk: 48,
                pass_tokens: 120,
                ..defaults()
            };
            let home = Here::<bf16>(kernels.clone(), PhantomData);
            let Loaded { mut engine, handle, submissions, .. } =
                Engine::load(&dir(fixture), &options, home).unwrap();
            let devices = engine.runner.ranks.iter().map(|rank| 1 + rank.helpers.len());
            assert_eq!(devices.sum::<usize>(), ranks);
            let serving = std::thread::spawn(move || engine.serve(&submissions));
            let prompt = logprobs(&handle, &golden.tokens[..100]);
            let tokens = answer(&handle, greedy(&golden.greedy_prompt, 12)).tokens;
            drop(handle);
            serving.join().unwrap();
            (prompt, tokens)
        };
        let wanted = run(1);
        assert!(run(2) == wanted && run(3) == wanted, "{fixture}, {residency:?}");
    }
}
