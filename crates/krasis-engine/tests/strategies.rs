//! Experts in host memory: the same tokens as with all of them on the device, whatever is brought
//! when, and whoever computes what. The CPU plays the device, with a memory of its own, so that
//! log-probabilities can be compared bit for bit.

mod common;

use common::{
    Answer, DECODE, FIXTURES, Golden, PREFILL, answer, away, company, engine, greedy, logprobs,
    tight,
};
use krasis_engine::{DecodeStrategy, Engine, ExpertBits, Loaded, Options, PrefillStrategy, device};

#[test]
fn every_strategy_gives_the_same_tokens() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        let all = engine(fixture, &common::defaults());
        let wanted = logprobs(&all, &golden.tokens);
        for (i, prefill) in PREFILL.into_iter().enumerate() {
            for decode in [DECODE[i % 4], DECODE[(i + 1) % 4]] {
                let options = away(prefill, decode);
                for options in [tight(fixture, &options), options] {
                    let handle = engine(fixture, &options);
                    let name =
                        format!("{fixture}, {prefill:?}, {decode:?}, {:?}", options.device_bytes);
                    assert_eq!(logprobs(&handle, &golden.tokens), wanted, "{name}");
                    let got = answer(&handle, greedy(&golden.greedy_prompt, 24)).tokens;
                    assert_eq!(got, golden.greedy, "{name}");
                }
            }
        }
    }
}

/// Several sequences at once, in integers, whose prompts are passes of many chunks and whose answers
/// come in between; two threads.
#[test]
fn company_does_not_matter_either() {
    for fixture in ["qwen3_moe", "deepseek_v3", "qwen3_next"] {
        let with = |options: &Options| company(fixture, options);
        let four = |options| Options {
            expert_bits: ExpertBits::Int4,
            group: 32,
            threads: Some(2),
            ..options
        };
        let wanted = with(&four(common::defaults()));
        for (prefill, decode) in [
            (PrefillStrategy::HcsPrefill, DecodeStrategy::HcsHybrid),
            (PrefillStrategy::LayerGrouped(2), DecodeStrategy::PureCpu),
            (PrefillStrategy::ActiveOnly, DecodeStrategy::Lru),
            (PrefillStrategy::Chunked, DecodeStrategy::Compact),
        ] {
            let options = four(away(prefill, decode));
            for options in [tight(fixture, &options), options] {
                assert_eq!(with(&options), wanted, "{fixture}, {prefill:?}, {decode:?}");
            }
        }
    }
}

/// Strategies differ in what they copy and who computes, not only in name.
#[test]
fn each_strategy_does_what_it_says() {
    let fixture = "qwen3_moe";
    let golden = Golden::of(fixture);
    let traffic = |prefill, decode, memory: fn(&str, &Options) -> Options| {
        let options = memory(fixture, &away(prefill, decode));
        let Loaded { mut engine, handle, submissions, .. } =
            Engine::load(&common::dir(fixture), &options, device::cpu(&options)).unwrap();
        let serving = std::thread::spawn(move || {
            engine.serve(&submissions);
            engine.runner.traffic()
        });
        let _: Answer = answer(&handle, greedy(&golden.tokens[..50], 24));
        drop(handle);
        serving.join().unwrap()
    };
    use {DecodeStrategy as D, PrefillStrategy as P};
    let all = |_: &str, options: &Options| options.clone();
    // Everything fits: each expert comes once at most, and nobody but the CPU's strategies uses it.
    let roomy = traffic(P::ActiveOnly, D::Lru, all);
    assert!(roomy.brought <= roomy.experts && roomy.on_the_cpu == 0, "{roomy:?}");
    let tight_lru = traffic(P::ActiveOnly, D::Lru, tight);
    assert!(tight_lru.brought > 2 * roomy.brought && tight_lru.on_the_cpu == 0, "{tight_lru:?}");
    let cpu = traffic(P::LayerGrouped(2), D::PureCpu, tight);
    assert_eq!(
        cpu.brought, cpu.experts,
        "a prompt of three chunks brings each expert once: {cpu:?}"
    );
    assert!(cpu.on_the_cpu > 0);
    let chunked = traffic(P::Chunked, D::PureCpu, tight);
    assert!(chunked.brought > 2 * chunked.experts, "again for each chunk: {chunked:?}");
    let hybrid = traffic(P::HcsPrefill, D::HcsHybrid, tight);
    assert!(hybrid.on_the_cpu > 0 && hybrid.on_the_cpu < cpu.on_the_cpu, "{hybrid:?}");
}
