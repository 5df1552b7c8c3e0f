//! Every operation's cases on the kernels as C++: index arithmetic, barriers and rounding, without
//! a GPU.

mod common;
mod emulated;

use common::{ARENA_BYTES, judge_all};
use emulated::{Emulated, Kernels, possible};
use half::bf16;
use krasis_core::Bytes;
use krasis_cuda::Activation;

fn agree<A: Activation>() {
    if possible() {
        judge_all::<A, _>(Emulated::new(Bytes(ARENA_BYTES), &Kernels::new::<A>()), "");
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
