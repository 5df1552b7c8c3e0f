// out[r, h, o] = Σ_i x[r, h, i] · w[h, o, i] + bias[h, o] for few rows.
#include <vector/few.cuh>

// The rows of a block, and its part of the operands.
template <u32 EIGHTS>
__device__ __forceinline__ void product(const u16 *x, u32 x_stride, const u8 *data, const u16 *scales, u32 cols,
                                        const float *bias, u16 *out, u32 out_stride, u32 rows, u32 each, u32 outputs,
                                        u32 split, u32 across) {
    DYNAMIC_SHARED(u8, shared);
    let_later_start();
    u32 head = blockIdx.z, first = blockIdx.x * each;
    Outputs w = rows_later(Outputs{data, scales, cols, 2, 8, outputs}, (u64)head * outputs);
    out += head * outputs;
    if (bias) bias += head * outputs;
    few_rows<EIGHTS, true>(shared, x + head * cols, x_stride, first + thread_number() % 32, 1, min(rows - first, each), w,
                     split, across, blockIdx.y, (outputs + 15) / 16, after_earlier,
                     [&](u32 row, u32 tile, u32 output, float upper, float lower) {
                         u32 at = tile * 16 + output;
                         u16 *to = out + (u64)row * out_stride + at;
                         if (at < outputs) to[0] = bf16_of(upper + (bias ? bias[at] : 0.0f));
                         if (at + 8 < outputs) to[8] = bf16_of(lower + (bias ? bias[at + 8] : 0.0f));
                     });
}

// `each` rows to a block, up to eight; those that meet the same outputs side by side in the grid's x
// so that the weight is read once; `across` tiles for each team of its warps in y, heads in z.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    linear_few(const u16 *x, u32 x_stride, const u8 *data, const u16 *scales, u32 cols, const float *bias, u16 *out,
               u32 out_stride, u32 rows, u32 each, u32 outputs, u32 split, u32 across) {
    product<1>(x, x_stride, data, scales, cols, bias, out, out_stride, rows, each, outputs, split, across);
}

// Up to 32 rows to a block.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_MORE)
    linear_more(const u16 *x, u32 x_stride, const u8 *data, const u16 *scales, u32 cols, const float *bias, u16 *out,
                u32 out_stride, u32 rows, u32 each, u32 outputs, u32 split, u32 across) {
    if (each <= 16)
        product<2>(x, x_stride, data, scales, cols, bias, out, out_stride, rows, each, outputs, split, across);
    else
        product<4>(x, x_stride, data, scales, cols, bias, out, out_stride, rows, each, outputs, split, across);
}
