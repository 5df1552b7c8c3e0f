//! `out[i] = x[rows[i]]`: the rows whose logits are wanted.

use crate::cpu::Cpu;
use crate::reference::Reference;
use krasis_core::{Act, Mat, Slot};
use krasis_cpu::Arena;

/// Copying has no slow and fast version; both devices share it.
fn gather(arena: &mut Arena, x: Mat<Act>, rows: Slot<u32>, out: Mat<Act>) {
    let (inputs, all) = arena.write(out.whole().floats());
    for (out, row) in all.chunks_exact_mut(out.cols as usize).zip(inputs.slice(rows)) {
        out.copy_from_slice(inputs.row(x, *row));
    }
}

pub(crate) fn reference(d: &mut Reference, x: Mat<Act>, rows: Slot<u32>, out: Mat<Act>) {
    gather(&mut d.arena, x, rows, out);
}

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, rows: Slot<u32>, out: Mat<Act>) {
    gather(&mut d.arena, x, rows, out);
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};

    cases![rows_in_any_order];

    fn rows_in_any_order(on: &mut dyn Judge) {
        let mut case = Case::new(14);
        let x = case.act_of(3, 2, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let (rows, out) = (case.u32s(&[2, 0]), case.blank(2, 2));
        let got = case.agree(on, &[out], 0.0, |ops| ops.gather(x, rows, out));
        assert_eq!(got[0], [4.0, 5.0, 0.0, 1.0]);
    }
}
