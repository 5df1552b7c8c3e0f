//! Latent attention from a head's queries `q [nope | rope]` to its values (DeepSeek-V2, 2024), a token's
//! past being one latent `c` for all heads:
//!
//! ```text
//! k[j, h] = Wk[h] · c[j]    v[j, h] = Wv[h] · c[j]
//! out[r, h] = Σ_j softmax_j(scale · (q[r, h]·k[j, h] + q_rope[r, h]·k_rope[j])) · v[j, h]
//! ```
//!
//! With the product moved to the other side, queries enter the latent space and what is mixed leaves it, so
//! that keys and values are never made: [`absorbed`]. That reads least, and 3.4 times as many operations
//! meet each row and position (576 + 512 columns for 192 + 128). A device may make keys and values instead
//! where a sequence has the rows that are worth it ([`crate::Prompts`]), in the scratch memory: two slots of
//! `[rows, heads · latent]`, the more rows the better. `out` may lie where `q` does, in which case nothing is
//! left of the queries.

use crate::{KvStore, Ops, Seqs};
use krasis_core::{Act, Mat, Slot, Weight};

/// [`Ops::mla_mix`] in the latent space: `absorb` is `Wk` transposed, `[heads · latent, nope]`, and `Wv`,
/// `[heads · value, latent]`.
pub fn absorbed<O: Ops + ?Sized>(
    o: &mut O,
    [q, q_rope]: [Mat<Act>; 2],
    [absorb_k, absorb_v]: [&Weight; 2],
    [latent, rope]: [&KvStore; 2],
    seqs: &Seqs,
    scale: f32,
    scratch: [Slot<Act>; 2],
    out: Mat<Act>,
) {
    let (rows, heads) = (q.rows, q.cols / absorb_k.cols);
    let [q_latent, mixed] = scratch.map(|slot| {
        let (cols, len) = (heads * latent.dim, u64::from(rows * heads) * u64::from(latent.dim));
        assert!(len <= slot.len, "{rows} rows of {cols} in scratch memory of {}", slot.len);
        Mat::new(Slot::new(slot.start, len), rows, cols)
    });
    o.linear_heads(q, absorb_k, heads, q_latent);
    o.mla_attend(q_latent, q_rope, latent, rope, seqs, scale, mixed);
    o.linear_heads(mixed, absorb_v, heads, out);
}

pub(crate) mod cases {
    use crate::testing::{Case, Judge};
    use krasis_core::{DType, Format, KvDtype};

    cases![queries_to_values, prompts_and_others, windows_of_the_past];

    /// `(heads, nope, rope, value, latent)`.
    type Heads = (u32, u32, u32, u32, u32);

    /// Of DeepSeek and Kimi, but for their number.
    const USUAL: Heads = (2, 128, 64, 128, 512);

    fn queries_to_values(on: &mut dyn Judge) {
        for heads in [(3, 20, 6, 14, 24), (2, 16, 8, 24, 40), USUAL] {
            for dtype in [KvDtype::F32, KvDtype::F8E4M3] {
                mix(on, heads, dtype, &[(2, 4), (33, 1), (0, 9)], 20);
            }
        }
    }

    /// More than a tile of rows, less than one, and sequences of few rows before them.
    fn prompts_and_others(on: &mut dyn Judge) {
        let steps =
            [&[(0, 300)][..], &[(40, 3), (77, 1), (130, 256), (0, 270)], &[(5, 255), (1, 256)]];
        for (parts, dtype) in steps.iter().zip([KvDtype::Bf16, KvDtype::Bf16, KvDtype::F8E4M3]) {
            mix(on, USUAL, dtype, parts, 600);
        }
    }

    /// Scratch memory for as many rows holds no more than 128, 256 or 384 tokens' keys and values.
    fn windows_of_the_past(on: &mut dyn Judge) {
        for rows in [261, 300, 520] {
            mix(on, USUAL, KvDtype::Bf16, &[(9, 5), (370, 256)], rows);
        }
    }

    fn mix(
        on: &mut dyn Judge,
        (heads, nope, rope, value, latent): Heads,
        dtype: KvDtype,
        parts: &[(u32, u32)],
        scratch_rows: u32,
    ) {
        let mut case = Case::new(51);
        let (seqs, tokens) = case.seqs(parts, 16);
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let stores = [latent, rope].map(|dim| case.store(tokens, 1, dim, dtype, 16));
        let bf16 = Format::Float(DType::Bf16);
        let absorb_k = case.weight(heads * latent, nope, bf16);
        let absorb_v = case.weight(heads * value, latent, bf16);
        // Keys are sums of latents: smaller queries give scores as wide as those of the rotated parts, and
        // both so narrow that what BF16 loses of a key decides nothing.
        let cols = heads * (nope + rope).max(value);
        let number = |i: u32| if i % cols < heads * nope { 0.05 } else { 1.0 } * case.float();
        let numbers: Vec<f32> = (0..rows * cols).map(number).collect();
        let all = case.act_of(rows, cols, &numbers);
        let q = all.cols(0, heads * nope);
        let q_rope = all.cols(heads * nope, heads * rope);
        let out = case.blank(rows, heads * value);
        let scratch = [(); 2].map(|()| case.blank(scratch_rows, heads * latent).at);
        let run = |ops: &mut dyn crate::Ops, to| {
            let [latent, rope] = &stores;
            ops.mla_mix(
                [q, q_rope],
                [&absorb_k, &absorb_v],
                [latent, rope],
                &seqs,
                0.4,
                scratch,
                to,
            );
        };
        case.agree(on, &[out], 5e-3, |ops| run(ops, out));
        let in_place = all.cols(0, heads * value);
        case.agree(on, &[in_place], 5e-3, |ops| run(ops, in_place));
    }
}
