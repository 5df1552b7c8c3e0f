//! Every operation's cases on the kernels as C++: index arithmetic, barriers and rounding, without
//! a GPU.

mod common;
mod emulated;

use common::{ARENA_BYTES, cut_a_delta_net, judge_all};
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

#[test]
fn delta_nets_do_not_mind_company_or_cuts() {
    if possible() {
        let kernels = Kernels::new::<bf16>(LARGE);
        cut_a_delta_net(Emulated::new(Bytes(ARENA_BYTES), &kernels));
    }
}

/// Attention and chunks of delta nets have other blocks there.
#[test]
fn kernels_agree_with_the_reference_on_a_gpu_with_little_shared_memory() {
    for filter in ["attend", "delta_rule"] {
        agree::<bf16>(Limits { processors: 24, shared_max: 99 << 10 }, filter);
    }
}
