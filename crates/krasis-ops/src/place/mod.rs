//! `out[i] = slots[experts[i]]`, and `counts[experts[i]]` grows by one if there are any: where the
//! experts that tokens are routed to lie, and how often each is asked for, where nobody has to know at
//! once.

use crate::cpu::Cpu;
use crate::reference::Reference;
use krasis_core::{Mat, Slot};
use krasis_cpu::Arena;

/// A device looks up what it is told where it lies, which is nothing against the experts; the CPU's
/// loop is the plain one.
fn place(
    arena: &mut Arena,
    experts: Mat<u32>,
    slots: Slot<u32>,
    counts: Slot<u32>,
    out: Slot<u32>,
) {
    let experts = arena.slice(experts.whole()).to_vec();
    for &expert in experts.iter().filter(|_| !counts.is_empty()) {
        arena.slice_mut(counts)[expert as usize] += 1;
    }
    let (inputs, all) = arena.write(out);
    let slots = inputs.slice(slots);
    for (out, expert) in all.iter_mut().zip(experts) {
        *out = slots[expert as usize];
    }
}

pub(crate) fn reference(
    d: &mut Reference,
    experts: Mat<u32>,
    slots: Slot<u32>,
    counts: Slot<u32>,
    out: Slot<u32>,
) {
    place(&mut d.arena, experts, slots, counts, out);
}

pub(crate) fn cpu(
    d: &mut Cpu,
    experts: Mat<u32>,
    slots: Slot<u32>,
    counts: Slot<u32>,
    out: Slot<u32>,
) {
    place(&mut d.arena, experts, slots, counts, out);
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};
    use krasis_core::{Mat, Slot};

    cases![each_is_found_and_counted];

    /// Read back by gathering rows that hold their own index. More pairs than a block has threads, and
    /// an expert that nobody asks for.
    fn each_is_found_and_counted(on: &mut dyn Judge) {
        for (rows, top_k, count) in [(1, 1, 1), (7, 3, 5), (90, 8, 128)] {
            let mut case = Case::new(24);
            let pairs = rows * top_k;
            let chosen: Vec<u32> =
                (0..pairs).map(|_| (case.bits() % u64::from(count)) as u32).collect();
            let slots: Vec<u32> = (0..count).map(|expert| (expert * 7 + 3) % count).collect();
            let experts = Mat::new(case.u32s(&chosen), rows, top_k);
            let (slots, counts) = (case.u32s(&slots), case.u32s(&vec![2; count as usize]));
            let out = case.u32s(&vec![0; pairs as usize]);
            let indices: Vec<f32> = (0..pairs.max(count) + 3).map(|i| i as f32).collect();
            let table = case.act_of(indices.len() as u32, 1, &indices);
            let (places, often) = (case.blank(pairs, 1), case.blank(count, 1));
            let got = case.agree(on, &[places, often], 0.0, |ops| {
                ops.place(experts, slots, counts, out);
                ops.gather(table, out, places);
                ops.gather(table, counts, often);
            });
            assert_eq!(got[1].iter().sum::<f32>(), (2 * count + pairs) as f32);
            case.agree(on, &[places], 0.0, |ops| {
                ops.place(experts, slots, Slot::new(0, 0), out);
                ops.gather(table, out, places);
            });
        }
    }
}
