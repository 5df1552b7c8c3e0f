//! A decode step on a GPU's path allocates nothing, once its launches are recorded. A program without the
//! test harness, because it counts what all threads do, and the harness has one that says what takes long.

mod emulated;
#[path = "../../krasis-engine/tests/common/mod.rs"]
mod fixtures;
#[path = "emulated/home.rs"]
mod home;

use emulated::{Kernels, LARGE, possible};
use fixtures::{defaults, dir, greedy};
use half::bf16;
use home::Here;
use krasis_engine::{Engine, Event, Loaded};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Steps until all is recorded and every buffer has its size, and steps that are counted: they cross
/// pages.
const WARM: usize = 40;
const COUNTED: usize = 40;

fn main() {
    if !possible() {
        return;
    }
    let home = Here::<bf16>::new(Kernels::new::<bf16>(LARGE));
    let loaded = Engine::load(&dir("qwen3_moe"), &defaults(), home).unwrap();
    let Loaded { mut engine, handle, submissions, .. } = loaded;
    let tickets = [5, 9].map(|tokens| {
        let prompt: Vec<u32> = (1..=tokens).collect();
        let request = greedy(&prompt, (WARM + COUNTED + 10) as u32);
        handle.submit(request, Box::new(|_: Event| {})).unwrap()
    });
    engine.listen(&submissions);
    engine.listen(&submissions);
    (0..WARM).for_each(|_| engine.step());
    let region = Region::new(ALLOCATOR);
    (0..COUNTED).for_each(|_| engine.step());
    let change = region.change();
    assert_eq!(change.allocations + change.reallocations, 0, "of {COUNTED} decode steps");
    drop(tickets);
}
