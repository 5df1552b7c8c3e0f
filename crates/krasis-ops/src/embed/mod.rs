//! Token embedding: `out[row] = table[tokens[row]]`, `table` is `[vocab, hidden]` in any format.

use crate::cpu::{Cpu, Rows};
use crate::reference::Reference;
use krasis_core::{Act, Mat, Slot, Weight};

pub(crate) fn reference(d: &mut Reference, tokens: Slot<u32>, table: &Weight, out: Mat<Act>) {
    let table = d.weight(table);
    let tokens = &d.arena.slice(tokens)[..out.rows as usize];
    let rows: Vec<Vec<f32>> = tokens.iter().map(|token| table[*token as usize].clone()).collect();
    d.put(out, &rows);
}

pub(crate) fn cpu(d: &mut Cpu, tokens: Slot<u32>, table: &Weight, out: Mat<Act>) {
    let (inputs, rows) = d.arena.write(out.whole().floats());
    let table = Rows::of(table, &inputs);
    for (row, token) in rows.chunks_exact_mut(out.cols as usize).zip(inputs.slice(tokens)) {
        table.decode(*token as usize, row);
    }
}

pub(crate) mod cases {
    use crate::testing::{Case, FORMATS, Judge};

    cases![rows_of_the_table];

    fn rows_of_the_table(on: &mut dyn Judge) {
        for format in FORMATS {
            let mut case = Case::new(1);
            let table = case.weight(9, 70, format);
            let tokens = case.u32s(&[8, 0, 3]);
            let out = case.blank(3, 70);
            case.agree(on, &[out], 0.0, |ops| ops.embed(tokens, &table, out));
        }
    }
}
