//! Comparing a machine's results with the reference's, over all cases of all operations.

use half::bf16;
use krasis_core::{Act, Mat};
use krasis_cuda::{Activation, Cuda, Machine, WORKSPACE_BYTES};
use krasis_ops::testing::{Case, Judge, all};
use krasis_ops::{DeltaHeads, Memory, Ops};
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

/// A case's memory, and NaN where it says nothing.
fn upload<A: Activation>(machine: &mut impl Machine, case: &Case) {
    machine.write(0, &vec![0xff; case.layout.bytes().0 as usize]);
    for upload in &case.uploads {
        if upload.acts {
            machine.write(upload.start, &A::encode(bytemuck::cast_slice(&upload.bytes)));
        } else {
            machine.write(upload.start, &upload.bytes);
        }
    }
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
        let mut machine = self.machine.take().expect("a machine that has not failed");
        upload::<A>(&mut machine, case);
        let mut device = Cuda::<A, M>::new(&case.layout, machine);
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
        upload::<bf16>(&mut machine, &case);
        let mut device = Cuda::<bf16, M>::new(&case.layout, machine);
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
