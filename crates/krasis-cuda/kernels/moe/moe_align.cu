// Pairs (token, choice) sorted by expert, and cut into tiles for the grouped product.
#include "mma.cuh"

// How many of its pairs a lane reads at once, as one block has little else to hide latency with.
#define AHEAD 16

// One block of whole warps, up to 32; dynamic shared memory of `4 · experts` bytes for each warp.
//
// `chosen` [pairs] are experts; numbers from `experts` on are left out. `sorted` gets the pairs in
// order of expert, then of pair; `starts` [experts + 1] where each expert's begin. `tiles` gets a
// count, then expert, first entry of `sorted` and entries of each tile, at most `tile_rows` (a
// multiple of 16): `pairs / tile_rows + experts` tiles at most. An expert's tiles are of one height
// but for the last: heights in steps of 16 rows cost what they are, and weights are unpacked once
// for each tile.
extern "C" __global__ void __launch_bounds__(1024)
    moe_align(const u32 *chosen, u32 pairs, u32 experts, u32 tile_rows, u32 *sorted, u32 *starts,
              u32 *tiles) {
    extern __shared__ u32 counts[]; // [warps][experts], then where a warp's next pair goes.
    __shared__ u32 sums[2][32];
    u32 warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 *mine = counts + warp * experts;
    // Each warp has a stretch of the pairs.
    u32 stretch = (pairs + 32 * warps - 1) / (32 * warps) * 32;
    u32 begin = min(warp * stretch, pairs), end = min(begin + stretch, pairs);

    for (u32 at = threadIdx.x; at < warps * experts; at += blockDim.x) counts[at] = 0;
    __syncthreads();
    for (u32 from = begin + lane; from < end; from += 32 * AHEAD) {
        u32 some[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) some[i] = from + 32 * i < end ? chosen[from + 32 * i] : experts;
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++)
            if (some[i] < experts) atomicAdd(&mine[some[i]], 1u);
    }
    __syncthreads();

    u32 pairs_before = 0, tiles_before = 0;
    for (u32 first = 0; first < experts; first += blockDim.x) {
        u32 expert = first + threadIdx.x, count = 0;
        if (expert < experts)
            for (u32 w = 0; w < warps; w++) count += counts[w * experts + expert];
        u32 steps = (count + 15) / 16, parts = (16 * steps + tile_rows - 1) / tile_rows;
        // Sums over the threads up to this one.
        u32 pair_sum = count, tile_sum = parts;
        for (u32 d = 1; d < 32; d *= 2) {
            u32 p = __shfl_up_sync(~0u, pair_sum, d), t = __shfl_up_sync(~0u, tile_sum, d);
            if (lane >= d) pair_sum += p, tile_sum += t;
        }
        if (lane == 31) sums[0][warp] = pair_sum, sums[1][warp] = tile_sum;
        __syncthreads();
        u32 pair_start = pairs_before + pair_sum - count, tile = tiles_before + tile_sum - parts;
        for (u32 w = 0; w < warps; w++) {
            if (w < warp) pair_start += sums[0][w], tile += sums[1][w];
            pairs_before += sums[0][w], tiles_before += sums[1][w];
        }
        if (expert < experts) {
            starts[expert] = pair_start;
            u32 rows = parts ? (steps + parts - 1) / parts * 16 : 0;
            for (u32 done = 0; done < count; done += rows, tile++) {
                tiles[1 + 3 * tile] = expert;
                tiles[2 + 3 * tile] = pair_start + done;
                tiles[3 + 3 * tile] = min(count - done, rows);
            }
            for (u32 w = 0; w < warps; w++) {
                u32 part = counts[w * experts + expert];
                counts[w * experts + expert] = pair_start;
                pair_start += part;
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) starts[experts] = pairs_before, tiles[0] = tiles_before;

    u32 bits = 32 - __clz(experts);
    for (u32 from = begin; from < end; from += 32 * AHEAD) {
        u32 some[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++)
            some[i] = from + 32 * i + lane < end ? min(chosen[from + 32 * i + lane], experts) : experts;
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            if (from + 32 * i >= end) break;
            // Lanes with the same expert, bit by bit: match.any takes longer the more there are.
            u32 equal = ~0u;
            for (u32 bit = 0; bit < bits; bit++) {
                u32 ones = __ballot_sync(~0u, some[i] >> bit & 1);
                equal &= some[i] >> bit & 1 ? ones : ~ones;
            }
            u32 before = __popc(equal & ((1u << lane) - 1)), next = 0;
            if (some[i] < experts) {
                next = mine[some[i]];
                sorted[next + before] = from + 32 * i + lane;
            }
            __syncwarp();
            if (some[i] < experts && before == 0) mine[some[i]] = next + __popc(equal);
            __syncwarp();
        }
    }
}
