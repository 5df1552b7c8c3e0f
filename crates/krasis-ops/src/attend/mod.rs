//! Causal attention of grouped query heads (Vaswani et al., 2017; Ainslie et al., GQA, 2023):
//! `out[r, h] = Σ_j softmax_j(scale · q[r, h]·k[j, g]) · v[j, g]` over positions `j` up to the
//! row's own, `g = h / (heads / kv heads)`. Keys and values of the row itself are in the cache
//! already: append first, then attend.

mod cpu;
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

#[cfg(test)]
mod tests {
    use crate::testing::Case;
    use krasis_core::KvDtype;

    #[test]
    fn groups_pages_and_positions() {
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::F8E4M3] {
            for (heads, kv_heads) in [(1, 1), (4, 2), (6, 1)] {
                let mut case = Case::new(9);
                let (seqs, tokens) = case.seqs(&[(0, 1), (6, 3), (13, 1)], 4);
                let k = case.store(tokens, kv_heads, 12, dtype, 4);
                let v = case.store(tokens, kv_heads, 10, dtype, 4);
                let all = case.act(5, heads * 12 + 3);
                let q = all.cols(3, heads * 12);
                let out = case.blank(5, heads * 10);
                case.agree(&[out], 1e-5, |ops| ops.attend(q, &k, &v, &seqs, 1.7, out));
            }
        }
    }
}
