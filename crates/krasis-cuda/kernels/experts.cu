// Routed experts: gate and up with SiLU, then down. `gate_rows` and `down_rows` are the stored rows
// of an expert's part, whole blocks in lines; pairs are (token, choice).
#include <absent.cuh>
#include <product.cuh>

// One pair and four outputs to a block: grid [outputs / 4, pairs].
extern "C" __global__ void __launch_bounds__(128)
    gate_up_vector(const act *x, u32 x_stride, u32 aligned, const u32 *chosen, u32 top_k,
                   const u8 *data, const bf16 *scales, u32 cols, u32 group, u32 gate_rows, act *inner,
                   u32 inner_stride, u32 inter) {
    let_later_start();
    wait_for_earlier();
    u32 output = blockIdx.x * 4 + warp(), pair = blockIdx.y;
    if (output >= inter || chosen[pair] == ABSENT) return;
    Weight w{data, scales, cols, group};
    const act *row = x + (u64)(pair / top_k) * x_stride;
    u64 gate = 2 * (u64)chosen[pair] * gate_rows + output;
    float g = warp_product(w, gate, row, aligned), u = warp_product(w, gate + gate_rows, row, aligned);
    if (lane() == 0) inner[(u64)pair * inner_stride + output] = rounded<act>(silu(g) * u);
}

extern "C" __global__ void __launch_bounds__(128)
    down_vector(const act *inner, u32 inner_stride, u32 aligned, const u32 *chosen, const u8 *data,
                const bf16 *scales, u32 cols, u32 group, u32 down_rows, act *out, u32 out_stride,
                u32 hidden) {
    let_later_start();
    wait_for_earlier();
    u32 output = blockIdx.x * 4 + warp(), pair = blockIdx.y;
    if (output >= hidden || chosen[pair] == ABSENT) return;
    Weight w{data, scales, cols, group};
    u64 row = (u64)chosen[pair] * down_rows + output;
    float sum = warp_product(w, row, inner + (u64)pair * inner_stride, aligned);
    if (lane() == 0) out[(u64)pair * out_stride + output] = rounded<act>(sum);
}

// One tile of sort_pairs and 64 outputs to a block: grid [most tiles, outputs / 64].
extern "C" __global__ void __launch_bounds__(128)
    gate_up_tile(const act *x, u32 x_stride, u32 aligned, const u32 *sorted, const u32 *tiles,
                 u32 top_k, const u8 *data, const bf16 *scales, u32 cols, u32 group, u32 gate_rows,
                 act *inner, u32 inner_stride, u32 inter) {
    if (blockIdx.x >= tiles[0]) return;
    const u32 *tile = tiles + 1 + 3 * blockIdx.x;
    const u32 *pairs = sorted + tile[1];
    u32 first_output = blockIdx.y * TILE;
    Weight w{data, scales, cols, group};
    u64 gate = 2 * (u64)tile[0] * gate_rows + first_output;
    const u64 first[2] = {gate, gate + gate_rows};
    tile_products<2>(
        w, first, tile[2], min(inter - first_output, TILE), aligned,
        [&](u32 row) { return x + (u64)(pairs[row] / top_k) * x_stride; },
        [&](u32 row, u32 output, const float(&sums)[2]) {
            inner[(u64)pairs[row] * inner_stride + first_output + output] =
                rounded<act>(silu(sums[0]) * sums[1]);
        });
}

extern "C" __global__ void __launch_bounds__(128)
    down_tile(const act *inner, u32 inner_stride, u32 aligned, const u32 *sorted, const u32 *tiles,
              const u8 *data, const bf16 *scales, u32 cols, u32 group, u32 down_rows, act *out,
              u32 out_stride, u32 hidden) {
    if (blockIdx.x >= tiles[0]) return;
    const u32 *tile = tiles + 1 + 3 * blockIdx.x;
    const u32 *pairs = sorted + tile[1];
    u32 first_output = blockIdx.y * TILE;
    Weight w{data, scales, cols, group};
    const u64 first[1] = {(u64)tile[0] * down_rows + first_output};
    tile_products<1>(
        w, first, tile[2], min(hidden - first_output, TILE), aligned,
        [&](u32 row) { return inner + (u64)pairs[row] * inner_stride; },
        [&](u32 row, u32 output, const float(&sum)[1]) {
            out[(u64)pairs[row] * out_stride + first_output + output] = rounded<act>(sum[0]);
        });
}
