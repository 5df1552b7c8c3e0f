//! What changes from step to step, and where sequences keep their past.

use bytemuck::cast_slice;
use half::{bf16, f16};
use krasis_core::{F8E4M3, KvDtype, Slot};

/// Rows of a sequence in a step from which it is a prompt there: keys and values of its past, made for all
/// of them, take less time than attention in the latent space does. On an H200 a row meets a key of 16
/// heads in 0.19 ns there, and in 0.03 ns here after 14 ns for the key; fewer rows leave multiprocessors
/// idle.
pub const PROMPT_ROWS: u32 = 256;

/// Keys of prompts are counted in blocks of so many.
pub const KEYS_TOGETHER: u32 = 128;

/// What the host knows of the sequences that a step has many rows of, which come behind the others.
/// Launches may depend on it: what is repeated has no prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prompts {
    /// Sequences with [`PROMPT_ROWS`] and more.
    pub count: u32,
    /// Rows that they have together.
    pub rows: u32,
    /// Positions that they see together, each rounded up to [`KEYS_TOGETHER`].
    pub keys: u32,
}

impl Prompts {
    /// None.
    pub const NONE: Prompts = Prompts { count: 0, rows: 0, keys: 0 };

    /// Those of a step: `first_row [sequences + 1]`, `positions [rows]`.
    pub fn of(first_row: &[u32], positions: &[u32]) -> Prompts {
        let mut prompts = Prompts::NONE;
        for rows in first_row.windows(2) {
            if rows[1] - rows[0] >= PROMPT_ROWS {
                prompts.count += 1;
                prompts.rows += rows[1] - rows[0];
                let keys = positions[rows[1] as usize - 1] + 1;
                prompts.keys += keys.next_multiple_of(KEYS_TOGETHER);
            } else {
                assert!(prompts.count == 0, "prompts come behind sequences of few rows");
            }
        }
        prompts
    }
}

/// The sequences of a step, in device memory. Rows of one sequence are consecutive and ascending.
#[derive(Clone, Copy, Debug)]
pub struct Seqs {
    /// Sequences in this step.
    pub count: u32,
    /// `[rows]` the sequence that a row belongs to, as an index below `count`.
    pub row_seq: Slot<u32>,
    /// `[rows]` position of a row's token in its sequence, from 0.
    pub positions: Slot<u32>,
    /// `[count + 1]` the first row of each sequence, and the end.
    pub first_row: Slot<u32>,
    /// `[count, pages_max]` the KV pages of each sequence, in order.
    pub pages: Slot<u32>,
    /// Entries of a sequence's page list.
    pub pages_max: u32,
    /// `[count]` the place of each sequence in the recurrent state.
    pub state: Slot<u32>,
    /// The last of them.
    pub prompts: Prompts,
}

impl Seqs {
    /// Those before the prompts.
    pub fn few(self) -> Seqs {
        Seqs { count: self.count - self.prompts.count, prompts: Prompts::NONE, ..self }
    }
}

/// Keys or values of one layer: `[token, head, dim]`, tokens grouped into pages.
#[derive(Clone, Copy, Debug)]
pub struct KvStore {
    /// `pages · page · heads · dim` elements of `dtype`.
    pub data: Slot<u8>,
    /// `[token, head]` scales of an FP8 store; empty for others.
    pub scales: Slot<f32>,
    /// Element type.
    pub dtype: KvDtype,
    /// Heads of a token.
    pub heads: u32,
    /// Elements of a head.
    pub dim: u32,
    /// Tokens of a page.
    pub page: u32,
}

impl KvStore {
    /// Where the token at `position` lies, given its sequence's page list.
    pub fn token(&self, pages: &[u32], position: u32) -> usize {
        let page = pages[(position / self.page) as usize];
        page as usize * self.page as usize + (position % self.page) as usize
    }

    /// Where a page lies: its numbers, and its scales if it has any.
    pub fn page(&self, page: u32) -> [Slot<u8>; 2] {
        let vectors = u64::from(self.page) * u64::from(self.heads);
        let bytes = vectors * u64::from(self.dim * self.dtype.bytes());
        let data = Slot::new(self.data.start + u64::from(page) * bytes, bytes);
        if self.scales.is_empty() {
            return [data, Slot::EMPTY];
        }
        [data, Slot::new(self.scales.start + u64::from(page) * 4 * vectors, 4 * vectors)]
    }

