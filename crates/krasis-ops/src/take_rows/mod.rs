//! `out[i] = from[i]` where `places[i]` is somewhere, and what it was where that is
//! [`ABSENT`]: rows that another device has computed, among one's own.

use crate::ABSENT;
use crate::cpu::Cpu;
use crate::reference::Reference;
use krasis_core::{Act, Mat, Slot};
use krasis_cpu::Arena;

/// Copying has no slow and fast version; both devices share it.
fn take_rows(arena: &mut Arena, from: Mat<Act>, places: Slot<u32>, out: Mat<Act>) {
    let (inputs, all) = arena.write(out.whole().floats());
    let rows = all.chunks_exact_mut(out.cols as usize).zip(inputs.slice(places)).zip(0..);
    for ((out, _), row) in rows.filter(|((_, place), _)| **place != ABSENT) {
        out.copy_from_slice(inputs.row(from, row));
    }
}

pub(crate) fn reference(d: &mut Reference, from: Mat<Act>, places: Slot<u32>, out: Mat<Act>) {
    take_rows(&mut d.arena, from, places, out);
}

pub(crate) fn cpu(d: &mut Cpu, from: Mat<Act>, places: Slot<u32>, out: Mat<Act>) {
    take_rows(&mut d.arena, from, places, out);
}

pub(crate) mod cases {
    use crate::ABSENT;
    use crate::testing::{Case, Judge};

    cases![absent_rows_stay];

    fn absent_rows_stay(on: &mut dyn Judge) {
        for (rows, cols) in [(1, 1), (3, 5), (70, 300)] {
            let mut case = Case::new(31);
            let numbers: Vec<f32> = (0..rows * cols).map(|i| (i % 97) as f32).collect();
            let others: Vec<f32> = numbers.iter().map(|x| x + 100.0).collect();
            let (from, out) = (case.act_of(rows, cols, &others), case.act_of(rows, cols, &numbers));
            let here = |row: &u32| row % 3 != 1;
            let places: Vec<u32> =
                (0..rows).map(|row| if here(&row) { row } else { ABSENT }).collect();
            let places = case.u32s(&places);
            let got = case.agree(on, &[out], 0.0, |ops| ops.take_rows(from, places, out));
            let wanted = (0..rows * cols)
                .map(|i| i as usize)
                .map(|i| if here(&(i as u32 / cols)) { others[i] } else { numbers[i] });
            assert_eq!(got[0], wanted.collect::<Vec<_>>());
        }
    }
}
