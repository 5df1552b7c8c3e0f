//! Latent attention of prompts over keys and values that are made for all their rows, a window of the past
//! at a time: three launches for each (`kernels/attend/mla_latents.cu`, `mla_expand.cu`, `mla_prefill.cu`).

use crate::activation::Activation;
use crate::attention::{
    Choice, EXPAND_SHARED, EXPANDED, EXPANDED_LATENT, EXPANDED_VALUE, LATENT_ROPE,
};
use crate::cuda::Cuda;
use crate::machine::{Arg, Kernel, Machine, Shape};
use crate::programs::kv_variant;
use krasis_core::{Act, DType, Format, Mat, Slot, Weight};
use krasis_ops::{KEYS_TOGETHER, KvStore, Seqs, mla_mix};

/// Threads of `mla_expand`, and of `mla_latents` with its keys of a block.
const THREADS: u32 = 256;
const LATENTS: u32 = 8;

/// Floats that are kept of a row and head from window to window: `VALUE_DIM` and `KEPT` of the kernel.
const KEPT_SUMS: u64 = EXPANDED_VALUE as u64;
const KEPT: u64 = 8;

/// One behind the other in a slot.
struct Places {
    next: u64,
    end: u64,
}

impl Places {
    fn of<A: Activation>(slot: Slot<Act>) -> Places {
        Places { next: slot.start, end: slot.start + slot.len * u64::from(A::BYTES) }
    }

    fn take(&mut self, bytes: u64) -> Slot<u8> {
        let slot = Slot::new(self.next, bytes);
        self.next += bytes;
        assert!(self.next <= self.end, "scratch memory for rows in the latent space is enough");
        slot
    }
}

/// Keys of a window, as many as there is room for: keys and values of all heads, a latent and a rotated key
/// each, in BF16.
fn window<A: Activation>(room: Slot<Act>, heads: u32) -> u32 {
    let each = 2 * (heads * 2 * EXPANDED_VALUE + EXPANDED_LATENT + LATENT_ROPE);
    let most = room.len * u64::from(A::BYTES) / u64::from(each);
    u32::try_from(most).unwrap_or(u32::MAX) / KEYS_TOGETHER * KEYS_TOGETHER
}

impl<A: Activation, M: Machine> Cuda<A, M> {
    pub(crate) fn latent_mix(
        &mut self,
        q: [Mat<Act>; 2],
        absorb: [&Weight; 2],
        stores: [&KvStore; 2],
        seqs: &Seqs,
        scale: f32,
        scratch: [Slot<Act>; 2],
        out: Mat<Act>,
    ) {
        let expanded = if seqs.prompts.count > 0 { self.expands(q, absorb, stores) } else { None };
        let heads = q[0].cols / absorb[0].cols;
        let Some(choice) = expanded.filter(|_| window::<A>(scratch[0], heads) > 0) else {
            return mla_mix::absorbed(self, q, absorb, stores, seqs, scale, scratch, out);
        };
        let few = out.rows - seqs.prompts.rows;
        if few > 0 {
            let (q, seqs, out) = (q.map(|q| q.first(few)), seqs.few(), out.first(few));
            mla_mix::absorbed(self, q, absorb, stores, &seqs, scale, scratch, out);
        }
        self.mix_expanded(choice, q, absorb, stores, seqs, scale, scratch, out);
    }

    /// The kernel for heads of these sizes, if there is one.
    fn expands(
        &self,
        [q, q_rope]: [Mat<Act>; 2],
        [absorb_k, absorb_v]: [&Weight; 2],
        [latent, rope]: [&KvStore; 2],
    ) -> Option<Choice> {
        let heads = q.cols / absorb_k.cols;
        let sizes = [absorb_k.cols, rope.dim, absorb_v.rows / heads, latent.dim];
        let known = [EXPANDED_VALUE, LATENT_ROPE, EXPANDED_VALUE, EXPANDED_LATENT];
        let bf16 = [absorb_k, absorb_v].iter().all(|w| w.format == Format::Float(DType::Bf16));
        assert_eq!(q_rope.cols, heads * rope.dim, "query heads alike");
        assert_eq!((latent.dtype, latent.page), (rope.dtype, rope.page), "stores alike");
        let limits = self.machine().limits();
        let choose = || {
            EXPANDED.choose(EXPANDED_VALUE + LATENT_ROPE, krasis_core::KvDtype::Bf16, heads, limits)
        };
        (A::BYTES == 2 && bf16 && sizes == known).then(choose).flatten()
    }

