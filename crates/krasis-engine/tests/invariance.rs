//! The same tokens whatever the chunk size, whatever else runs, and however often memory ran out.
//! Log-probabilities are compared bit for bit: a row's result may not depend on its company.

mod common;

use common::{Answer, FIXTURES, Golden, answer, engine, greedy, logprobs, submit};
use krasis_core::KvDtype;
use krasis_engine::{
    DeviceKind, Event, ExpertBits, Finish, Options, Quant, Request, Sampling, SubmitError,
};
use std::sync::mpsc::channel;

fn chunks(of: u32) -> Options {
    Options { prefill_chunk: of, ..common::defaults() }
}

#[test]
fn prefill_chunks_of_any_size_agree() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        let whole = logprobs(&engine(fixture, &chunks(300)), &golden.tokens);
        for chunk in [1, 7, 64] {
            let got = logprobs(&engine(fixture, &chunks(chunk)), &golden.tokens);
            assert_eq!(got, whole, "{fixture}, prefill in chunks of {chunk}");
        }
    }
}

fn eight_bits() -> Options {
    Options {
        expert_bits: ExpertBits::Int8,
        attention: Quant::Int8,
        shared_expert: Quant::Int8,
        dense_mlp: Quant::Int8,
        lm_head: Quant::Int8,
        group: 32,
        ..common::defaults()
    }
}

fn four_bits() -> Options {
    Options { expert_bits: ExpertBits::Int4, group: 32, ..common::defaults() }
}

#[test]
fn chunks_of_any_size_agree_in_integers_too() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        for options in [eight_bits(), four_bits()] {
            let run = |prefill_chunk| {
                let options = Options { prefill_chunk, ..options.clone() };
                logprobs(&engine(fixture, &options), &golden.tokens)
            };
            let whole = run(300);
            for chunk in [1, 7, 64] {
                assert_eq!(run(chunk), whole, "{fixture}, prefill in chunks of {chunk}");
            }
        }
    }
}

/// Threads share the work, never a sum.
#[test]
fn threads_of_any_number_agree() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        for options in [common::defaults(), eight_bits(), four_bits()] {
            let run = |threads| {
                let options = Options { threads: Some(threads), ..options.clone() };
                logprobs(&engine(fixture, &options), &golden.tokens[..70])
            };
            assert_eq!(run(3), run(1), "{fixture}");
        }
    }
}

#[test]
fn neighbours_do_not_matter() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        let handle = engine(fixture, &chunks(20));
        let sampled = |seed| Request {
            sampling: Sampling { temperature: 0.8, seed: Some(seed), ..Sampling::GREEDY },
            ..greedy(&golden.tokens[..(40 + 13 * seed) as usize], 30)
        };
        let alone: Vec<Answer> = (0..6).map(|seed| answer(&handle, sampled(seed))).collect();
        let together: Vec<_> = (0..6).map(|seed| submit(&handle, sampled(seed))).collect();
        for (pending, alone) in together.into_iter().zip(alone) {
            assert_eq!(pending.wait().tokens, alone.tokens, "{fixture}");
        }
        let text = answer(&handle, greedy(&golden.greedy_prompt, 24)).tokens;
        assert_eq!(text, golden.greedy, "{fixture}, after others");
    }
}

/// Steps have sequences of many rows last, in whatever order they came.
#[test]
fn long_prompts_among_short_ones_change_nothing() {
    for fixture in ["qwen3_moe", "deepseek_v3", "qwen3_next"] {
        let golden = Golden::of(fixture);
        let options = Options { context_max: Some(400), ..chunks(1024) };
        let request = |(i, length): (usize, usize)| {
            let tokens = golden.tokens.iter().cycle().skip(7 * i);
            greedy(&tokens.take(length).copied().collect::<Vec<_>>(), 6)
        };
        let lengths = || [20, 300, 9, 280, 31, 270].into_iter().enumerate();
        let run = |each: &dyn Fn(&krasis_engine::Handle) -> Vec<Answer>| {
            each(&engine(fixture, &options)).into_iter().map(|answer| answer.tokens).collect()
        };
        let alone: Vec<_> =
            run(&|handle| lengths().map(|of| answer(handle, request(of))).collect());
        let together: Vec<_> = run(&|handle| {
            let pending: Vec<_> = lengths().map(|of| submit(handle, request(of))).collect();
            pending.into_iter().map(|pending| pending.wait()).collect()
        });
        assert_eq!(together, alone, "{fixture}");
    }
}

/// Eight sequences of up to 160 tokens in 31 pages of 16: they push each other out again and again.
#[test]
fn running_out_of_pages_changes_nothing() {
    for fixture in ["qwen3_moe", "deepseek_v3", "qwen3_next"] {
        let golden = Golden::of(fixture);
        let request = |i: usize| greedy(&golden.tokens[i * 10..i * 10 + 20], 140);
        let alone: Vec<Answer> = {
            let handle = engine(fixture, &common::defaults());
            (0..8).map(|i| answer(&handle, request(i))).collect()
        };
        let (pages, options) = (31, Options { context_max: Some(160), ..chunks(32) });
        let handle = common::engine_with_pages(fixture, &options, pages);
        let pending: Vec<_> = (0..8).map(|i| submit(&handle, request(i))).collect();
        for (pending, alone) in pending.into_iter().zip(alone) {
            let got = pending.wait();
            assert_eq!(got.tokens, alone.tokens, "{fixture}");
            assert_eq!(got.usage.completion_tokens, 140);
        }
    }
}

