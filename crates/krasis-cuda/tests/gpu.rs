//! Every operation's cases on an NVIDIA GPU. Without one, says so and passes.
//! `KRASIS_CASE=experts` runs only the cases whose name contains it.

mod common;

use common::{ARENA_BYTES, judge_all};
use half::bf16;
use krasis_core::Bytes;
use krasis_cuda::gpu::Checking;
use krasis_cuda::{Activation, Gpu, driver};

fn agree<A: Activation>() {
    let cache = std::env::temp_dir().join("krasis-test-kernels");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let opened = driver::first()
        .and_then(|found| Gpu::open::<A>(found, Some(&cache), threads, Checking::Launches))
        .and_then(|mut gpu| gpu.allocate(Bytes(ARENA_BYTES)).map(|()| gpu));
    match opened {
        Ok(gpu) => judge_all::<A, _>(gpu, &std::env::var("KRASIS_CASE").unwrap_or_default()),
        Err(error) => println!("skipped: no GPU ({error})"),
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
