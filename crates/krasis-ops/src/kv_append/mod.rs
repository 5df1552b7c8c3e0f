//! Stores rows in the KV cache: row `r`, columns `[heads, dim]`, goes to the token's position in
//! its sequence's pages. FP8 stores keep one scale per token and head, so that the largest number
//! of each lands on the largest FP8 value.

use crate::cpu::{Cpu, ROWS_WORTH_A_THREAD};
use crate::reference::Reference;
use crate::step::{KvStore, Seqs};
use krasis_core::{Act, Mat};
use krasis_cpu::{Inputs, Tiles};

pub(crate) fn reference(d: &mut Reference, x: Mat<Act>, store: &KvStore, seqs: &Seqs) {
    let (inputs, data, scales) = d.arena.write_two(store.data, store.scales);
    let at = Places::new(&inputs, x, store, seqs);
    for row in 0..x.rows {
        let token = at.token(row);
        let heads = inputs.row(x, row).chunks_exact(store.dim as usize);
        for (head, values) in heads.enumerate() {
            store.put(data, scales, token, head as u32, values);
        }
    }
}

pub(crate) fn cpu(d: &mut Cpu, x: Mat<Act>, store: &KvStore, seqs: &Seqs) {
    let (inputs, data, scales) = d.arena.write_two(store.data, store.scales);
    let at = Places::new(&inputs, x, store, seqs);
    // A token's heads lie side by side: each row of a step writes a tile of its own.
    let bytes = store.heads as usize * store.dim as usize * store.dtype.bytes() as usize;
    let each = if scales.is_empty() { 0 } else { store.heads as usize };
    let (data, scales) = (Tiles::new(data, bytes), Tiles::new(scales, each));
    d.team.split(x.rows as usize, ROWS_WORTH_A_THREAD, |rows| {
        for row in rows {
            let token = at.token(row as u32);
            // SAFETY: the tokens of a step have different places.
            let (data, scales): (&mut [u8], &mut [f32]) = unsafe {
                let scales = if each == 0 { &mut [][..] } else { scales.tile(token, 0..each) };
                (data.tile(token, 0..bytes), scales)
            };
            let heads = inputs.row(x, row as u32).chunks_exact(store.dim as usize);
            for (head, values) in heads.enumerate() {
                store.put(data, scales, 0, head as u32, values);
            }
        }
    });
}

/// Where the rows of a step go.
struct Places<'a> {
    store: &'a KvStore,
    row_seq: &'a [u32],
    positions: &'a [u32],
    pages: &'a [u32],
    pages_max: usize,
}

impl<'a> Places<'a> {
    fn new(inputs: &Inputs<'a>, x: Mat<Act>, store: &'a KvStore, seqs: &Seqs) -> Places<'a> {
        assert_eq!(x.cols, store.heads * store.dim, "columns [heads, dim]");
        Places {
            store,
            row_seq: inputs.slice(seqs.row_seq),
            positions: inputs.slice(seqs.positions),
            pages: inputs.slice(seqs.pages),
            pages_max: seqs.pages_max as usize,
        }
    }

    fn token(&self, row: u32) -> usize {
        let seq = self.row_seq[row as usize] as usize;
        let pages = &self.pages[seq * self.pages_max..][..self.pages_max];
        self.store.token(pages, self.positions[row as usize])
    }
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};
    use krasis_core::KvDtype;

    cases![what_is_appended_is_attended_to];

    /// Where it lies shows in what attention makes of it; the page table is not in order.
    fn what_is_appended_is_attended_to(on: &mut dyn Judge) {
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::F8E4M3] {
            for dim in [10, 16] {
                let mut case = Case::new(20);
                let (seqs, tokens) = case.seqs(&[(3, 4), (0, 1), (0, 6)], 4);
                let k = case.store(tokens, 2, dim, dtype, 4);
                let v = case.store(tokens, 2, dim, dtype, 4);
                let all = case.act(11, 4 * dim + 5);
                let (keys, values) = (all.cols(5, 2 * dim), all.cols(5 + 2 * dim, 2 * dim));
                let (q, out) = (case.act(11, 2 * dim), case.blank(11, 2 * dim));
                case.agree(on, &[out], 1e-5, |ops| {
                    ops.kv_append(keys, &k, &seqs);
                    ops.kv_append(values, &v, &seqs);
                    ops.attend(q, &k, &v, &seqs, 0.9, out);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Case;
    use crate::{Memory, Ops};
    use krasis_core::KvDtype;

    #[test]
    fn what_is_stored_is_read_back() {
        for (dtype, tolerance) in [
            (KvDtype::F32, 0.0),
            (KvDtype::Bf16, 1.0 / 256.0),
            (KvDtype::F16, 1.0 / 2048.0),
            (KvDtype::F8E4M3, 1.0 / 15.0),
        ] {
            let mut case = Case::new(8);
            let (seqs, tokens) = case.seqs(&[(3, 4), (0, 1)], 4);
            let store = case.store(tokens, 2, 10, dtype, 4);
            let all = case.act(5, 25);
            let x = all.cols(5, 20);
            let mut cpu = case.cpu();
            cpu.kv_append(x, &store, &seqs);
            let (data, scales) = (cpu.download(store.data), cpu.download(store.scales));
            let (pages, wanted) = (cpu.download(seqs.pages), cpu.download_act(x));
            let places = [(0, 3), (0, 4), (0, 5), (0, 6), (1, 0)];
            for (row, (seq, position)) in places.into_iter().enumerate() {
                let pages = &pages[seq * seqs.pages_max as usize..];
                let token = store.token(pages, position);
                for head in 0..2 {
                    let mut scratch = [0.0; 10];
                    let got = store.get(&data, &scales, token, head, &mut scratch);
                    let wanted = &wanted[row * 20 + head as usize * 10..][..10];
                    for (got, wanted) in got.iter().zip(wanted) {
                        assert!((got - wanted).abs() <= tolerance, "{dtype:?}: {got} for {wanted}");
                    }
                }
            }
        }
    }
}
