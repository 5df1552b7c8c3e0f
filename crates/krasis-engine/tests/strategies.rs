//! Experts in host memory: the same tokens as with all of them on the device, whatever is brought
//! when, and whoever computes what. The CPU plays the device, with a memory of its own, so that
//! log-probabilities can be compared bit for bit.

mod common;

use common::{
    Answer, DECODE, FIXTURES, Golden, PREFILL, answer, away, company, engine, greedy, logprobs,
    tight,
};
use krasis_core::Bytes;
use krasis_engine::{
    DecodeStrategy, Engine, ExpertBits, HeatMap, Loaded, Options, PrefillStrategy, device,
};
use std::sync::Arc;

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

/// Memory between the least and plenty, where some layers lie whole and others do not, and prompts that
/// displace what answers had: what the device was told must be what is there.
#[test]
fn one_conversation_after_the_other_in_any_memory() {
    for fixture in ["qwen3_moe", "deepseek_v3", "qwen3_next"] {
        let golden = Golden::of(fixture);
        let requests: Vec<_> =
            [0, 40, 9, 71].iter().map(|&at| greedy(&golden.tokens[at..][..20], 16)).collect();
        let with = |options: &Options| -> Vec<Vec<u32>> {
            let handle = engine(fixture, options);
            requests.iter().map(|request| answer(&handle, request.clone()).tokens).collect()
        };
        let wanted = with(&common::defaults());
        for (prefill, decode) in [
            (PrefillStrategy::ActiveOnly, DecodeStrategy::HcsHybrid),
            (PrefillStrategy::Chunked, DecodeStrategy::HcsHybrid),
            (PrefillStrategy::HcsPrefill, DecodeStrategy::Compact),
            (PrefillStrategy::HcsPrefill, DecodeStrategy::Lru),
        ] {
            let least = tight(fixture, &away(prefill, decode)).device_bytes.unwrap().0;
            for more in [0, 30, 60, 120, 200] {
                let device_bytes = Some(Bytes(least + (more << 10)));
                let options = Options { device_bytes, ..away(prefill, decode) };
                assert_eq!(with(&options), wanted, "{fixture}, {prefill:?}, {decode:?}, {more}");
            }
        }
    }
}

/// From one answer to the next, who computes may change, and so may the length of a prompt.
#[test]
fn strategies_change_between_requests() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        let request = |i: usize| greedy(&golden.tokens[i % 60..][..10 + i % 14], 12);
        let plain = engine(fixture, &common::defaults());
        let wanted: Vec<_> = (0..20).map(|i| answer(&plain, request(i)).tokens).collect();
        for prefill in [PrefillStrategy::HcsPrefill, PrefillStrategy::ActiveOnly] {
            let options = away(prefill, DecodeStrategy::HcsHybrid);
            let least = tight(fixture, &options).device_bytes.unwrap().0;
            let device_bytes = Some(Bytes(least + (80 << 10)));
            let handle = engine(fixture, &Options { device_bytes, ..options });
            let experts = handle.census.experts.get().unwrap();
            let layers = experts.asked().unwrap().count();
            for (i, wanted) in wanted.iter().enumerate() {
                let before = experts.policy();
                let wish = (DECODE[(3 * i + i / 4) % 4], 3 + i as u32 % 10);
                experts.wish(wish.0, wish.1);
                let got = answer(&handle, request(i)).tokens;
                assert_eq!(got, *wanted, "{fixture}, {prefill:?}, {i}: {wish:?}");
                // Each layer needs a slot of its own.
                let fits = wish.0 != DecodeStrategy::Compact || experts.slots as usize >= layers;
                let expected = if fits { Some(wish) } else { before };
                assert_eq!(experts.policy(), expected, "{fixture}");
            }
            // There is no room for what the CPU computes of more rows.
            experts.wish(DecodeStrategy::PureCpu, 13);
            answer(&handle, request(0));
            assert_ne!(experts.policy(), Some((DecodeStrategy::PureCpu, 13)));
        }
    }
}

/// What was hot in another run is there at the start; a map of another model is of no use.
#[test]
fn heat_of_other_runs_is_remembered() {
    let fixture = "qwen3_moe";
    let golden = Golden::of(fixture);
    let options = away(PrefillStrategy::HcsPrefill, DecodeStrategy::HcsHybrid);
    let options = Options { prompt_rows: Some(400), prefill_chunk: 400, ..options };
    let least = tight(fixture, &options).device_bytes.unwrap().0;
    let options = Options { device_bytes: Some(Bytes(least + (100 << 10))), ..options };
    let run = |heat_map: Option<HeatMap>| {
        let handle =
            engine(fixture, &Options { heat_map: heat_map.map(Arc::new), ..options.clone() });
        let tokens = answer(&handle, greedy(&golden.tokens[..60], 1)).tokens;
        let experts = handle.census.experts.get().unwrap().clone();
        let asked: Vec<_> = experts.asked().unwrap().map(|(_, asked)| asked).collect();
        (tokens, krasis_engine::Census::read(&experts.on_the_device), HeatMap { layers: asked })
    };
    let (tokens, cold, map) = run(None);
    assert!(cold > 0, "some are there by chance");
    // A short prompt is computed where experts lie, so what lies there is what was remembered.
    let (same, warm, _) = run(Some(map.clone()));
    assert_eq!(same, tokens);
    assert!(warm > cold, "{warm} pairs after {cold}");
    let strange = HeatMap { layers: map.layers[1..].to_vec() };
    assert_eq!(run(Some(strange)), (tokens, cold, map));
}
