//! Whoever writes goes on while prompts are read, and who goes first. Pauses are counted in layers, which
//! no clock changes.

mod common;

use common::{Golden, answer, defaults, dir, engine, greedy};
use krasis_engine::{
    Census, DecodeStrategy, Engine, Event, Finish, Handle, Loaded, Options, PrefillStrategy,
    Request, Residency, Running, Ticket, device, start,
};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

/// Models, the tokens of a prompt, and those of an answer that is longer than reading it takes.
const MODELS: [(&str, usize, u32); 3] =
    [("kimi_k2", 3000, 900), ("qwen3_moe", 700, 300), ("qwen3_next", 700, 300)];
const CHUNK: usize = 64;
const PASS: usize = 400;

/// Residency, and in how many groups a pass takes its layers.
const STRATEGIES: [(Residency, usize); 6] = [
    (Residency::Device, 1),
    (away(PrefillStrategy::Chunked, DecodeStrategy::PureCpu), 1),
    (away(PrefillStrategy::LayerGrouped(2), DecodeStrategy::PureCpu), 2),
    (away(PrefillStrategy::HcsPrefill, DecodeStrategy::HcsHybrid), usize::MAX),
    (away(PrefillStrategy::LayerGrouped(9), DecodeStrategy::Lru), usize::MAX),
    (away(PrefillStrategy::LayerGrouped(2), DecodeStrategy::Compact), 2),
];

const fn away(prefill: PrefillStrategy, decode: DecodeStrategy) -> Residency {
    Residency::Host { prefill, decode }
}

fn options(residency: Residency) -> Options {
    Options {
        residency,
        prompt_rows: Some(12),
        prefill_chunk: CHUNK as u32,
        pass_tokens: PASS as u32,
        ..defaults()
    }
}

/// A prompt of any length, no page of which comes twice.
fn prompt(golden: &Golden, tokens: usize) -> Vec<u32> {
    let token = |i: usize| golden.tokens[(i * 7 + i / 50) % golden.tokens.len()];
    (0..tokens).map(token).collect()
}

/// What the engine said, in order: of which request, and what.
type Said = (char, Event);

fn tokens_of(name: char, said: &[Said]) -> Vec<u32> {
    let token = |(of, event): &Said| match event {
        Event::Token { id, .. } if *of == name => Some(*id),
        _ => None,
    };
    said.iter().filter_map(token).collect()
}

/// What comes of an answer `a` and a long prompt `b`.
struct Meeting {
    said: Vec<Said>,
    /// Layers with experts.
    layers: usize,
    /// Those that steps went through between two tokens of `a`, at most.
    pause: usize,
    handle: Handle,
}

/// `b` comes while `a` is written, and is dropped after so many more tokens of `a`.
fn meet(model: &str, options: &Options, a: Request, b: Request, dropped: usize) -> Meeting {
    let (trace, spans) = channel();
    let (said, events) = channel();
    let options = Options { trace: Some(trace), ..options.clone() };
    let Running { handle, .. } = start(&dir(model), &options).unwrap();
    let layers = handle.census.experts.get().unwrap().asked().unwrap().count();
    let pauses = Arc::new(Mutex::new(Vec::new()));
    let second: Arc<Mutex<Option<Ticket>>> = Arc::default();
    // Called on the thread that makes the steps.
    let (heard, all, of_b) = (said.clone(), pauses.clone(), second.clone());
    let mut together = 0;
    let sink = move |event| {
        let mut all = all.lock().unwrap();
        all.push(spans.try_iter().filter(|span| span.name == "route").count());
        let mut b = of_b.lock().unwrap();
        together += usize::from(b.is_some());
        if together == dropped {
            b.take();
        }
        drop(heard.send(('a', event)));
    };
    let _first = handle.submit(a, Box::new(sink)).unwrap();
    let mut all = vec![events.recv().unwrap()];
    let sink = move |event| drop(said.send(('b', event)));
    *second.lock().unwrap() = Some(handle.submit(b, Box::new(sink)).unwrap());
    let mut left = 2;
    while left > 0 {
        all.push(events.recv().expect("the engine is alive"));
        left -= u32::from(matches!(all.last(), Some((_, Event::Done { .. }))));
    }
    // Before the first token it was its own prompt that was read.
    let pause = pauses.lock().unwrap()[1..].iter().copied().max().unwrap();
    Meeting { said: all, layers, pause, handle }
}

#[test]
fn no_pause_is_longer_than_a_group_of_layers_and_a_step() {
    for (model, length, answer_tokens) in MODELS {
        let golden = Golden::of(model);
        let alone = engine(model, &defaults());
        let (a, b) =
            (greedy(&golden.greedy_prompt, answer_tokens), greedy(&prompt(&golden, length), 5));
        let wanted = [&a, &b].map(|request| answer(&alone, request.clone()).tokens);
        for (residency, groups) in STRATEGIES {
            let name = format!("{model}, {residency:?}");
            let met = meet(model, &options(residency), a.clone(), b.clone(), usize::MAX);
            assert_eq!(['a', 'b'].map(|of| tokens_of(of, &met.said)), wanted, "{name}");
            // One more, because chunks end where states may be kept.
            let (steps, chunks) = match groups {
                1 => (length / (CHUNK + 8), 1),
                _ => (length / PASS * groups.min(met.layers), PASS.div_ceil(CHUNK + 8) + 1),
            };
            let group = met.layers.div_ceil(groups) * chunks;
            let most = if groups == 1 { met.layers } else { group + met.layers };
            assert!(met.pause <= most, "{name}: {} of {most} layers", met.pause);
            let read = met.said.iter().position(|(of, _)| *of == 'b').unwrap();
            let meanwhile = tokens_of('a', &met.said[1..read]).len();
            assert!(meanwhile >= steps, "{name}: {meanwhile} tokens in {steps} steps");
        }
    }
}

