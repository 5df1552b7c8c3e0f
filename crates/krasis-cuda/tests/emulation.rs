//! Every operation's cases on the kernels as C++: index arithmetic, barriers and rounding, without
//! a GPU. `KRASIS_CASE=experts` runs only the cases whose name contains it.

mod common;
mod emulated;

use common::{
    ARENA_BYTES, copies_are_made_in_turn, cut_a_delta_net, device_with, judge_all,
    largest_are_those_of_the_reference, repeats_give_what_plain_launches_do,
};
use emulated::{Emulated, Kernels, LARGE, possible};
use half::bf16;
use krasis_core::lines::{Bits, Lines};
use krasis_core::{Bytes, DType, Format, KvDtype, Mat, Slot};
use krasis_cuda::{Activation, Cuda, Limits};
use krasis_ops::testing::Case;
use krasis_ops::{Bank, KvStore, Memory, Ops, Routes, Turns, heads};

fn agree<A: Activation>(limits: Limits, filter: &str) {
    if possible() {
        let kernels = Kernels::new::<A>(limits);
        let asked = std::env::var("KRASIS_CASE").unwrap_or_default();
        let filter = if filter.is_empty() { &asked } else { filter };
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

#[test]
fn prompts_do_not_mind_company() {
    if possible() {
        let kernels = Kernels::new::<bf16>(LARGE);
        common::prompts_do_not_mind_company(Emulated::new(Bytes(ARENA_BYTES), &kernels));
    }
}

#[test]
fn scattered_pieces_arrive() {
    if possible() {
        let kernels = Kernels::new::<bf16>(LARGE);
        common::scattered_pieces_arrive::<bf16, _>(Emulated::new(Bytes(ARENA_BYTES), &kernels));
    }
}

#[test]
fn copies_come_between_kernels() {
    if possible() {
        let kernels = Kernels::new::<bf16>(LARGE);
        copies_are_made_in_turn::<bf16, _>(Emulated::new(Bytes(ARENA_BYTES), &kernels));
    }
}

/// Attention and chunks of delta nets have other blocks there.
#[test]
fn kernels_agree_with_the_reference_on_a_gpu_with_little_shared_memory() {
    for filter in ["mla_mix", "attend", "delta_rule"] {
        agree::<bf16>(Limits { processors: 24, shared_max: 99 << 10 }, filter);
    }
}

/// Blocks have several tiles of outputs there, and fewer units on their way.
#[test]
fn kernels_agree_with_the_reference_on_a_gpu_of_one_multiprocessor() {
    agree::<bf16>(Limits { processors: 1, shared_max: 99 << 10 }, "linear");
}

/// What few rows are multiplied in, with the parts of a row that warps share.
const FEW: [Format; 3] = [
    Format::Float(DType::Bf16),
    Format::Lines(Lines::new(Bits::Four, 64).unwrap()),
    Format::Lines(Lines::new(Bits::Eight, 128).unwrap()),
];

/// A row of a step is the same bit for bit, whether it comes alone, with some or with many.
#[test]
fn few_rows_do_not_depend_on_their_company() {
    if !possible() {
        return;
    }
    let kernels = Kernels::new::<bf16>(LARGE);
    for format in FEW {
        let mut case = Case::new(31);
        let (x, w) = (case.act(64, 1096), case.weight(40, 1096, format));
        let out = case.blank(64, 40);
        let machine = Emulated::new(Bytes(ARENA_BYTES), &kernels);
        let mut device = device_with::<bf16, _>(&case, machine);
        device.linear(x, &w, None, out);
        let all = device.download_act(out);
        for rows in [1, 2, 9, 31] {
            device.linear(x.first(rows), &w, None, out.first(rows));
            let some = device.download_act(out.first(rows));
            assert_eq!(some, all[..some.len()], "{rows} rows in {format}");
        }
    }
}

/// Of experts, with pairs that are alone, and with up to eight at once.
#[test]
fn pairs_do_not_depend_on_their_company() {
    if !possible() {
        return;
    }
    let kernels = Kernels::new::<bf16>(LARGE);
    let (tokens, top_k, experts, inter, hidden) = (24, 2, 3, 264, 1032);
    for format in FEW {
        let stored = |rows| Bank::rows_of(format, rows);
        let mut case = Case::new(32);
        let x = case.act(tokens, hidden);
        let gate_up = case.weight(experts * 2 * stored(inter), hidden, format);
        let down = case.weight(experts * stored(hidden), inter, format);
        let bank = Bank { gate_up, down, experts, inter };
        let of = |pair: u32| pair % 2 * (1 + pair / 2 % 2);
        let chosen = case.u32s(&(0..tokens * top_k).map(of).collect::<Vec<u32>>());
        let weights = case.random_floats(tokens, top_k);
        let (inner, out) = (case.blank(tokens * top_k, inter), case.blank(tokens * top_k, hidden));
        let machine = Emulated::new(Bytes(ARENA_BYTES), &kernels);
        let mut device = device_with::<bf16, _>(&case, machine);
        let mut run = |tokens: u32| {
            let experts = Slot::new(chosen.start, u64::from(tokens * top_k));
            let experts = Mat::new(experts, tokens, top_k);
            let (inner, out) = (inner.first(tokens * top_k), out.first(tokens * top_k));
            device.experts(x.first(tokens), Routes { experts, weights }, &bank, inner, out);
            device.download_act(out)
        };
        let all = run(tokens);
        for some in [1, 3, 10] {
            let got = run(some);
            assert_eq!(got, all[..got.len()], "{some} tokens in {format}");
        }
    }
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

type Device = Cuda<bf16, Emulated>;

/// Heads in one launch, and in as many as there are small operations: queries and stores to the bit. On
/// a GPU compilers may contract a product and a sum in one of them.
#[test]
fn heads_together_are_heads_one_by_one() {
    if !possible() {
        return;
    }
    let kernels = Kernels::new::<bf16>(LARGE);
    for (dtype, dim, half) in
        [(KvDtype::Bf16, 128, 64), (KvDtype::F8E4M3, 80, 20), (KvDtype::F32, 256, 32)]
    {
        let mut case = Case::new(41);
        let (seqs, tokens) = case.seqs(&[(3, 4), (500, 2)], 4);
        let mut store = |heads, dim| case.store(tokens, heads, dim, dtype, 4);
        let (k, v, latent, rope) = (store(2, dim), store(2, dim), store(1, 576), store(1, dim));
        let (qkv, all, kept) = (case.act(6, 7 * dim), case.act(6, 3 * dim), case.act(6, 576 + dim));
        let norms = [(); 2].map(|()| case.vector(dim));
        let (norm, turns) = (case.vector(576), Turns { freqs: case.vector(half), scale: 1.5 });
        let parts = [(0, 3), (3, 2), (5, 2)].map(|(at, n)| qkv.cols(at * dim, n * dim));
        let kept = [kept.cols(0, 576), kept.cols(576, dim)];
        let run = |ops: &dyn Fn(&mut Device)| {
            let machine = Emulated::new(Bytes(ARENA_BYTES), &kernels);
            let mut device = device_with::<bf16, _>(&case, machine);
            ops(&mut device);
            let stored = |d: &mut Device, s: KvStore| (d.download(s.data), d.download(s.scales));
            let stores = [k, v, latent, rope].map(|store| stored(&mut device, store));
            (device.download_act(parts[0]), device.download_act(all), stores)
        };
        let together = run(&|d| {
            d.gqa_heads(parts, Some(&norms), 1e-6, turns, [&k, &v], &seqs);
            d.mla_heads(all, kept, &norm, 1e-6, turns, [&latent, &rope], &seqs);
        });
        let apart = run(&|d| {
            heads::gqa(d, parts, Some(&norms), 1e-6, turns, [&k, &v], &seqs);
            heads::mla(d, all, kept, &norm, 1e-6, turns, [&latent, &rope], &seqs);
        });
        assert!(together == apart, "{dtype:?} {dim}");
    }
}
