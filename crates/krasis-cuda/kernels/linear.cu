// out[r, h, o] = Σ_i x[r, h, i] · w[h, o, i] + bias[h, o]. A plain product has one head.
#include <product.cuh>

// Up to VECTOR_ROWS rows; a warp per output, four to a block, heads in the grid's z.
extern "C" __global__ void __launch_bounds__(128)
    linear_vector(const act *x, u32 x_stride, u32 aligned, const u8 *data, const bf16 *scales, u32 cols,
                  u32 group, const float *bias, act *out, u32 out_stride, u32 rows, u32 outputs) {
    let_later_start();
    wait_for_earlier();
    u32 output = blockIdx.x * 4 + warp(), head = blockIdx.z;
    if (output >= outputs) return;
    Weight w{data, scales, cols, group};
    float sums[VECTOR_ROWS];
    u32 row = head * outputs + output;
    warp_products(w, row, x + (u64)head * cols, x_stride, rows, aligned, sums);
    if (lane() != 0) return;
    float add = bias ? bias[row] : 0.0f;
#pragma unroll
    for (u32 r = 0; r < VECTOR_ROWS; r++)
        if (r < rows) out[(u64)r * out_stride + row] = rounded<act>(sums[r] + add);
}

// Any number of rows; a block per tile, row tiles in the grid's x.
extern "C" __global__ void __launch_bounds__(128)
    linear_tile(const act *x, u32 x_stride, u32 aligned, const u8 *data, const bf16 *scales, u32 cols,
                u32 group, const float *bias, act *out, u32 out_stride, u32 rows, u32 outputs) {
    u32 first_row = blockIdx.x * TILE, first_output = blockIdx.y * TILE, head = blockIdx.z;
    Weight w{data, scales, cols, group};
    u32 col = head * outputs + first_output;
    const u64 first[1] = {col};
    x += (u64)first_row * x_stride + (u64)head * cols;
    out += (u64)first_row * out_stride + col;
    tile_products<1>(
        w, first, min(rows - first_row, TILE), min(outputs - first_output, TILE), aligned,
        [&](u32 row) { return x + (u64)row * x_stride; },
        [&](u32 row, u32 output, const float(&sum)[1]) {
            float add = bias ? bias[col + output] : 0.0f;
            out[(u64)row * out_stride + output] = rounded<act>(sum[0] + add);
        });
}
