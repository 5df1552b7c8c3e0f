//! Comparing a machine's results with the reference's, over all cases of all operations.

use half::bf16;
use krasis_core::{Act, DType, Format, Mat, Slot};
use krasis_cpu::Arena;
use krasis_cuda::{Activation, Cuda, Machine, WORKSPACE_BYTES};
use krasis_ops::testing::{Case, Judge, all};
use krasis_ops::{
    ABSENT, Aide, Bank, DeltaHeads, Memory, Ops, Paper, Question, Reference, Routes, Routing,
    Score, Turns,
};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bytes of an arena that holds any case.
pub const ARENA_BYTES: u64 = (64 << 20) + WORKSPACE_BYTES.0;

/// One machine, reused for every case, and what was wrong so far.
struct OnMachine<A, M> {
    machine: Option<M>,
    /// The largest error of the case, in tolerances.
    worst: f32,
    wrong: Vec<String>,
    activation: PhantomData<fn() -> A>,
}

/// What rounding to a type costs a result, relative to the size of the sums it comes from: operands
/// and results are rounded to BF16, by 2⁻⁹ each, and experts multiply sums by sums, so that the worst
/// of 50,000 is ten deviations off; f32 is split into parts that lose 2⁻¹⁷, and judges sharply.
fn cost<A: Activation>() -> f32 {
    if A::BYTES == 2 { 1.0 / 32.0 } else { 1.0 / 16384.0 }
}

/// A device that holds a case, and nothing but NaN around it.
pub fn device_with<A: Activation, M: Machine>(case: &Case, mut machine: M) -> Cuda<A, M> {
    machine.write(0, &vec![0xff; case.layout.bytes().0 as usize]);
    for upload in &case.uploads {
        if upload.acts {
            machine.write(upload.start, &encoded::<A>(bytemuck::cast_slice(&upload.bytes)));
        } else {
            machine.write(upload.start, &upload.bytes);
        }
    }
    Cuda::new(&case.layout, machine)
}

impl<A: Activation, M: Machine> Judge for OnMachine<A, M> {
    fn judge(
        &mut self,
        case: &Case,
        outs: &[Mat<Act>],
        wanted: &[Vec<f32>],
        tolerance: f32,
        run: &dyn Fn(&mut dyn Ops),
    ) {
        let machine = self.machine.take().expect("a machine that has not failed");
        let mut device = device_with::<A, M>(case, machine);
        run(&mut device);
        for (index, (out, wanted)) in outs.iter().zip(wanted).enumerate() {
            let got = match case.is_act(*out) {
                true => device.download_act(*out),
                false => device.download(out.at.floats()),
            };
            // Terms cancel, so what is left of a sum may be smaller than what rounding does to them.
            let squares: f32 = wanted.iter().map(|x| x * x).sum();
            let size = (squares / wanted.len() as f32).sqrt().max(1.0);
            for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                let own = wanted.abs().max(1.0);
                let allowed = tolerance * own + cost::<A>() * own.max(size);
                let error = (got - wanted).abs() / allowed;
                self.worst = self.worst.max(error);
                if error.is_nan() || error > 1.0 {
                    let (row, col) = (i / out.cols as usize, i % out.cols as usize);
                    self.wrong.push(format!(
                        "output {index} of {}x{}: row {row} column {col} is {got}, not {wanted}",
                        out.rows, out.cols
                    ));
                    break;
                }
            }
        }
        self.machine = Some(device.into_machine());
    }
}

