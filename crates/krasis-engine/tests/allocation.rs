//! A decode step allocates nothing: memory is planned before the first token. A program without the test
//! harness, because it counts what all threads do, and the harness has one that says what takes long.

mod common;

use krasis_engine::device::cpu;
use krasis_engine::{CacheUse, Engine, Event, ExpertBits, Options, Request, Sampling};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Steps until every buffer has its size, and steps that are counted: they cross pages.
const WARM: usize = 40;
const COUNTED: usize = 100;

fn main() {
    let exact = Options { threads: Some(3), cache: CacheUse::Off, ..Options::default() };
    let quantised = Options { expert_bits: ExpertBits::Int4, group: 32, ..exact.clone() };
    for fixture in common::FIXTURES {
        for (name, options) in [("16 bits", &exact), ("4 bits", &quantised)] {
            let counted = steps(fixture, options);
            assert_eq!(counted, 0, "{fixture} in {name}: allocations of {COUNTED} decode steps");
        }
    }
}

/// Allocations of the steps that are counted, of two sequences side by side.
fn steps(fixture: &str, options: &Options) -> usize {
    let loaded = Engine::load(&common::dir(fixture), options, cpu(options)).unwrap();
    let (mut engine, handle) = (loaded.engine, loaded.handle);
    let tickets: Vec<_> = [5, 9]
        .map(|tokens| Request {
            prompt: (1..=tokens).collect(),
            sampling: Sampling::GREEDY,
            tokens_max: (WARM + COUNTED + 10) as u32,
            stop_tokens: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            grammar: None,
            priority: 0,
        })
        .into_iter()
        .map(|request| handle.submit(request, Box::new(|_: Event| {})).unwrap())
        .collect();
    engine.listen(&loaded.submissions);
    engine.listen(&loaded.submissions);
    (0..WARM).for_each(|_| engine.step());
    let region = Region::new(ALLOCATOR);
    (0..COUNTED).for_each(|_| engine.step());
    let change = region.change();
    drop(tickets);
    change.allocations + change.reallocations
}
