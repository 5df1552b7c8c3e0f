//! Every operation's cases on an NVIDIA GPU. Without one, says so and passes.
//! `KRASIS_CASE=experts` runs only the cases whose name contains it.

mod common;

use common::{
    ARENA_BYTES, copies_are_made_in_turn, cut_a_delta_net, judge_all,
    largest_are_those_of_the_reference, repeats_give_what_plain_launches_do,
};
use half::bf16;
use krasis_core::Bytes;
use krasis_cuda::gpu::Checking;
use krasis_cuda::{Activation, Gpu, driver};

/// A GPU with memory for any case.
fn opened<A: Activation>(checking: Checking) -> Option<Gpu> {
    let cache = std::env::temp_dir().join("krasis-test-kernels");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let opened = driver::first()
        .and_then(|found| Gpu::open::<A>(found, Some(&cache), threads, checking))
        .and_then(|mut gpu| gpu.allocate(Bytes(ARENA_BYTES)).map(|()| gpu));
    opened.inspect_err(|error| println!("skipped: no GPU ({error})")).ok()
}

fn agree<A: Activation>() {
    if let Some(gpu) = opened::<A>(Checking::Launches) {
        judge_all::<A, _>(gpu, &std::env::var("KRASIS_CASE").unwrap_or_default());
    }
}

/// Captured graphs, whether launches are waited for or not.
#[test]
fn what_is_repeated_is_what_was_launched() {
    for checking in [Checking::Launches, Checking::Reads] {
        if let Some(gpu) = opened::<bf16>(checking) {
            let gpu = largest_are_those_of_the_reference::<bf16, _>(gpu);
            repeats_give_what_plain_launches_do::<bf16, _>(gpu);
        }
    }
}

#[test]
fn kernels_agree_with_the_reference_in_bf16() {
    agree::<bf16>();
}

#[test]
fn kernels_agree_with_the_reference_in_f32() {
    agree::<f32>();
}

#[test]
fn delta_nets_do_not_mind_company_or_cuts() {
    if let Some(gpu) = opened::<bf16>(Checking::Launches) {
        cut_a_delta_net(gpu);
    }
}

#[test]
fn prompts_do_not_mind_company() {
    if let Some(gpu) = opened::<bf16>(Checking::Launches) {
        common::prompts_do_not_mind_company(gpu);
    }
}

#[test]
fn copies_come_between_kernels() {
    if let Some(gpu) = opened::<bf16>(Checking::Reads) {
        copies_are_made_in_turn::<bf16, _>(gpu);
    }
}