/// Runs every case whose name contains `filter`, prints a line for each, and panics at the end if
/// anything was wrong. A machine that fails ends the list: its memory can no longer be used.
pub fn judge_all<A: Activation, M: Machine>(machine: M, filter: &str) {
    let mut on = OnMachine::<A, M> {
        machine: Some(machine),
        worst: 0.0,
        wrong: Vec::new(),
        activation: PhantomData,
    };
    let mut failed = Vec::new();
    for (name, case) in all() {
        if !name.contains(filter) {
            continue;
        }
        (on.worst, on.wrong) = (0.0, Vec::new());
        let ran = catch_unwind(AssertUnwindSafe(|| case(&mut on)));
        if let Err(panic) = ran {
            let message = panic.downcast_ref::<String>().cloned();
            on.wrong.push(message.unwrap_or("a panic".to_owned()));
        }
        println!("{} {name}: worst {:.2} of what is allowed", A::NAME, on.worst);
        for sentence in on.wrong.iter().take(6) {
            println!("    {sentence}");
        }
        if !on.wrong.is_empty() {
            failed.push(format!("{name}: {} wrong", on.wrong.len()));
        }
        if on.machine.is_none() {
            failed.push("the machine failed, and the rest was not tried".to_owned());
            break;
        }
    }
    assert!(failed.is_empty(), "with {} activations:\n{}", A::NAME, failed.join("\n"));
}

/// To the bit, which tolerances for sums would not see in the columns.
pub fn largest_are_those_of_the_reference<A: Activation, M: Machine>(mut machine: M) -> M {
    for (rows, cols) in [(1, 64), (3, 2049), (2, 20_001)] {
        let mut case = Case::new(u64::from(cols));
        // BF16 holds these, and many are alike.
        let numbers: Vec<f32> = (0..rows * cols).map(|_| (case.float() * 100.0).round()).collect();
        let x = case.act_of(rows, cols, &numbers);
        let scales = case.floats_of(1, rows, &vec![0.0; rows as usize]).at;
        let out = case.floats_of(rows, 129, &vec![f32::NAN; 129 * rows as usize]);
        let mut device = device_with::<A, M>(&case, machine);
        device.largest(x, scales, out);
        let mut reference = Reference::new(krasis_cpu::Arena::new(&case.layout).unwrap());
        reference.upload(x.at.floats(), &numbers);
        reference.upload(scales, &vec![0.0; rows as usize]);
        reference.largest(x, scales, out);
        assert_eq!(device.download(out.at), reference.download(out.at), "{rows} rows of {cols}");
        machine = device.into_machine();
    }
    machine
}

/// Activations as the machine has them.
fn encoded<A: Activation>(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * A::BYTES as usize];
    A::encode(values, &mut bytes);
    bytes
}

/// Rows that somebody else computes: sums of what they are asked about.
#[derive(Default)]
struct Summing {
    routes: Vec<u32>,
    x: Vec<f32>,
    asked: Vec<usize>,
}

impl Aide for Summing {
    fn desk(&mut self) -> (&mut Vec<u32>, &mut Vec<f32>) {
        (&mut self.routes, &mut self.x)
    }

    /// Odd experts are somebody else's.
    fn answer(&mut self, number: usize, paper: &Paper) -> &[u32] {
        self.asked.push(number);
        let hidden = self.x.len() / (self.routes.len() / 2);
        for (pair, route) in self.routes.iter_mut().enumerate() {
            let x = &self.x[pair / 2 * hidden..][..hidden];
            let sum = |(a, b): (&f32, &f32)| a + b * *route as f32 + number as f32;
            let sums: Vec<f32> = x.iter().zip(x.iter().rev()).map(sum).collect();
            let odd = *route % 2 == 1;
            for (at, part) in [(0, &sums[..5]), (5, &sums[5..])].into_iter().filter(|_| odd) {
                // SAFETY: one thread.
                unsafe { paper.put(pair, at, part) };
            }
            *route = if odd { 0 } else { ABSENT };
        }
        &self.routes
    }
}

