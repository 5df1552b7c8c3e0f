//! Causal attention of grouped query heads (Vaswani et al., 2017; Ainslie et al., GQA, 2023):
//! `out[r, h] = Σ_j softmax_j(scale · q[r, h]·k[j, g]) · v[j, g]` over positions `j` up to the
//! row's own, `g = h / (heads / kv heads)`. Keys and values of the row itself are in the cache
//! already: append first, then attend.

mod cpu;
mod few;
mod past;
mod plan;

use crate::linear::dot;
use crate::reference::Reference;
use crate::step::{KvStore, Seqs};
pub(crate) use cpu::{Desk, attend, cpu};
use krasis_core::{Act, Mat};

pub(crate) fn reference(
    d: &mut Reference,
    q: Mat<Act>,
    k: &KvStore,
    v: &KvStore,
    seqs: &Seqs,
    scale: f32,
    out: Mat<Act>,
) {
    let heads = out.cols / v.dim;
    let mut rows = Vec::new();
    for (row, q) in d.rows(q).iter().enumerate() {
        let mut mixed = Vec::new();
        for head in 0..heads {
            let kv_head = head / (heads / k.heads);
            let q = &q[(head * k.dim) as usize..][..k.dim as usize];
            let keys = d.past(k, seqs, row, kv_head);
            let scores = keys.iter().map(|key| scale * dot(q, key)).collect();
            mixed.extend(d.mix(scores, &d.past(v, seqs, row, kv_head)));
        }
        rows.push(mixed);
    }
    d.put(out, &rows);
}

impl Reference {
    /// What a row may see of one head: its sequence's vectors up to its own position.
    pub(crate) fn past(
        &self,
        store: &KvStore,
        seqs: &Seqs,
        row: usize,
        head: u32,
    ) -> Vec<Vec<f32>> {
        let seq = self.arena.slice(seqs.row_seq)[row] as usize;
        let position = self.arena.slice(seqs.positions)[row];
        let pages = &self.arena.slice(seqs.pages)[seq * seqs.pages_max as usize..];
        let (data, scales) = (self.arena.slice(store.data), self.arena.slice(store.scales));
        let mut scratch = vec![0.0; store.dim as usize];
        (0..=position)
            .map(|j| store.get(data, scales, store.token(pages, j), head, &mut scratch).to_vec())
            .collect()
    }

