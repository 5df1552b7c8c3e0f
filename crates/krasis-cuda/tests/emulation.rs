//! Every operation's cases on the kernels as C++: index arithmetic, barriers and rounding, without
//! a GPU.

mod common;
mod emulated;

use common::{
    ARENA_BYTES, judge_all, largest_are_those_of_the_reference, repeats_give_what_plain_launches_do,
};
use emulated::{Emulated, Kernels, LARGE, possible};
use half::bf16;
use krasis_core::Bytes;
use krasis_cuda::{Activation, Limits};

fn agree<A: Activation>(limits: Limits, filter: &str) {
    if possible() {
        let kernels = Kernels::new::<A>(limits);
        judge_all::<A, _>(Emulated::new(Bytes(ARENA_BYTES), &kernels), filter);
    }
}

#[test]
fn kernels_agree_with_the_reference_in_bf16() {
    agree::<bf16>(LARGE, "");
}

#[test]
fn kernels_agree_with_the_reference_in_f32() {
    agree::<f32>(LARGE, "");
}

/// Attention has other blocks there.
#[test]
fn kernels_agree_with_the_reference_on_a_gpu_with_little_shared_memory() {
    agree::<bf16>(Limits { processors: 24, shared_max: 99 << 10 }, "attend");
}

/// Launches are recorded with their arguments: nothing but memory changes from step to step.
#[test]
fn what_is_repeated_is_what_was_launched() {
    if possible() {
        let kernels = Kernels::new::<bf16>(LARGE);
        let machine = Emulated::new(Bytes(ARENA_BYTES), &kernels);
        let machine = largest_are_those_of_the_reference::<bf16, _>(machine);
        repeats_give_what_plain_launches_do::<bf16, _>(machine);
    }
}