    /// Writes one head of one token.
    pub fn put(&self, data: &mut [u8], scales: &mut [f32], token: usize, head: u32, x: &[f32]) {
        let at = token * self.heads as usize + head as usize;
        let bytes = self.dim as usize * self.dtype.bytes() as usize;
        let data = &mut data[at * bytes..][..bytes];
        match self.dtype {
            KvDtype::F32 => data.copy_from_slice(cast_slice(x)),
            KvDtype::Bf16 => {
                for (to, &x) in data.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                    *to = bf16::from_f32(x).to_le_bytes();
                }
            }
            KvDtype::F16 => {
                let (min, max) = (f16::MIN.to_f32(), f16::MAX.to_f32());
                for (to, &x) in data.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                    *to = f16::from_f32(x.clamp(min, max)).to_le_bytes();
                }
            }
            KvDtype::F8E4M3 => {
                let largest = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                let scale = if largest > 0.0 { largest / F8E4M3::MAX } else { 1.0 };
                scales[at] = scale;
                for (to, &x) in data.iter_mut().zip(x) {
                    *to = F8E4M3::from_f32(x / scale).0;
                }
            }
        }
    }

    /// Reads one head of one token; `scratch` holds the numbers unless they lie there as f32.
    pub fn get<'a>(
        &self,
        data: &'a [u8],
        scales: &[f32],
        token: usize,
        head: u32,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let at = token * self.heads as usize + head as usize;
        let bytes = self.dim as usize * self.dtype.bytes() as usize;
        let data = &data[at * bytes..][..bytes];
        let scratch = &mut scratch[..self.dim as usize];
        match self.dtype {
            KvDtype::F32 => return cast_slice(data),
            KvDtype::Bf16 => {
                for (to, from) in scratch.iter_mut().zip(data.as_chunks::<2>().0) {
                    *to = bf16::from_le_bytes(*from).to_f32();
                }
            }
            KvDtype::F16 => {
                for (to, from) in scratch.iter_mut().zip(data.as_chunks::<2>().0) {
                    *to = f16::from_le_bytes(*from).to_f32();
                }
            }
            KvDtype::F8E4M3 => {
                for (to, &from) in scratch.iter_mut().zip(data) {
                    *to = F8E4M3(from).to_f32() * scales[at];
                }
            }
        }
        scratch
    }
}

/// What a recurrent layer remembers of each sequence: `[place, each]` floats. A sequence that
/// starts at position 0 starts from zeros, whoever had the place before.
#[derive(Clone, Copy, Debug)]
pub struct StateStore {
    /// The memory.
    pub data: Slot<f32>,
    /// Floats of one sequence.
    pub each: u32,
}

impl StateStore {
    /// Where a sequence's state lies.
    pub fn place(&self, place: u32) -> Slot<u8> {
        let bytes = 4 * u64::from(self.each);
        Slot::new(self.data.start + u64::from(place) * bytes, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_of_many_rows_are_prompts() {
        let positions: Vec<u32> = (7..8).chain(100..355).chain(0..256).chain(1000..1300).collect();
        let prompts = Prompts::of(&[0, 1, 256, 512, 812], &positions);
        assert_eq!(prompts, Prompts { count: 2, rows: 556, keys: 256 + 1408 });
        assert_eq!(Prompts::of(&[0, 1, 256], &positions), Prompts::NONE);
    }

    #[test]
    #[should_panic(expected = "behind")]
    fn prompts_stand_behind_all_others() {
        Prompts::of(&[0, 256, 257], &(0..257).collect::<Vec<_>>());
    }

    #[test]
    fn half_precision_is_cut_and_never_infinite() {
        let dtype = KvDtype::F16;
        let (data, scales) = (Slot::EMPTY, Slot::EMPTY);
        let store = KvStore { data, scales, dtype, heads: 1, dim: 5, page: 1 };
        let (mut bytes, mut scratch) = ([0; 10], [0.0; 5]);
        store.put(&mut bytes, &mut [], 0, 0, &[1e6, -f32::INFINITY, 65504.0, 3e-7, 0.1]);
        let got = store.get(&bytes, &[], 0, 0, &mut scratch);
        assert_eq!(got, [65504.0, -65504.0, 65504.0, 2.980_232_2e-7, 0.099_975_586]);
    }
}