    fn mix_expanded(
        &mut self,
        choice: Choice,
        [q, q_rope]: [Mat<Act>; 2],
        [absorb_k, absorb_v]: [&Weight; 2],
        [latent, rope]: [&KvStore; 2],
        seqs: &Seqs,
        scale: f32,
        [past, kept]: [Slot<Act>; 2],
        out: Mat<Act>,
    ) {
        let (heads, prompts) = (q.cols / absorb_k.cols, seqs.prompts);
        let window = window::<A>(past, heads).min(prompts.keys);
        let [all, of_head, latents, ropes] =
            [heads * EXPANDED_VALUE, EXPANDED_VALUE, latent.dim, rope.dim]
                .map(|dim| 2 * u64::from(window) * u64::from(dim));
        assert_eq!(all, u64::from(heads) * of_head, "a head's keys are as long as its values");
        let mut places = Places::of::<A>(past);
        let [keys, values, latents, ropes] =
            [all, all, latents, ropes].map(|bytes| self.slot(places.take(bytes)));
        let [kept_sums, kept] = if window < prompts.keys {
            let mut places = Places::of::<A>(kept);
            let each = u64::from(out.rows) * u64::from(heads) * 4;
            [KEPT_SUMS, KEPT].map(|floats| self.slot(places.take(each * floats)))
        } else {
            [Arg::NULL; 2]
        };
        let first = seqs.count - prompts.count;
        let [first_row, pages] = [(seqs.first_row, first), (seqs.pages, first * seqs.pages_max)]
            .map(|(slot, skipped)| {
                let skipped = u64::from(skipped);
                self.slot(Slot::<u32>::new(slot.start + 4 * skipped, slot.len - skipped))
            });
        let positions = self.slot(seqs.positions);
        for window_first in (0..prompts.keys).step_by(window as usize) {
            let count = window.min(prompts.keys - window_first);
            let args = [
                self.slot(latent.data),
                self.slot(latent.scales),
                latent.dim.into(),
                self.slot(rope.data),
                self.slot(rope.scales),
                rope.dim.into(),
                latent.page.into(),
                first_row,
                positions,
                pages,
                seqs.pages_max.into(),
                prompts.count.into(),
                window_first.into(),
                latents,
                ropes,
            ];
            let gather = Kernel { entry: "mla_latents", variant: kv_variant(latent.dtype) };
            let grid = [count / LATENTS, 1, 1];
            self.launch(gather, Shape { grid, block: THREADS, shared: 0 }, &args);
            let weights = [self.slot(absorb_k.data), self.slot(absorb_v.data)];
            let args = [latents, weights[0], weights[1], window.into(), keys, values];
            let grid = [heads, count / KEYS_TOGETHER, 1];
            let shape = Shape { grid, block: THREADS, shared: EXPAND_SHARED };
            self.launch(Kernel { entry: "mla_expand", variant: 0 }, shape, &args);
            let args = [
                self.mat(q),
                q.stride.into(),
                self.mat(q_rope),
                q_rope.stride.into(),
                keys,
                ropes,
                values,
                heads.into(),
                first_row,
                positions,
                prompts.count.into(),
                out.rows.into(),
                window_first.into(),
                window.into(),
                scale.into(),
                self.mat(out),
                out.stride.into(),
                kept_sums,
                kept,
            ];
            // Each prompt may end in a tile that is not full.
            let tiles = prompts.rows / choice.block.rows_of_all() + prompts.count;
            self.launch_block(choice, [heads * tiles, 1, 1], &args);
        }
    }
}