#[test]
fn a_known_prefix_is_not_computed_again() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        let handle = engine(fixture, &common::defaults());
        let first = answer(&handle, greedy(&golden.tokens[..150], 20));
        assert_eq!(first.usage.cached_tokens, 0);
        let mut longer = golden.tokens[..150].to_vec();
        longer.extend(&first.tokens);
        let second = answer(&handle, greedy(&longer, 20));
        // Of 170 tokens the last one's past is not stored; states of delta nets are at multiples of 64.
        let wanted = if fixture == "qwen3_next" { 128 } else { 160 };
        assert_eq!(second.usage.cached_tokens, wanted, "{fixture}");
        let fresh = answer(&engine(fixture, &common::defaults()), greedy(&longer, 20));
        assert_eq!(second.tokens, fresh.tokens, "{fixture}");
    }
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_one_another() {
    let golden = Golden::of("qwen3_moe");
    let handle = engine("qwen3_moe", &common::defaults());
    let text = |seed| {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::GREEDY };
        answer(&handle, Request { sampling, ..greedy(&golden.greedy_prompt, 24) }).tokens
    };
    assert_eq!(text(Some(7)), text(Some(7)));
    assert_ne!(text(Some(7)), text(Some(8)));
    assert_ne!(text(None), text(None), "without a seed, texts differ");
}

#[test]
fn stop_tokens_end_an_answer_and_are_part_of_it() {
    let golden = Golden::of("qwen3_moe");
    let handle = engine("qwen3_moe", &common::defaults());
    let stop = golden.greedy[5];
    let end = golden.greedy.iter().position(|token| *token == stop).unwrap();
    let request = Request { stop_tokens: vec![stop], ..greedy(&golden.greedy_prompt, 24) };
    let got = answer(&handle, request);
    assert_eq!((got.tokens, got.finish), (golden.greedy[..=end].to_vec(), Finish::Stop));
}

#[test]
fn a_dropped_ticket_ends_the_request() {
    let golden = Golden::of("qwen3_moe");
    let handle = engine("qwen3_moe", &common::defaults());
    let (send, events) = channel();
    let sink = Box::new(move |event| drop(send.send(event)));
    let ticket = handle.submit(greedy(&golden.greedy_prompt, 900), sink).unwrap();
    assert!(matches!(events.recv().unwrap(), Event::Token { .. }));
    drop(ticket);
    let finish = events.iter().find_map(|event| match event {
        Event::Done { finish, usage } => Some((finish, usage.completion_tokens)),
        _ => None,
    });
    let (finish, tokens) = finish.expect("a last word");
    assert_eq!(finish, Finish::Cancelled);
    assert!(tokens < 900);
    assert!(events.recv().is_err(), "the sink is gone");
}

#[test]
fn a_full_queue_says_so() {
    let golden = Golden::of("qwen3_moe");
    let options = Options { sequences_max: 1, queue_max: 2, ..common::defaults() };
    let handle = engine("qwen3_moe", &options);
    let mut tickets = vec![];
    let refused = (0..50).find_map(|_| {
        match handle.submit(greedy(&golden.greedy_prompt, 900), Box::new(drop)) {
            Ok(ticket) => {
                tickets.push(ticket);
                None
            }
            Err(error) => Some(error),
        }
    });
    assert_eq!(refused, Some(SubmitError::Busy { queue: 2 }));
    assert!(tickets.len() >= 2);
}

/// Rounding flips routes of a random model, so this only guards against nonsense (a wrong scale or
/// nibble moves the mean by whole units); the demo model's perplexity judges quality.
#[test]
fn every_format_runs_and_stays_near() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        // The reference takes its time, so not all tokens.
        let run = |options: Options| logprobs(&engine(fixture, &options), &golden.tokens[..120]);
        let mean = |got: Vec<f32>| common::differences(&got, &golden.logprobs[..119]).0;
        let (eight, four) = (eight_bits(), four_bits());
        let beside = Options { expert_bits: ExpertBits::AsStored, ..eight_bits() };
        let bf16 = Options { kv: Some(KvDtype::Bf16), ..common::defaults() };
        let f16 = Options { kv: Some(KvDtype::F16), ..common::defaults() };
        let fp8 = Options { kv: Some(KvDtype::F8E4M3), ..common::defaults() };
        // For weights in lines the CPU rounds activations to INT8, the reference does not.
        for (name, options, limit, between) in [
            ("INT8 beside the experts", beside, 0.3, 0.25),
            ("INT8", eight, 0.3, 0.25),
            ("INT4", four, 0.8, 0.15),
            ("BF16 KV", bf16, 0.1, 0.01),
            ("F16 KV", f16, 0.1, 0.01),
            ("FP8 KV", fp8, 0.5, 0.01),
        ] {
            let cpu = run(options.clone());
            let difference = mean(cpu.clone());
            println!("{fixture} {name}: {difference:.4}");
            assert!(difference < limit, "{fixture} {name}: {difference}");
            let reference = run(Options { device: DeviceKind::Reference, ..options });
            let (mean, _) = common::differences(&cpu, &reference);
            println!("{fixture} {name}: {mean:.4} from the reference");
            assert!(mean < between, "{fixture} {name}: CPU and reference differ by {mean}");
        }
    }
}
