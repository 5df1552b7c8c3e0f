// Routed experts for few pairs of token and choice: up to eight of one expert meet its weights at once.
// `tiles` are those of sort_pairs, the grid's y; without them each pair is alone there.
#include <vector/few.cuh>

// What a block multiplies: an expert, the pair of each of the first lanes, and how many.
struct Meeting {
    u32 expert, pair, count;
};

__device__ __forceinline__ Meeting meeting(const u32 *chosen, const u32 *sorted, const u32 *tiles) {
    if (!tiles) return Meeting{chosen[blockIdx.y], blockIdx.y, 1};
    if (blockIdx.y >= tiles[0]) return Meeting{0, 0, 0};
    const u32 *tile = tiles + 1 + 3 * blockIdx.y;
    u32 count = tile[2];
    return Meeting{tile[0], sorted[tile[1] + min(thread_number() % 32, count - 1)], count};
}

// inner[pair] = silu(gate · x[pair / top_k]) · (up · x[pair / top_k]); an expert is `gate_rows` rows
// of gate, whole blocks in lines, then as many of up.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    gate_up_few(const u16 *x, u32 x_stride, const u32 *chosen, const u32 *sorted, const u32 *tiles, u32 top_k,
                const u8 *data, const u16 *scales, u32 cols, u32 gate_rows, u16 *inner, u32 inner_stride, u32 inter,
                u32 split, u32 across) {
    DYNAMIC_SHARED(u8, shared);
    Meeting at = meeting(chosen, sorted, tiles);
    if (at.count == 0) return;
    Outputs w = rows_later(Outputs{data, scales, cols, 1, gate_rows, inter}, 2 * (u64)at.expert * gate_rows);
    few_rows<1>(shared, x, x_stride, at.pair, top_k, at.count, w, split, across,
                blockIdx.x * (across * (WARPS / split)), (inter + 7) / 8,
                [&](u32 pair, u32 tile, u32 output, float gate, float up) {
                    u32 at = tile * 8 + output;
                    if (at < inter) inner[(u64)pair * inner_stride + at] = bf16_of(silu(gate) * up);
                });
}

// out[pair] = down · inner[pair].
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    down_few(const u16 *inner, u32 inner_stride, const u32 *chosen, const u32 *sorted, const u32 *tiles,
             const u8 *data, const u16 *scales, u32 cols, u32 down_rows, u16 *out, u32 out_stride, u32 hidden,
             u32 split, u32 across) {
    DYNAMIC_SHARED(u8, shared);
    Meeting at = meeting(chosen, sorted, tiles);
    if (at.count == 0) return;
    Outputs w = rows_later(Outputs{data, scales, cols, 2, 8, hidden}, (u64)at.expert * down_rows);
    few_rows<1>(shared, inner, inner_stride, at.pair, 1, at.count, w, split, across,
                blockIdx.x * (across * (WARPS / split)), (hidden + 15) / 16,
                [&](u32 pair, u32 tile, u32 output, float upper, float lower) {
                    u32 at = tile * 16 + output;
                    u16 *to = out + (u64)pair * out_stride + at;
                    if (at < hidden) to[0] = bf16_of(upper);
                    if (at + 8 < hidden) to[8] = bf16_of(lower);
                });
}
