// Sums of products with a weight: a warp's for few rows, tensor cores for many.
//
// The order of additions is that of the columns and never depends on which rows come together; it
// differs between the two.
#pragma once
#include <weights.cuh>

// The most rows that a warp multiplies at a time.
#define VECTOR_ROWS 8

// sums[r] = x[r] · weight row, by one warp, in every lane.
__device__ inline void warp_products(const Weight &w, u64 weight_row, const act *x, u32 x_stride,
                                     u32 rows, u32 aligned, float (&sums)[VECTOR_ROWS]) {
    for (u32 r = 0; r < VECTOR_ROWS; r++) sums[r] = 0.0f;
    u32 units = (w.cols + 31) / 32 * 4;
    for (u32 unit = lane(); unit < units; unit += 32) {
        float weights[8], inputs[8];
        load_unit(w, weight_row, unit / 4, unit % 4, weights);
#pragma unroll
        for (u32 r = 0; r < VECTOR_ROWS; r++) {
            if (r >= rows) break;
            load_act(x + (u64)r * x_stride, w.cols, unit / 4, unit % 4, aligned, inputs);
            for (u32 p = 0; p < 8; p++) sums[r] += weights[p] * inputs[p];
        }
    }
#pragma unroll
    for (u32 r = 0; r < VECTOR_ROWS; r++)
        if (r < rows) sums[r] = warp_sum(sums[r]);
}

// The same for one row.
__device__ inline float warp_product(const Weight &w, u64 weight_row, const act *x, u32 aligned) {
    float sum = 0.0f;
    u32 units = (w.cols + 31) / 32 * 4;
    for (u32 unit = lane(); unit < units; unit += 32) {
        float weights[8], inputs[8];
        load_unit(w, weight_row, unit / 4, unit % 4, weights);
        load_act(x, w.cols, unit / 4, unit % 4, aligned, inputs);
        for (u32 p = 0; p < 8; p++) sum += weights[p] * inputs[p];
    }
    return warp_sum(sum);
}

// A block of four warps makes a tile of 64 token rows by 64 outputs, each warp a quarter of 32 by
// 32, slab by slab of 32 columns.
#define TILE 64
// Elements from one row of a slab in shared memory to the next: quads of eight rows then lie in
// different banks.
#define TILE_STRIDE 40

// Numbers that BF16 does not hold are multiplied as the sum of two that it does: activations in
// f32 mode, and weights of float formats always. Rounded integers are no worse than activations.
#define ACT_PARTS (sizeof(act) == 4 ? 2 : 1)
#define WEIGHT_PARTS (FITS_BF16 ? 1 : sizeof(act) == 4 || FORMAT == FORMAT_F32 || FORMAT == FORMAT_F16 ? 2 : 1)

// Puts eight numbers of a slab down as BF16, and what is left of them as `PARTS - 1` further tiles.
template <int PARTS> __device__ inline void put_unit(u16 (*tile)[TILE][TILE_STRIDE], u32 row, u32 q, float (&x)[8]) {
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        u32 words[4];
        for (u32 i = 0; i < 4; i++) {
            bf16 low = rounded<bf16>(x[2 * i]), high = rounded<bf16>(x[2 * i + 1]);
            words[i] = (u32)low.bits | (u32)high.bits << 16;
            x[2 * i] -= value(low);
            x[2 * i + 1] -= value(high);
        }
        *(uint4 *)&tile[part][row][8 * q] = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

__device__ inline u32 pair_at(const u16 (&tile)[TILE][TILE_STRIDE], u32 row, u32 col) {
    return *(const u32 *)&tile[row][col];
}

// Calls `store(row of the tile, output of the tile, sums)` for each cell inside `rows` by `outputs`.
// `x_row(i)` is where activation row `i` of the tile lies. `first[b]` is the weight row of output 0
// of bank `b`: gate and up of an expert are multiplied together, anything else alone.
template <int BANKS, class XRow, class Store>
__device__ inline void tile_products(const Weight &w, const u64 (&first)[BANKS], u32 rows, u32 outputs,
                                     u32 aligned, XRow x_row, Store store) {
    __shared__ __align__(16) u16 xs[ACT_PARTS][TILE][TILE_STRIDE];
    __shared__ __align__(16) u16 ws[BANKS][WEIGHT_PARTS][TILE][TILE_STRIDE];
    float sums[BANKS][2][4][4] = {};
    u32 g = lane() / 4, t = lane() % 4, m = warp() / 2 * 32, n = warp() % 2 * 32;
    for (u32 slab = 0; slab < (w.cols + 31) / 32; slab++) {
        for (u32 unit = threadIdx.x; unit < TILE * 4; unit += 128) {
            u32 row = unit / 4, q = unit % 4;
            float x[8] = {};
            if (row < rows) load_act(x_row(row), w.cols, slab, q, aligned, x);
            put_unit<ACT_PARTS>(xs, row, q, x);
            for (int b = 0; b < BANKS; b++) {
                float weights[8] = {};
                if (row < outputs) load_unit(w, first[b] + row, slab, q, weights);
                put_unit<WEIGHT_PARTS>(ws[b], row, q, weights);
            }
        }
        __syncthreads();
#pragma unroll
        for (u32 k = 0; k < 32; k += 16) {
            u32 a[ACT_PARTS][2][4];
#pragma unroll
            for (int part = 0; part < ACT_PARTS; part++)
#pragma unroll
                for (u32 i = 0; i < 2; i++)
#pragma unroll
                    for (u32 j = 0; j < 4; j++)
                        a[part][i][j] = pair_at(xs[part], m + 16 * i + g + j % 2 * 8, k + 2 * t + j / 2 * 8);
#pragma unroll
            for (int b = 0; b < BANKS; b++)
#pragma unroll
                for (u32 i = 0; i < 4; i++)
#pragma unroll
                    for (int part = 0; part < WEIGHT_PARTS; part++) {
                        const u16(&tile)[TILE][TILE_STRIDE] = ws[b][part];
                        u32 row = n + 8 * i + g;
                        u32 pair[2] = {pair_at(tile, row, k + 2 * t), pair_at(tile, row, k + 2 * t + 8)};
                        for (u32 j = 0; j < 2; j++) {
                            mma_bf16(sums[b][j][i], a[0][j], pair);
                            if (ACT_PARTS == 2 && part == 0) mma_bf16(sums[b][j][i], a[ACT_PARTS - 1][j], pair);
                        }
                    }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 j = 0; j < 2; j++)
#pragma unroll
        for (u32 i = 0; i < 4; i++)
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                u32 row = m + 16 * j + g + c / 2 * 8, output = n + 8 * i + 2 * t + c % 2;
                float cell[BANKS];
                for (int b = 0; b < BANKS; b++) cell[b] = sums[b][j][i][c];
                if (row < rows && output < outputs) store(row, output, cell);
            }
}