/// Steps of three sequences through a small layer: plain launches, and what is repeated.
pub fn repeats_give_what_plain_launches_do<A: Activation, M: Machine>(machine: M) {
    let mut case = Case::new(77);
    let (rows, hidden, dim, experts) = (3, 128, 64, 8);
    let (seqs, tokens) = case.seqs(&[(30, 1), (1, 1), (17, 1)], 16);
    let stores = [(); 2].map(|()| case.store(tokens, 2, dim, krasis_core::KvDtype::Bf16, 16));
    let bf16 = Format::Float(DType::Bf16);
    let (qkv_weight, router) =
        (case.weight(8 * dim, hidden, bf16), case.weight(experts, hidden, bf16));
    let (out_weight, head) = (case.weight(hidden, 4 * dim, bf16), case.weight(3000, hidden, bf16));
    let norms = [(); 2].map(|()| case.vector(dim));
    let (turns, norm) = (Turns { freqs: case.vector(32), scale: 1.0 }, case.vector(hidden));
    let bank = Bank {
        experts,
        inter: 32,
        gate_up: case.weight(experts * 64, hidden, bf16),
        down: case.weight(experts * hidden, 32, bf16),
    };
    let mut act = |rows, cols| case.act(rows, cols);
    let (x, qkv, mixed, block) =
        (act(rows, hidden), act(rows, 8 * dim), act(rows, 4 * dim), act(rows, hidden));
    let (normed, scores, inner, pairs) =
        (act(rows, hidden), act(rows, experts), act(2 * rows, 32), act(2 * rows, hidden));
    let logits = act(rows, 3000);
    let routes = Routes {
        experts: Mat::new(case.u32s(&[0; 6]), rows, 2),
        weights: case.floats_of(rows, 2, &[0.0; 6]),
    };
    let how = Routing { score: Score::Softmax, groups: None, top_k: 2, renormalise: true };
    let scales = case.floats_of(1, rows, &[1.0, 0.5, 0.0]).at;
    let found = case.floats_of(rows, 129, &[0.0; 3 * 129]);
    let slots: Vec<u32> = (0..experts).map(|e| if e % 2 == 0 { e } else { ABSENT }).collect();
    let (slots, places) = (case.u32s(&slots), Mat::new(case.u32s(&[0; 6]), rows, 2));
    let question = |number| Question {
        number,
        routes: routes.experts.whole(),
        x: normed,
        places: places.whole(),
        out: pairs,
    };
    let body = |d: &mut Cuda<A, M>, aide: &mut Summing| {
        d.linear(x, &qkv_weight, None, qkv);
        let parts = [(0, 4), (4, 2), (6, 2)].map(|(at, n)| qkv.cols(at * dim, n * dim));
        let stores = [&stores[0], &stores[1]];
        d.gqa_heads(parts, Some(&norms), 1e-6, turns, stores, &seqs);
        d.attend(parts[0], stores[0], stores[1], &seqs, 0.125, mixed);
        d.linear(mixed, &out_weight, None, block);
        d.add_rms_norm(Some(block), x, &norm, 1e-6, normed);
        d.linear(normed, &router, None, scores);
        d.route(scores, None, &how, routes);
        d.ask(aide, &question(3));
        d.place(routes.experts, slots, Slot::new(0, 0), places.whole());
        d.experts(normed, Routes { experts: places, ..routes }, &bank, inner, pairs);
        d.answered(aide, &question(3));
        d.combine(pairs, routes, 1.0, None, block);
        d.add_rms_norm(Some(block), x, &norm, 1e-6, normed);
        d.ask(aide, &question(4));
        d.answered(aide, &question(4));
        d.combine(pairs, routes, 1.0, None, block);
        d.linear(block, &head, None, logits);
        d.largest(logits, scales, found);
    };
    let steps = |machine: M, run: &dyn Fn(&mut Cuda<A, M>, &mut Summing)| {
        let (mut device, mut aide) = (device_with::<A, M>(&case, machine), Summing::default());
        let mut all = Vec::new();
        for step in 0..5u32 {
            device.upload(seqs.positions, &[30 + step, 1 + 3 * step, 17 - step]);
            device.upload(Slot::new(scales.start, 3), &[1.0, 0.5, step as f32]);
            let numbers: Vec<f32> =
                (0..rows * hidden).map(|i| ((i * 7 + step) % 11) as f32 - 5.0).collect();
            let bytes = encoded::<A>(&numbers);
            device.upload(Slot::new(x.at.start, bytes.len() as u64), &bytes);
            run(&mut device, &mut aide);
            let found: Vec<u32> = device.download(found.at).iter().map(|x| x.to_bits()).collect();
            all.push((found, device.download_act(x), device.download_act(block)));
        }
        assert_eq!(aide.asked, [3, 4].repeat(5), "each question is answered once");
        (all, device.into_machine())
    };
    let (plain, machine) = steps(machine, &body);
    let (repeated, _) = steps(machine, &|device, aide| device.repeat(3, aide, body));
    assert!(plain.windows(2).all(|pair| pair[0] != pair[1]), "steps differ");
    assert!(plain == repeated, "repeated launches compute something else");
}

