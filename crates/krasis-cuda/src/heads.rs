//! What lies between projections and attention as one launch, for either kind of attention.

use crate::activation::Activation;
use crate::cuda::Cuda;
use crate::machine::{Arg, Kernel, Machine, Shape};
use crate::programs::kv_variant;
use krasis_core::{Act, Mat, Weight};
use krasis_ops::{KvStore, Seqs, Turns, heads};

/// Heads of a block, and elements of one that is turned: `WARPS` and `DIM_MAX` of `kernels/kv.cu`.
/// Wider ones are made ready by small operations.
const TOGETHER: u32 = 8;
const DIM_MAX: u32 = 256;

/// A warp for each of so many heads of each row.
fn shape(rows: u32, heads: u32) -> Shape {
    Shape { grid: [rows, heads.div_ceil(TOGETHER), 1], block: TOGETHER * 32, shared: 0 }
}

impl<A: Activation, M: Machine> Cuda<A, M> {
    pub(crate) fn grouped_heads(
        &mut self,
        qkv: [Mat<Act>; 3],
        norms: Option<&[Weight; 2]>,
        eps: f32,
        turns: Turns,
        stores: [&KvStore; 2],
        seqs: &Seqs,
    ) {
        let ([q, k, v], [k_store, v_store]) = (qkv, stores);
        if k_store.dim > DIM_MAX {
            return heads::gqa(self, qkv, norms, eps, turns, stores, seqs);
        }
        let (dim, half, kv_heads) = (k_store.dim, turns.freqs.cols, k_store.heads);
        let alike = (v_store.dim, v_store.heads, v_store.dtype, v_store.page)
            == (dim, kv_heads, k_store.dtype, k_store.page);
        assert!(alike && k.cols == v.cols && k.cols == kv_heads * dim, "stores alike");
        assert!(q.stride == k.stride && k.stride == v.stride, "columns of one projection");
        assert!(2 * half <= dim, "{half} pairs in heads of {dim}");
        let heads = q.cols / dim;
        let [q_norm, k_norm] = norms.map_or([Arg::NULL; 2], |norms| {
            assert!(norms.iter().all(|norm| norm.cols == dim), "a weight per column of a head");
            norms.each_ref().map(|norm| self.vector(norm))
        });
        let args = [
            self.mat(q),
            self.mat(k),
            self.mat(v),
            q.stride.into(),
            heads.into(),
            kv_heads.into(),
            dim.into(),
            q_norm,
            k_norm,
            eps.into(),
            self.vector(&turns.freqs),
            half.into(),
            turns.scale.into(),
            self.slot(k_store.data),
            self.slot(k_store.scales),
            self.slot(v_store.data),
            self.slot(v_store.scales),
            k_store.page.into(),
            self.slot(seqs.row_seq),
            self.slot(seqs.positions),
            self.slot(seqs.pages),
            seqs.pages_max.into(),
        ];
        let kernel = Kernel { entry: "gqa_heads", variant: kv_variant(k_store.dtype) };
        self.launch(kernel, shape(q.rows, heads + 2 * kv_heads), &args);
    }

    pub(crate) fn latent_heads(
        &mut self,
        q_rope: Mat<Act>,
        kept: [Mat<Act>; 2],
        norm: &Weight,
        eps: f32,
        turns: Turns,
        stores: [&KvStore; 2],
        seqs: &Seqs,
    ) {
        let ([latent, k_rope], [latent_store, rope_store]) = (kept, stores);
        if rope_store.dim > DIM_MAX {
            return heads::mla(self, q_rope, kept, norm, eps, turns, stores, seqs);
        }
        let (dim, half) = (rope_store.dim, turns.freqs.cols);
        let alike = (latent_store.heads, latent_store.dtype, latent_store.page)
            == (1, rope_store.dtype, rope_store.page);
        assert!(alike && rope_store.heads == 1, "stores alike, of one head");
        assert_eq!((latent.cols, k_rope.cols), (latent_store.dim, dim), "columns of a head");
        assert_eq!((latent.stride, norm.cols), (k_rope.stride, latent.cols), "one projection");
        assert!(2 * half <= dim, "{half} pairs in heads of {dim}");
        let heads = q_rope.cols / dim;
        let args = [
            self.mat(q_rope),
            q_rope.stride.into(),
            heads.into(),
            self.mat(latent),
            self.mat(k_rope),
            latent.stride.into(),
            latent.cols.into(),
            dim.into(),
            self.vector(norm),
            eps.into(),
            self.vector(&turns.freqs),
            half.into(),
            turns.scale.into(),
            self.slot(latent_store.data),
            self.slot(latent_store.scales),
            self.slot(rope_store.data),
            self.slot(rope_store.scales),
            rope_store.page.into(),
            self.slot(seqs.row_seq),
            self.slot(seqs.positions),
            self.slot(seqs.pages),
            seqs.pages_max.into(),
        ];
        let kernel = Kernel { entry: "mla_heads", variant: kv_variant(rope_store.dtype) };
        self.launch(kernel, shape(q_rope.rows, heads + 2), &args);
    }
}
