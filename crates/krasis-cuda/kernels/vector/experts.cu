// Routed experts for few pairs of token and choice: up to `each` of one expert meet its weights at once.
// `tiles` are those of sort_pairs, the grid's y. Without them each pair has its y, and every `each`-th
// of an expert's takes the next ones along: finding them is a few instructions.
#include <absent.cuh>
#include <vector/few.cuh>

// What a block multiplies: an expert, the pair of each of the first lanes, and how many.
struct Meeting {
    u32 expert, pair, count;
};

// Past the L1 cache, which may still have what was there for an earlier layer.
__device__ __forceinline__ u32 now_at(const u32 *at) { return *(const volatile u32 *)at; }

__device__ __forceinline__ Meeting sorted_meeting(const u32 *sorted, const u32 *tiles) {
    const u32 *tile = tiles + 1 + 3 * blockIdx.y;
    u32 expert = now_at(tile), pairs = now_at(tile + 1), count = now_at(tile + 2);
    if (blockIdx.y >= now_at(tiles)) return Meeting{0, 0, 0};
    return Meeting{expert, now_at(sorted + pairs + min(thread_number() % 32, count - 1)), count};
}

__device__ __forceinline__ Meeting meeting(const u32 *chosen, u32 each) {
    u32 lane = thread_number() % 32, seen = 0;
    // One read for all of few pairs: the next one waits for it.
    u32 of_lane = now_at(chosen + min(lane, gridDim.y - 1));
    bool few = gridDim.y <= 32;
    Meeting found{few ? __shfl_sync(~0u, of_lane, blockIdx.y) : now_at(chosen + blockIdx.y), blockIdx.y, 0};
    if (found.expert == ABSENT) return found;
    // Each by itself.
    if (each == 1) found.count = 1;
    if (each == 1) return found;
    for (u32 first = 0; first < gridDim.y; first += 32) {
        u32 pair = first + lane;
        if (first > 0) of_lane = now_at(chosen + min(pair, gridDim.y - 1));
        u32 same = __ballot_sync(~0u, pair < gridDim.y && of_lane == found.expert);
        for (; same; same &= same - 1, seen++) {
            pair = first + __ffs(same) - 1;
            if (pair == blockIdx.y && seen % each != 0) return Meeting{0, 0, 0};
            if (pair < blockIdx.y || found.count == each) continue;
            if (lane == found.count) found.pair = pair;
            found.count++;
        }
    }
    return found;
}

// inner[pair] = silu(gate · x[pair / top_k]) · (up · x[pair / top_k]); an expert is `gate_rows` rows
// of gate, whole blocks in lines, then as many of up.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    gate_up_few(const u16 *x, u32 x_stride, const u32 *chosen, const u32 *sorted, const u32 *tiles, u32 each, u32 top_k,
                const u8 *data, const u16 *scales, u32 cols, u32 gate_rows, u16 *inner, u32 inner_stride, u32 inter,
                u32 split, u32 across) {
    DYNAMIC_SHARED(u8, shared);
    auto ready = [&](u32 &pair, u32 &rows, Outputs &w) {
        // In this order: down_few relies on it.
        wait_for_earlier();
        let_later_start();
        Meeting at = tiles ? sorted_meeting(sorted, tiles) : meeting(chosen, each);
        pair = at.pair, rows = at.count;
        w = rows_later(w, 2 * (u64)at.expert * gate_rows);
        return rows > 0;
    };
    few_rows<1, false>(
        shared, x, x_stride, 0, top_k, 0, Outputs{data, scales, cols, 1, gate_rows, inter}, split, across, blockIdx.x,
        (inter + 7) / 8, ready,
        [&](u32 pair, u32 tile, u32 output, float gate, float up) {
            u32 at = tile * 8 + output;
            if (at < inter) inner[(u64)pair * inner_stride + at] = bf16_of(silu(gate) * up);
        });
}

// out[pair] = down · inner[pair].
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    down_few(const u16 *inner, u32 inner_stride, const u32 *chosen, const u32 *sorted, const u32 *tiles, u32 each,
             const u8 *data, const u16 *scales, u32 cols, u32 down_rows, u16 *out, u32 out_stride, u32 hidden,
             u32 split, u32 across) {
    DYNAMIC_SHARED(u8, shared);
    let_later_start();
    // What says who meets whom is older than gate_up_few, of which all blocks have seen it when the first
    // one begins here: only few_rows waits for them.
    Meeting at = tiles ? sorted_meeting(sorted, tiles) : meeting(chosen, each);
    if (at.count == 0) return;
    Outputs w = rows_later(Outputs{data, scales, cols, 2, 8, hidden}, (u64)at.expert * down_rows);
    few_rows<1, true>(
        shared, inner, inner_stride, at.pair, 1, at.count, w, split, across, blockIdx.x, (hidden + 15) / 16,
        after_earlier, [&](u32 pair, u32 tile, u32 output, float upper, float lower) {
            u32 at = tile * 16 + output;
            u16 *to = out + (u64)pair * out_stride + at;
            if (at < hidden) to[0] = bf16_of(upper);
            if (at + 8 < hidden) to[8] = bf16_of(lower);
        });
}