/// A sequence among others and all at once, or alone and in steps that end where chunks do: the same
/// bits, and the same state after them.
pub fn cut_a_delta_net<M: Machine>(mut machine: M) {
    const PARTS: [(u32, u32); 3] = [(5, 70), (64, 201), (0, 1)];
    let h = DeltaHeads { key: 1, value: 2, key_dim: 64, value_dim: 32 };
    let mut case = Case::new(20);
    let rows = PARTS.iter().map(|(_, rows)| rows).sum();
    let inputs: Vec<f32> = (0..rows * h.channels()).map(|_| case.float()).collect();
    let gates: Vec<f32> = (0..rows * 2 * h.value).map(|_| case.float()).collect();
    let (a_log, dt_bias) = (case.vector(h.value), case.vector(h.value));
    let state = case.state(3, h.state());
    let mut parts = Vec::new();
    for range in [0..64, 64..192, 192..201] {
        let first = PARTS[0].1 + range.start;
        let of = |values: &[f32], cols: u32| {
            values[(first * cols) as usize..][..range.len() * cols as usize].to_vec()
        };
        let count = range.len() as u32;
        let (qkv, ba) = (of(&inputs, h.channels()), of(&gates, 2 * h.value));
        let (qkv, ba) =
            (case.act_of(count, h.channels(), &qkv), case.act_of(count, 2 * h.value, &ba));
        let seqs = case.some_rows(&PARTS, 4, 1, range);
        parts.push((seqs, qkv, ba, case.blank(count, h.width())));
    }
    let (seqs, _) = case.seqs(&PARTS, 4);
    let (qkv, ba) =
        (case.act_of(rows, h.channels(), &inputs), case.act_of(rows, 2 * h.value, &gates));
    let whole = vec![(seqs, qkv, ba, case.blank(rows, h.width()))];
    let mut both = Vec::new();
    for steps in [whole, parts] {
        let mut device = device_with::<bf16, M>(&case, machine);
        let mut results = Vec::new();
        for (seqs, qkv, ba, out) in steps {
            device.delta_rule(qkv, ba, &h, &a_log, &dt_bias, &state, &seqs, out);
            results.extend(device.download_act(out));
        }
        // Sequence 1 of three has the place in the middle.
        let memory =
            device.download(state.data)[h.state() as usize..][..h.state() as usize].to_vec();
        both.push((results, memory));
        machine = device.into_machine();
    }
    let of_sequence = (PARTS[0].1 * h.width()) as usize..((rows - PARTS[2].1) * h.width()) as usize;
    assert!(both[0].0[of_sequence] == both[1].0, "results of the same sequence");
    assert!(both[0].1 == both[1].1, "states after it");
}

