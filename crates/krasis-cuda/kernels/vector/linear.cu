// out[r, h, o] = Σ_i x[r, h, i] · w[h, o, i] + bias[h, o] for few rows.
#include <vector/few.cuh>

template <u32 EIGHTS>
__device__ __forceinline__ void product(u8 *shared, const u16 *x, u32 x_stride, const Outputs &w, const float *bias,
                                        u16 *out, u32 out_stride, u32 first_row, u32 rows, u32 split, u32 across) {
    few_rows<EIGHTS>(shared, x, x_stride, first_row + thread_number() % 32, 1, rows, w, split, across,
                     blockIdx.y * (across * (WARPS / split)), (w.rows + 15) / 16,
                     [&](u32 row, u32 tile, u32 output, float upper, float lower) {
                         u32 at = tile * 16 + output;
                         u16 *to = out + (u64)row * out_stride + at;
                         if (at < w.rows) to[0] = bf16_of(upper + (bias ? bias[at] : 0.0f));
                         if (at + 8 < w.rows) to[8] = bf16_of(lower + (bias ? bias[at + 8] : 0.0f));
                     });
}

// `each` rows to a block, those that meet the same outputs side by side in the grid's x so that the
// weight is read once; `across` tiles for each team of its warps in y, heads in z.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    linear_few(const u16 *x, u32 x_stride, const u8 *data, const u16 *scales, u32 cols, const float *bias, u16 *out,
               u32 out_stride, u32 rows, u32 each, u32 outputs, u32 split, u32 across) {
    DYNAMIC_SHARED(u8, shared);
    u32 head = blockIdx.z, first = blockIdx.x * each;
    Outputs w = rows_later(Outputs{data, scales, cols, 2, 8, outputs}, (u64)head * outputs);
    x += head * cols, out += head * outputs, rows = min(rows - first, each);
    if (bias) bias += head * outputs;
    if (each <= 8)
        product<1>(shared, x, x_stride, w, bias, out, out_stride, first, rows, split, across);
    else if (each <= 16)
        product<2>(shared, x, x_stride, w, bias, out, out_stride, first, rows, split, across);
    else
        product<4>(shared, x, x_stride, w, bias, out, out_stride, first, rows, split, across);
}
