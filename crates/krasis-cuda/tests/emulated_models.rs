//! Whole fixtures on the kernels as C++, through the engine: every architecture's order of launches,
//! without a GPU.

mod emulated;
#[path = "../../krasis-engine/tests/common/mod.rs"]
mod fixtures;
#[path = "emulated/home.rs"]
mod home;

use emulated::{Kernels, LARGE, possible};
use fixtures::{
    Compared, FIXTURES, Golden, answer, compare, defaults, differences, dir, greedy, logprobs,
    submit,
};
use half::bf16;
use home::Here;
use krasis_core::Bytes;
use krasis_cuda::{Activation, Lost};
use krasis_engine::{
    Census, DecodeStrategy, Engine, Event, Loaded, Options, PrefillStrategy, Ranks, Request,
    Residency, Shared,
};

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
        let home = Here::<A>::new(kernels.clone());
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

/// Experts in host memory, and as little memory on the device as will do, within 128 KiB: room for some of them.
fn some_away(fixture: &str, prefill: PrefillStrategy, decode: DecodeStrategy) -> Options {
    let kernels = Kernels::new::<f32>(LARGE);
    let options = |eighths: u64| Options {
        residency: Residency::Host { prefill, decode },
        prompt_rows: Some(12),
        prefill_chunk: 48,
        pass_tokens: 120,
        context_max: Some(320),
        device_bytes: Some(Bytes(eighths << 17)),
        ..defaults()
    };
    let fits = |eighths: &u64| {
        let home = Here::<f32>::new(kernels.clone());
        Engine::load(&dir(fixture), &options(*eighths), home).is_ok()
    };
    options((1..100).find(fits).expect("memory that is enough"))
}

/// Experts in host memory, brought by copies that come as late as they may: until they are waited for
/// there is nothing but NaN.
#[test]
fn experts_are_waited_for() {
    if !possible() {
        return;
    }
    use {DecodeStrategy as D, PrefillStrategy as P};
    each_with::<f32>(
        &[
            ("qwen3_moe", some_away("qwen3_moe", P::HcsPrefill, D::HcsHybrid)),
            ("qwen3_next", some_away("qwen3_next", P::LayerGrouped(3), D::PureCpu)),
            ("deepseek_v2_lite", some_away("deepseek_v2_lite", P::ActiveOnly, D::Lru)),
        ],
        |got| got.mean < 1e-3 && got.worst < 2e-2 && got.same == 24,
    );
}

/// The same while somebody writes between the groups of a prompt's layers: whatever is on its way then must
/// not be taken for there.
#[test]
fn whoever_writes_beside_a_prompt_meets_nothing_that_is_on_its_way() {
    if !possible() {
        return;
    }
    let kernels = Kernels::new::<f32>(LARGE);
    use {DecodeStrategy as D, PrefillStrategy as P};
    for (fixture, prefill, decode) in [
        ("qwen3_moe", P::HcsPrefill, D::HcsHybrid),
        ("qwen3_next", P::LayerGrouped(3), D::PureCpu),
        ("qwen3_moe", P::LayerGrouped(3), D::Lru),
        ("deepseek_v2_lite", P::LayerGrouped(2), D::Compact),
    ] {
        let options = some_away(fixture, prefill, decode);
        let home = Here::<f32>::new(kernels.clone());
        let Loaded { mut engine, handle, submissions, .. } =
            Engine::load(&dir(fixture), &options, home).unwrap();
        let golden = Golden::of(fixture);
        let writing = submit(&handle, greedy(&golden.greedy_prompt, 24));
        engine.listen(&submissions);
        (0..4).for_each(|_| engine.step());
        let reading = Request { prompt_logprobs: Some(0), ..greedy(&golden.tokens, 0) };
        let reading = submit(&handle, reading);
        let before = Census::read(&handle.census.steps);
        engine.listen(&submissions);
        engine.step();
        let name = format!("{fixture}, {prefill:?}, {decode:?}");
        let beside = Census::read(&handle.census.steps) - before;
        assert!(beside > 2, "{name}: {beside} steps");
        drop(handle);
        engine.serve(&submissions);
        assert_eq!(writing.wait().tokens, golden.greedy, "{name}");
        let got: Vec<f32> = reading.wait().prompt.into_iter().map(|entry| entry.logprob).collect();
        let (mean, worst) = differences(&got, &golden.logprobs);
        assert!(mean < 1e-3 && worst < 2e-2, "{name}: mean {mean}, worst {worst}");
    }
}

/// What was recorded of one strategy is not played back for another.
#[test]
fn strategies_change_under_recordings() {
    if !possible() {
        return;
    }
    let options = some_away("qwen3_moe", PrefillStrategy::HcsPrefill, DecodeStrategy::HcsHybrid);
    let home = Here::<f32>::new(Kernels::new::<f32>(LARGE));
    let Loaded { mut engine, handle, submissions, .. } =
        Engine::load(&dir("qwen3_moe"), &options, home).unwrap();
    let serving = std::thread::spawn(move || engine.serve(&submissions));
    let golden = Golden::of("qwen3_moe");
    let experts = handle.census.experts.get().unwrap().clone();
    use DecodeStrategy::{Compact, HcsHybrid, Lru, PureCpu};
    for decode in [HcsHybrid, PureCpu, HcsHybrid, Lru, PureCpu, Compact, HcsHybrid] {
        experts.wish(decode, 12);
        let got = answer(&handle, greedy(&golden.greedy_prompt, 24)).tokens;
        assert_eq!(got, golden.greedy, "{decode:?}");
        assert_eq!(experts.policy(), Some((decode, 12)));
    }
    drop(handle);
    serving.join().unwrap();
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
            let home = Here::<bf16>::new(kernels.clone());
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

/// A GPU that is lost in the middle of an answer: the engine's thread ends with a sentence, and whoever waits is
/// left with what was said so far.
#[test]
fn a_lost_gpu_ends_the_thread_with_a_sentence() {
    if !possible() {
        return;
    }
    let kernels = Kernels::new::<f32>(LARGE);
    let options = some_away("qwen3_moe", PrefillStrategy::HcsPrefill, DecodeStrategy::HcsHybrid);
    // While the prompt is read, and while tokens are written.
    for launches in [20, 400] {
        let mut home = Here::<f32>::new(kernels.clone());
        home.launches_left = Some(launches);
        let Loaded { mut engine, handle, submissions, .. } =
            Engine::load(&dir("qwen3_moe"), &options, home).unwrap();
        let golden = Golden::of("qwen3_moe");
        let (sender, events) = std::sync::mpsc::channel();
        let heard = Box::new(move |event| drop(sender.send(event)));
        let ticket = handle.submit(greedy(&golden.greedy_prompt, 24), heard).unwrap();
        let serving = std::thread::spawn(move || engine.serve(&submissions));
        let panic = serving.join().expect_err("it is lost");
        let lost = panic.downcast_ref::<Lost>().expect("a sentence").to_string();
        assert!(lost.starts_with("GPU 0 (emulated) is lost"), "{lost}");
        // The thread is gone, so what waits for it is told that there will be no more.
        let events: Vec<Event> = events.iter().collect();
        let ended = events.iter().any(|event| matches!(event, Event::Done { .. }));
        assert!(!ended && events.len() < 24, "{launches}: {} events", events.len());
        drop(ticket);
    }
}
