//! Experts in host memory: the same tokens as with all of them on the device, whatever is brought
//! when, and whoever computes what. The CPU plays the device, with a memory of its own, so that
//! log-probabilities can be compared bit for bit.

mod common;

use common::{FIXTURES, Golden, answer, engine, greedy, logprobs, submit};
use krasis_core::Bytes;
use krasis_engine::{
    DecodeStrategy, ExpertBits, Options, PrefillStrategy, Residency, StartError, start,
};

const PREFILL: [PrefillStrategy; 6] = [
    PrefillStrategy::LayerGrouped(1),
    PrefillStrategy::LayerGrouped(2),
    PrefillStrategy::LayerGrouped(9),
    PrefillStrategy::Chunked,
    PrefillStrategy::ActiveOnly,
    PrefillStrategy::HcsPrefill,
];

const DECODE: [DecodeStrategy; 4] = [
    DecodeStrategy::PureCpu,
    DecodeStrategy::HcsHybrid,
    DecodeStrategy::Compact,
    DecodeStrategy::Lru,
];

/// Prompts of more than 20 rows; passes of 50 tokens in chunks of 16.
fn away(prefill: PrefillStrategy, decode: DecodeStrategy) -> Options {
    Options {
        residency: Residency::Host { prefill, decode },
        prompt_rows: 20,
        prefill_chunk: 16,
        pass_tokens: 50,
        context_max: Some(320),
        ..common::defaults()
    }
}

/// The least memory of the device with which these options work, or a little more.
fn tight(fixture: &str, options: &Options) -> Options {
    let with = |bytes| Options { device_bytes: Some(Bytes(bytes)), ..options.clone() };
    let mut bytes = 1;
    while let Err(error) = start(&common::dir(fixture), &with(bytes)) {
        let StartError::Shortfall { wanted, available, .. } = error else { panic!("{error}") };
        bytes += wanted.0 - available.0 + 1024;
    }
    with(bytes)
}

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
                    let name = format!("{fixture}, {prefill:?}, {decode:?}, {:?}", options.device_bytes);
                    assert_eq!(logprobs(&handle, &golden.tokens), wanted, "{name}");
                    let got = answer(&handle, greedy(&golden.greedy_prompt, 24)).tokens;
                    assert_eq!(got, golden.greedy, "{name}");
                }
            }
        }
    }
}
