// Pairs sorted by expert, and cut into tiles for tensor cores ("moe align").
#include <types.cuh>

#define EXPERTS_MAX 1024

// Pairs of a block of `place`; `PLACED` of src/ops.rs.
#define PLACED 1024

// Rows of each of an expert's tiles but the last: as few tiles as `tile_rows` allows, all of one
// height, as products in lines take what their steps of 16 rows take, and unpack weights once for each
// tile. Tiles of less than such a step are as high as they may be.
__device__ inline u32 tile_height(u32 count, u32 tile_rows) {
    if (tile_rows < 16) return tile_rows;
    u32 steps = (count + 15) / 16, parts = (count + tile_rows - 1) / tile_rows;
    return (steps + parts - 1) / parts * 16;
}

// One block. `sorted` [pairs]; `tiles` [1 + 3 · most] is their count, then expert, first entry of
// `sorted` and entries of each. The order of an expert's pairs is any: rows are multiplied alone.
// Experts are counted from `first` on; pairs of all others, and of an absent one, are left out.
extern "C" __global__ void sort_pairs(const u32 *chosen, u32 pairs, u32 first, u32 experts, u32 tile_rows,
                                      u32 *sorted, u32 *tiles) {
    let_later_start();
    wait_for_earlier();
    __shared__ u32 counts[EXPERTS_MAX], parts[EXPERTS_MAX], next[EXPERTS_MAX];
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) counts[e] = 0;
    __syncthreads();
    for (u32 pair = threadIdx.x; pair < pairs; pair += blockDim.x)
        if (chosen[pair] - first < experts) atomicAdd(&counts[chosen[pair] - first], 1u);
    __syncthreads();
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x)
        parts[e] = (counts[e] + tile_rows - 1) / tile_rows;
    __syncthreads();
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        // Each expert adds up those before it: a few hundred reads, all lanes of one address.
        u32 start = 0, tile = 0;
        for (u32 before = 0; before < e; before++) {
            start += counts[before];
            tile += parts[before];
        }
        next[e] = start;
        u32 height = counts[e] ? tile_height(counts[e], tile_rows) : 0;
        for (u32 done = 0; done < counts[e]; done += height, tile++) {
            tiles[1 + 3 * tile] = e;
            tiles[2 + 3 * tile] = start + done;
            tiles[3 + 3 * tile] = min(counts[e] - done, height);
        }
        if (e == experts - 1) tiles[0] = tile;
    }
    __syncthreads();
    for (u32 pair = threadIdx.x; pair < pairs; pair += blockDim.x)
        if (chosen[pair] - first < experts) sorted[atomicAdd(&next[chosen[pair] - first], 1u)] = pair;
}

// The same of rows that all meet one matrix; a thread per row.
extern "C" __global__ void sort_rows(u32 rows, u32 tile_rows, u32 *sorted, u32 *tiles) {
    let_later_start();
    wait_for_earlier();
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    u32 height = tile_height(rows, tile_rows), tile = row / height;
    sorted[row] = row;
    if (row == 0) tiles[0] = (rows + height - 1) / height;
    if (row % height != 0) return;
    tiles[1 + 3 * tile] = 0;
    tiles[2 + 3 * tile] = row;
    tiles[3 + 3 * tile] = min(rows - row, height);
}

// out[i] = slots[chosen[i]], and counts[chosen[i]] grows if there is one. Each block counts its own pairs first: hundreds
// of additions to one place in memory would wait for each other.
extern "C" __global__ void place(const u32 *chosen, u32 pairs, const u32 *slots, u32 *counts, u32 experts,
                                 u32 *out) {
    let_later_start();
    wait_for_earlier();
    __shared__ u32 mine[EXPERTS_MAX];
    bool together = counts && experts <= EXPERTS_MAX;
    for (u32 e = threadIdx.x; together && e < experts; e += blockDim.x) mine[e] = 0;
    __syncthreads();
    for (u32 i = 0; i < PLACED; i += blockDim.x) {
        u32 pair = blockIdx.x * PLACED + i + threadIdx.x;
        if (pair >= pairs) break;
        u32 expert = chosen[pair];
        out[pair] = slots[expert];
        if (counts) atomicAdd(together ? &mine[expert] : &counts[expert], 1u);
    }
    __syncthreads();
    for (u32 e = threadIdx.x; together && e < experts; e += blockDim.x)
        if (mine[e]) atomicAdd(&counts[e], mine[e]);
}
