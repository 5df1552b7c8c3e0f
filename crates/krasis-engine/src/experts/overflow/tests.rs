//! Evictions at random, of everything and of nothing: the tokens are the same.

use crate::device::cpu;
use crate::experts::Experts;
use crate::{CacheUse, Engine, Event, Loaded, Options, Request, Sampling};
use krasis_core::Bytes;
use krasis_core::random::SplitMix64;
use std::path::Path;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny/qwen3_moe");

/// Tokens of a model whose slots lose what `lost` says after each step: it is told the step and the slot.
fn tokens(model: &Path, options: &Options, mut lost: impl FnMut(u32, u32) -> bool) -> Vec<u32> {
    let Loaded { mut engine, handle, submissions, .. } =
        Engine::load(model, options, cpu(options)).unwrap();
    let (send, events) = std::sync::mpsc::channel();
    let request = Request {
        prompt: (0..50).map(|i| i * 7 % 200).collect(),
        sampling: Sampling::GREEDY,
        tokens_max: 24,
        stop_tokens: vec![],
        logprobs: None,
        prompt_logprobs: None,
        grammar: None,
        priority: 0,
    };
    let _ticket = handle.submit(request, Box::new(move |event| drop(send.send(event)))).unwrap();
    drop(handle);
    engine.listen(&submissions);
    let mut tokens = Vec::new();
    for step in 0.. {
        engine.step();
        if let Experts::Overflow(overflow) = &mut engine.runner.ranks[0].experts {
            overflow.evict(|slot| lost(step, slot));
        }
        for event in events.try_iter() {
            match event {
                Event::Token { id, .. } => tokens.push(id),
                Event::Done { .. } => return tokens,
                other => panic!("{other:?}"),
            }
        }
    }
    unreachable!("steps do not end")
}

#[test]
fn whatever_is_evicted_the_tokens_are_the_same() {
    let model = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(FIXTURE).join(name), model.path().join(name)).unwrap();
    }
    let options = Options {
        threads: Some(1),
        prefill_chunk: 16,
        pass_tokens: 40,
        context_max: Some(128),
        kv_pages: Some(9),
        ..Options::default()
    };
    let in_memory = Options { cache: CacheUse::Off, ..options.clone() };
    let wanted = tokens(model.path(), &in_memory, |_, _| unreachable!("all is in memory"));
    let plan = Engine::load(model.path(), &in_memory, cpu(&in_memory)).unwrap();
    let all: u64 = plan.regions.iter().map(|(_, bytes)| bytes.0).sum();
    let experts = plan.regions.iter().find(|(name, _)| *name == "experts").unwrap().1;
    for part in [1, 2, 3] {
        let ram = Some(Bytes(all - 1 - experts.0 / 4 * (part - 1)));
        let options = Options { ram, ..options.clone() };
        let check = |lost: &mut dyn FnMut(u32, u32) -> bool| {
            assert_eq!(tokens(model.path(), &options, lost), wanted, "{part}");
        };
        check(&mut |_, _| false);
        check(&mut |_, _| true);
        for seed in 0..5 {
            let mut random = SplitMix64(seed);
            check(&mut |_, _| random.bits().is_multiple_of(3));
        }
    }
}