    /// Σ softmax(scores)·values.
    pub(crate) fn mix(&self, scores: Vec<f32>, values: &[Vec<f32>]) -> Vec<f32> {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f32 = weights.iter().sum();
        let mut sum = vec![0.0; values[0].len()];
        for (weight, value) in weights.iter().zip(values) {
            sum.iter_mut().zip(value).for_each(|(sum, x)| *sum += weight / total * x);
        }
        sum
    }
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};
    use krasis_core::KvDtype;

    cases![groups_pages_and_positions, heads_of_models_in_steps_of_all_kinds];

    fn groups_pages_and_positions(on: &mut dyn Judge) {
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::F8E4M3] {
            for (heads, kv_heads, k_dim, v_dim) in
                [(1, 1, 12, 10), (4, 2, 12, 10), (6, 1, 12, 10), (22, 2, 16, 32), (2, 2, 136, 128)]
            {
                let mut case = Case::new(9);
                let (seqs, tokens) = case.seqs(&[(0, 1), (6, 3), (49, 1)], 4);
                let k = case.store(tokens, kv_heads, k_dim, dtype, 4);
                let v = case.store(tokens, kv_heads, v_dim, dtype, 4);
                let all = case.act(5, heads * k_dim + 3);
                let q = all.cols(3, heads * k_dim);
                let out = case.blank(5, heads * v_dim);
                case.agree(on, &[out], 1e-5, |ops| ops.attend(q, &k, &v, &seqs, 1.7, out));
            }
        }
    }

    /// A row each over long and short pasts, few rows, many rows; scores are four wide, so that few
    /// keys make a result and none may be missed.
    fn heads_of_models_in_steps_of_all_kinds(on: &mut dyn Judge) {
        let alone: Vec<(u32, u32)> = (0..37).map(|seq| (seq * 11 % 90, 1)).collect();
        let steps = [
            &[(700, 1)][..],
            &[(300, 1), (0, 1), (37, 1)],
            &[(300, 5), (0, 3)],
            &[(103, 60), (0, 20), (45, 1), (14, 9)],
            &alone,
        ];
        for dtype in [KvDtype::Bf16, KvDtype::F8E4M3] {
            for (heads, kv_heads, dim) in [(14, 2, 64), (8, 2, 128), (17, 1, 128), (6, 3, 256)] {
                for (parts, aside) in steps.iter().zip([0, 3, 8, 0, 1]) {
                    let mut case = Case::new(31);
                    let (seqs, tokens) = case.seqs(parts, 16);
                    let rows = parts.iter().map(|(_, rows)| rows).sum();
                    let k = case.store(tokens, kv_heads, dim, dtype, 16);
                    let v = case.store(tokens, kv_heads, dim, dtype, 16);
                    let q = case.act(rows, heads * dim + aside).cols(aside, heads * dim);
                    let out = case.blank(rows, heads * dim);
                    let scale = 12.0 * (dim as f32).powf(-0.5);
                    case.agree(on, &[out], 1e-4, |ops| ops.attend(q, &k, &v, &seqs, scale, out));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Case, Cpus};
    use crate::{Memory, Ops};
    use krasis_core::KvDtype;

    const FORMATS: [KvDtype; 4] = [KvDtype::F32, KvDtype::Bf16, KvDtype::F8E4M3, KvDtype::F16];

    #[test]
    fn blocks_and_parts_of_models_shapes() {
        let shapes =
            [(7, 1, 40, 40), (2, 1, 64, 128), (6, 3, 72, 64), (8, 1, 128, 72), (16, 1, 256, 256)];
        for (dtype, shapes) in
            FORMATS.into_iter().zip([&shapes[..], &shapes[2..3], &shapes[3..4], &shapes[1..3]])
        {
            for &(heads, kv_heads, k_dim, v_dim) in shapes {
                let mut case = Case::new(21);
                let (seqs, tokens) = case.seqs(&[(0, 21), (55, 30), (1020, 7), (511, 1)], 16);
                let k = case.store(tokens, kv_heads, k_dim, dtype, 16);
                let v = case.store(tokens, kv_heads, v_dim, dtype, 16);
                let (q, out) = (case.act(59, heads * k_dim), case.blank(59, heads * v_dim));
                let scale = (k_dim as f32).powf(-0.5);
                case.agree(&mut Cpus, &[out], 1e-5, |ops| ops.attend(q, &k, &v, &seqs, scale, out));
            }
        }
    }

    /// Alone, in chunks and with others, on any number of threads: the same bits.
    #[test]
    fn a_row_does_not_know_its_company() {
        const PARTS: [(u32, u32); 4] = [(0, 70), (1020, 20), (500, 30), (639, 1)];
        // Vectors that can be read where they lie, and others.
        let dims = [(24, 40), (32, 48)];
        let heads = [(8, 1), (6, 2), (1, 1), (4, 2)];
        for (dtype, (heads, kv_heads), (k_dim, v_dim)) in FORMATS
            .into_iter()
            .zip(heads)
            .flat_map(|(dtype, heads)| dims.map(|dims| (dtype, heads, dims)))
        {
            let rows = 121;
            let mut case = Case::new(22);
            let (seqs, tokens) = case.seqs(&PARTS, 16);
            let k = case.store(tokens, kv_heads, k_dim, dtype, 16);
            let v = case.store(tokens, kv_heads, v_dim, dtype, 16);
            let (q_cols, cols) = (heads * k_dim, heads * v_dim);
            let queries: Vec<f32> = (0..rows * q_cols).map(|_| case.float()).collect();
            let (q, out) = (case.act_of(rows, q_cols, &queries), case.blank(rows, cols));
            let mut steps = vec![];
            let mut first = 0;
            for (seq, (_, rows)) in PARTS.into_iter().enumerate() {
                for chunk in [1, 7, 64] {
                    for start in (0..rows).step_by(chunk) {
                        let some = start..rows.min(start + chunk as u32);
                        let count = some.len() as u32;
                        let step = case.some_rows(&PARTS, 16, seq, some);
                        let row = first + start;
                        let q = case.act_of(
                            count,
                            q_cols,
                            &queries[(row * q_cols) as usize..][..(count * q_cols) as usize],
                        );
                        steps.push((row, step, q, case.blank(count, cols)));
                    }
                }
                first += rows;
            }
            for same in case.cpus(&[1, 2, 7]).chunks_exact_mut(3) {
                let mut wanted: Option<Vec<u32>> = None;
                for d in same {
                    d.attend(q, &k, &v, &seqs, 0.4, out);
                    let all: Vec<u32> = d.download_act(out).iter().map(|x| x.to_bits()).collect();
                    assert_eq!(*wanted.get_or_insert_with(|| all.clone()), all);
                    for (row, seqs, q, out) in &steps {
                        d.attend(*q, &k, &v, seqs, 0.4, *out);
                        let got = d.download_act(*out);
                        let part = &all[(row * cols) as usize..][..got.len()];
                        assert!(got.iter().map(|x| x.to_bits()).eq(part.iter().copied()), "{row}");
                    }
                }
            }
        }
    }
}
