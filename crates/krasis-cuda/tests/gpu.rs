//! Every operation's cases on an NVIDIA GPU. Without one, says so and passes.
//! `KRASIS_CASE=experts` runs only the cases whose name contains it.

mod common;

use common::{
    ARENA_BYTES, copies_are_made_in_turn, cut_a_delta_net, device_with, judge_all,
    largest_are_those_of_the_reference, repeats_give_what_plain_launches_do,
};
use half::bf16;
use krasis_core::Bytes;
use krasis_cuda::gpu::Checking;
use krasis_cuda::{Activation, Gpu, driver};
use krasis_ops::testing::Case;
use krasis_ops::{Memory, Nobody, Ops, Span, Track};
use std::sync::mpsc::channel;
use std::time::Instant;

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

/// Of plain launches, and of a graph's each time that it runs; copies stand apart.
#[test]
fn a_timeline_names_kernels_with_their_layers() {
    let Some(mut gpu) = opened::<bf16>(Checking::Reads) else { return };
    let (sender, spans) = channel();
    gpu.watch(sender).unwrap();
    let mut case = Case::new(1);
    let (x, out) = (case.act(512, 4096), case.blank(512, 2048));
    let before = Instant::now();
    let mut device = device_with::<bf16, _>(&case, gpu);
    device.layer(Some(7));
    for _ in 0..5 {
        device.repeat(1, &mut Nobody, |d, _| d.silu_mul(x, out));
    }
    device.download_act(out);
    drop(device.into_machine());
    let after = Instant::now();
    let spans: Vec<_> = spans.iter().collect();
    let of = |track| spans.iter().filter(move |span| span.track == track);
    let kernels: Vec<_> = of(Track::Kernels).filter(|span| span.name == "silu_mul").collect();
    assert_eq!(kernels.len(), 5, "one launched, one captured and run, three run again");
    assert!(kernels.iter().all(|span| span.layer == Some(7) && span.amount == 512 * 8));
    assert!(kernels.windows(2).all(|pair| pair[0].start + pair[0].time <= pair[1].start));
    let uploaded: u64 = of(Track::Copies).map(|span| span.amount).sum();
    assert!(uploaded >= 512 * 4096 * 2, "{uploaded} bytes");
    assert!(of(Track::Host).any(|span| span.name == "wait for a result"));
    let inside = |span: &Span| before <= span.start && span.start + span.time <= after;
    assert!(spans.iter().filter(|span| span.track == Track::Kernels).all(inside), "one clock");
}

#[test]
fn scattered_pieces_arrive() {
    if let Some(gpu) = opened::<bf16>(Checking::Reads) {
        common::scattered_pieces_arrive::<bf16, _>(gpu);
    }
}

#[test]
fn copies_come_between_kernels() {
    if let Some(gpu) = opened::<bf16>(Checking::Reads) {
        copies_are_made_in_turn::<bf16, _>(gpu);
    }
}
