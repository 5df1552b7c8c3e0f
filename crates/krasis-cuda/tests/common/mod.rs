//! Comparing a machine's results with the reference's, over all cases of all operations.

use krasis_core::{Act, Mat};
use krasis_cuda::{Activation, Cuda, Machine, WORKSPACE_BYTES};
use krasis_ops::testing::{Case, Judge, all};
use krasis_ops::{Memory, Ops};
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

/// A device that holds a case, and NaN where nobody has written.
pub fn prepared<A: Activation, M: Machine>(mut machine: M, case: &Case) -> Cuda<A, M> {
    machine.write(0, &vec![0xff; case.layout.bytes().0 as usize]);
    for upload in &case.uploads {
        if upload.acts {
            machine.write(upload.start, &A::encode(bytemuck::cast_slice(&upload.bytes)));
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
        let mut device = prepared::<A, M>(machine, case);
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
