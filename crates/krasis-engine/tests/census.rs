//! What the engine counts while it works: tokens by what they were for, and who they were routed to.

mod common;

use common::{FIXTURES, Golden, answer, dir, engine, greedy};
use krasis_core::Bytes;
use krasis_engine::{
    Census, DecodeStrategy, DeviceKind, ExpertCensus, Handle, Options, PrefillStrategy, Residency,
    start,
};

const PROMPT: usize = 50;
const ANSWER: u32 = 24;

/// Has a model answer once, and hands out its door.
fn answered(fixture: &str, options: &Options) -> Handle {
    let handle = engine(fixture, options);
    let _ = answer(&handle, greedy(&Golden::of(fixture).tokens[..PROMPT], ANSWER));
    handle
}

fn experts(handle: &Handle) -> &ExpertCensus {
    handle.census.experts.get().expect("there is a model")
}

fn asked(handle: &Handle) -> Vec<(usize, Vec<u64>)> {
    experts(handle).asked().expect("routes lie in host memory").collect()
}

#[test]
fn every_token_is_counted_for_what_it_was() {
    let handle = answered("qwen3_moe", &common::defaults());
    let Census { prompts, decodes, .. } = &*handle.census;
    let counted = [&prompts.tokens, &decodes.tokens].map(Census::read);
    // The last token of an answer is never read.
    assert_eq!(counted, [PROMPT as u64, u64::from(ANSWER) - 1]);
    assert!(Census::read(&prompts.nanoseconds) > 0 && Census::read(&decodes.nanoseconds) > 0);
}

#[test]
fn who_is_asked_is_counted_wherever_experts_lie() {
    use {DecodeStrategy as D, PrefillStrategy as P};
    for fixture in FIXTURES {
        let plain = answered(fixture, &common::defaults());
        assert_eq!(experts(&plain).strategies(), None);
        let wanted = asked(&plain);
        let config = std::fs::read_to_string(dir(fixture).join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let text = config.get("text_config").unwrap_or(&config);
        let top_k = text["num_experts_per_tok"].as_u64().unwrap();
        let tokens = PROMPT as u64 + u64::from(ANSWER) - 1;
        for (layer, counts) in &wanted {
            assert_eq!(counts.iter().sum::<u64>(), tokens * top_k, "{fixture}, layer {layer}");
        }
        let all = tokens * top_k * wanted.len() as u64;
        assert!(all > 0, "{fixture}");
        for (prefill, decode) in [
            (P::HcsPrefill, D::HcsHybrid),
            (P::ActiveOnly, D::Lru),
            (P::LayerGrouped(2), D::PureCpu),
        ] {
            let away = answered(
                fixture,
                &Options {
                    residency: Residency::Host { prefill, decode },
                    prompt_rows: Some(12),
                    prefill_chunk: 16,
                    pass_tokens: PROMPT as u32,
                    ..common::defaults()
                },
            );
            let name = format!("{fixture}, {prefill:?}, {decode:?}");
            assert_eq!(asked(&away), wanted, "{name}");
            let experts = experts(&away);
            assert_eq!(experts.strategies(), Some((prefill, decode)), "{name}");
            assert!(experts.slots > 0, "{name}");
            let [here, cpu] = [&experts.on_the_device, &experts.on_the_cpu].map(Census::read);
            assert_eq!(here + cpu, all, "{name}");
            assert_eq!(cpu > 0, decode == D::PureCpu, "{name}: everything fits");
        }
    }
}

#[test]
fn the_reference_is_looked_at_as_well() {
    let options = Options { device: DeviceKind::Reference, ..common::defaults() };
    let handle = answered("deepseek_v3", &options);
    assert!(asked(&handle).iter().all(|(layer, _)| *layer > 0), "its first layer is dense");
}

/// What experts take in host memory is one of the regions.
#[test]
fn regions_name_what_lies_in_host_memory() {
    let bytes = |residency| -> Option<Bytes> {
        let options = Options { residency, ..common::defaults() };
        let regions = start(&dir("qwen3_moe"), &options).unwrap().regions;
        regions.into_iter().find(|(name, _)| name == "experts in host memory").map(|(_, b)| b)
    };
    let (prefill, decode) = (PrefillStrategy::ActiveOnly, DecodeStrategy::Lru);
    assert_eq!(bytes(Residency::Device), None);
    assert!(bytes(Residency::Host { prefill, decode }).is_some_and(|bytes| bytes.0 > 0));
}