/// What is known of a prompt that nobody wants any more is right, or not known.
#[test]
fn a_prompt_that_is_given_up_leaves_nothing_wrong() {
    for (model, length, answer_tokens) in MODELS {
        let golden = Golden::of(model);
        let alone = engine(model, &defaults());
        let a = greedy(&golden.greedy_prompt, answer_tokens);
        let b = greedy(&prompt(&golden, length), 40);
        let wanted = [&a, &b].map(|request| answer(&alone, request.clone()).tokens);
        for (residency, _) in STRATEGIES {
            for dropped in [1, 2, 4] {
                let name = format!("{model}, {residency:?}, after {dropped}");
                let met = meet(model, &options(residency), a.clone(), b.clone(), dropped);
                let again = answer(&met.handle, b.clone()).tokens;
                assert_eq!([tokens_of('a', &met.said), again], wanted, "{name}");
                let ends = met.said.iter().filter_map(|(of, event)| match event {
                    Event::Done { finish, .. } if *of == 'b' => Some(*finish),
                    _ => None,
                });
                assert_eq!(ends.collect::<Vec<_>>(), [Finish::Cancelled], "{name}");
            }
        }
    }
}

/// Requests by name, priority, prompt and tokens; those of the first word run before the others come.
fn in_order(options: &Options, requests: &[(char, i64, usize, u32)], first: usize) -> Vec<Said> {
    let model = "qwen3_moe";
    let golden = Golden::of(model);
    let Loaded { mut engine, handle, submissions, .. } =
        Engine::load(&dir(model), options, device::cpu(options)).unwrap();
    let (said, events) = channel();
    let mut tickets = Vec::new();
    for (index, &(name, priority, length, tokens_max)) in requests.iter().enumerate() {
        if index == first {
            engine.listen(&submissions);
            engine.step();
        }
        let prompt = &prompt(&golden, 600)[index * 40..][..length];
        let request = Request { priority, ..greedy(prompt, tokens_max) };
        let said = said.clone();
        let sink = Box::new(move |event| drop(said.send((name, event))));
        tickets.push(handle.submit(request, sink).unwrap());
    }
    drop((handle, said));
    engine.serve(&submissions);
    events.iter().collect()
}

fn ends(said: &[Said]) -> String {
    let ended = said.iter().filter(|(_, event)| matches!(event, Event::Done { .. }));
    ended.map(|(name, _)| *name).collect()
}

#[test]
fn lower_numbers_go_first_and_equals_in_turn() {
    let options = Options { sequences_max: 1, ..defaults() };
    let requests =
        [('a', 9, 5, 8), ('b', 5, 5, 3), ('c', 0, 5, 3), ('d', 5, 5, 3), ('e', -1, 5, 3)];
    // Whoever runs is not stopped.
    assert_eq!(ends(&in_order(&options, &requests, 1)), "aecbd");
    // Rows of a step go to prompts in the same order.
    let options = Options { prefill_chunk: 16, ..defaults() };
    let requests = [('a', 1, 5, 1), ('b', 1, 60, 1), ('c', 0, 60, 1), ('d', 1, 60, 1)];
    assert_eq!(ends(&in_order(&options, &requests, 1)), "acbd");
}

#[test]
fn memory_is_taken_from_the_last_in_order() {
    // Two conversations of 30 and 100 tokens need 18 pages of 16.
    let options = Options { kv_pages: Some(12), context_max: Some(160), ..defaults() };
    for (priorities, order) in [([0, 0], "ab"), ([1, 0], "ba"), ([0, 1], "ab")] {
        let requests = [('a', priorities[0], 30, 100), ('b', priorities[1], 30, 100)];
        let said = in_order(&options, &requests, 1);
        assert_eq!(ends(&said), order, "{priorities:?}");
        let one = Options { sequences_max: 1, ..options.clone() };
        for name in ['a', 'b'] {
            let (got, wanted) = (tokens_of(name, &said), in_order(&one, &requests, 1));
            assert_eq!(got, tokens_of(name, &wanted), "{priorities:?}");
        }
    }
}

#[test]
fn the_queue_is_as_long_as_it_says_wherever_requests_wait() {
    let options = Options { sequences_max: 1, queue_max: 2, ..defaults() };
    let Loaded { mut engine, handle, submissions, .. } =
        Engine::load(&dir("qwen3_moe"), &options, device::cpu(&options)).unwrap();
    let submit = || handle.submit(greedy(&[1, 2, 3], 4), Box::new(drop));
    let mut tickets = vec![submit().unwrap()];
    engine.listen(&submissions);
    engine.step();
    tickets.extend([submit().unwrap(), submit().unwrap()]);
    assert!(submit().is_err());
    // The thread has taken them, but they wait.
    engine.listen(&submissions);
    assert_eq!(Census::read(&handle.census.waiting), 2);
    assert!(submit().is_err());
    tickets.truncate(2);
    engine.step();
    tickets.push(submit().unwrap());
    assert!(submit().is_err());
}
