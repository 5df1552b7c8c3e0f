// Pairs sorted by expert, and cut into tiles of up to 64 for tensor cores ("moe align").
#include <types.cuh>

#define TILE 64
#define EXPERTS_MAX 1024

// One block. `sorted` [pairs]; `tiles` [1 + 3 · most] is their count, then expert, first entry of
// `sorted` and entries of each. The order of an expert's pairs is any: rows are multiplied alone.
extern "C" __global__ void sort_pairs(const u32 *chosen, u32 pairs, u32 experts, u32 *sorted,
                                      u32 *tiles) {
    __shared__ u32 counts[EXPERTS_MAX], next[EXPERTS_MAX];
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) counts[e] = 0;
    __syncthreads();
    for (u32 pair = threadIdx.x; pair < pairs; pair += blockDim.x) atomicAdd(&counts[chosen[pair]], 1u);
    __syncthreads();
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        // Each expert adds up those before it: a few hundred reads, all lanes of one address.
        u32 start = 0, tile = 0;
        for (u32 before = 0; before < e; before++) {
            start += counts[before];
            tile += (counts[before] + TILE - 1) / TILE;
        }
        next[e] = start;
        for (u32 done = 0; done < counts[e]; done += TILE, tile++) {
            tiles[1 + 3 * tile] = e;
            tiles[2 + 3 * tile] = start + done;
            tiles[3 + 3 * tile] = min(counts[e] - done, (u32)TILE);
        }
        if (e == experts - 1) tiles[0] = tile;
    }
    __syncthreads();
    for (u32 pair = threadIdx.x; pair < pairs; pair += blockDim.x)
        sorted[atomicAdd(&next[chosen[pair]], 1u)] = pair;
}