/// A prompt among others whose keys are made a window at a time, or alone and all at once: the same bits.
pub fn prompts_do_not_mind_company<M: Machine>(machine: M) {
    const PARTS: [(u32, u32); 4] = [(40, 3), (300, 1), (0, 300), (130, 290)];
    let heads = 2;
    let mut case = Case::new(52);
    let (seqs, tokens) = case.seqs(&PARTS, 16);
    let [latent, rope] =
        [512, 64].map(|dim| case.store(tokens, 1, dim, krasis_core::KvDtype::Bf16, 16));
    let bf16 = Format::Float(DType::Bf16);
    let absorb = [case.weight(heads * 512, 128, bf16), case.weight(heads * 128, 512, bf16)];
    let rows = PARTS.iter().map(|(_, rows)| rows).sum::<u32>();
    let scratch = [(); 2].map(|()| case.blank(rows, heads * 512).at);
    let queries: Vec<f32> = (0..rows * heads * 192).map(|_| case.float()).collect();
    let own = (rows - 290) * heads * 192;
    let alone = case.some_rows(&PARTS, 16, 3, 0..290);
    let mut device_of = Some(machine);
    let mut results = Vec::new();
    // 300 rows of scratch memory hold 256 keys, and all rows 512.
    for (seqs, rows, first, room) in
        [(seqs, rows, 0, 300), (seqs, rows, 0, rows), (alone, 290, own as usize, rows)]
    {
        let mats = case.act_of(rows, heads * 192, &queries[first..]);
        let out = case.blank(rows, heads * 128);
        let past = Slot::new(scratch[0].start, u64::from(room * heads * 512));
        let mut device = device_with::<bf16, M>(&case, device_of.take().expect("one at a time"));
        let q = [mats.cols(0, heads * 128), mats.cols(heads * 128, heads * 64)];
        let (absorb, stores) = ([&absorb[0], &absorb[1]], [&latent, &rope]);
        device.mla_mix(q, absorb, stores, &seqs, 0.01, [past, scratch[1]], out);
        let all = device.download_act(out);
        results.push(all[all.len() - (290 * heads * 128) as usize..].to_vec());
        device_of = Some(device.into_machine());
    }
    assert!(results[0] == results[2], "windows of 256 keys");
    assert!(results[1] == results[2], "windows of 512 keys");
}

/// A copy comes behind the kernel that writes what is copied, and before the one that writes it again.
pub fn copies_are_made_in_turn<A: Activation, M: Machine>(machine: M) {
    let mut case = Case::new(27);
    let (first, second) = (case.act(64, 2048), case.act(64, 2048));
    let [out, kept] = [(); 2].map(|()| case.blank(64, 1024));
    let bytes = |mat: Mat<Act>| Slot::<u8>::new(mat.at.start, mat.at.len * u64::from(A::BYTES));
    let mut device = device_with::<A, M>(&case, machine);
    device.silu_mul(first, out);
    let wanted = device.download(bytes(out));
    for _ in 0..3 {
        device.silu_mul(first, out);
        device.copy(bytes(out), bytes(kept));
        device.silu_mul(second, out);
    }
    assert!(device.download(bytes(kept)) == wanted, "what was copied");
    assert!(device.download(bytes(out)) != wanted, "what was written again");
}

/// Pieces of any length from anywhere in host memory, few and many, short and long; what lies between them
/// stays as it was.
pub fn scattered_pieces_arrive<A: Activation, M: Machine>(machine: M) {
    let mut case = Case::new(28);
    let all = case.layout.slot::<u8>(24 << 20);
    let mut host = Arena::new(&case.layout).unwrap();
    let keep = host.keep();
    host.slice_mut(all).chunks_mut(8).for_each(|to| {
        let bytes = case.bits().to_le_bytes();
        to.copy_from_slice(&bytes[..to.len()]);
    });
    let mut device = device_with::<A, M>(&case, machine);
    for (pieces, most) in [(1, 100), (3, 9 << 20), (500, 20_000), (40, 500_000)] {
        device.upload(all, &vec![0xff_u8; all.len as usize]);
        let (mut at, mut wanted) = (0, vec![0xff; all.len as usize]);
        let mut slots = Vec::new();
        for piece in 0..2 * pieces {
            let len = 1 + case.bits() % (most / 2) + most / 4;
            if at + len > all.len {
                break;
            }
            if piece % 2 == 0 {
                let slot = Slot::<u8>::new(all.start + at, len);
                slots.push(slot);
                let range = at as usize..(at + len) as usize;
                wanted[range].copy_from_slice(host.slice(slot));
            }
            at += len;
        }
        slots.reverse();
        device.bring(slots.iter().map(|slot| (*slot, host.slice(*slot))), &keep);
        device.brought();
        assert!(device.download(all) == wanted, "{pieces} pieces of up to {most} bytes");
    }
}
