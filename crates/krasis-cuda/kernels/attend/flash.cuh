// Attention of many rows (FlashAttention-2: Dao, 2023): a warp has 16 · TALL rows of one head, and
// tiles of KEYS keys and values pass by in shared memory, with a running softmax in registers.
//
// What limits it with `mma.sync`: of a tile a warp reads all keys and values from shared memory,
// 256 bytes for each 16x8x16 product of TALL = 1, 128 for TALL = 2. The tensor cores of an H200 want
// a product each 1.6 clocks, and shared memory gives 128 bytes a clock: hence TALL = 2 as long as the
// sums fit the registers (values of 128 and less).
//
//   KEY_DIM, VALUE_DIM   elements of a head, multiples of 16
//   WARPS, TALL, KEYS    the tile
//   STAY          1: queries stay in registers; 0: they are read from shared memory for each tile
//   BLOCKS        blocks of a multiprocessor that registers must suffice for
//   SHARED_BYTES  what it is launched with
#pragma once
#include <attend/tile.cuh>

#ifndef STAY
#define STAY 0
#endif
#ifndef BLOCKS
#define BLOCKS 1
#endif

constexpr u32 THREADS = WARPS * 32, ROWS = WARPS * TALL * 16;
// Bytes of a row in shared memory: 16 more than needed, so that the eight rows of an 8x8 matrix lie
// in different banks.
constexpr u32 KEY_STRIDE = KEY_DIM * 2 + 16, VALUE_STRIDE = VALUE_DIM * 2 + 16;
constexpr u32 KEY_TILE = KEYS * KEY_STRIDE, VALUE_TILE = KEYS * VALUE_STRIDE;
constexpr u32 QUERIES = ROWS * KEY_STRIDE;
constexpr u32 STEPS = KEY_DIM / 16;
static_assert(KEYS % 16 == 0 && KEY_DIM % 16 == 0 && VALUE_DIM % 16 == 0, "multiples of 16");

typedef float Scores[TALL][KEYS / 8][4];

struct Softmax {
    float largest[TALL][2], total[TALL][2];
};

// scores = queries · keys of a tile
__device__ inline void score(Scores &scores, const u32 (&stay)[STAY ? TALL : 1][STAY ? STEPS : 1][4], u32 queries,
                             u32 keys) {
#pragma unroll
    for (u32 t = 0; t < TALL; t++)
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) scores[t][n][i] = 0.0f;
    // Matrices are asked for one product ahead.
    constexpr u32 WIDE = KEYS / 16;
    u32 a[2][TALL][4], b[2][4];
    auto ask = [&](u32 i) {
        u32 step = i / WIDE, n = i % WIDE;
        if (n == 0) {
#pragma unroll
            for (u32 t = 0; t < TALL; t++) {
                if constexpr (STAY) {
#pragma unroll
                    for (u32 j = 0; j < 4; j++) a[step % 2][t][j] = stay[t][step][j];
                } else {
                    matrices(a[step % 2][t], queries + t * 16 * KEY_STRIDE + step * 32);
                }
            }
        }
        matrices(b[i % 2], keys + n * 16 * KEY_STRIDE + step * 32);
    };
    ask(0);
#pragma unroll
    for (u32 step = 0; step < STEPS; step++)
#pragma unroll
        for (u32 n = 0; n < WIDE; n++) {
            const u32 i = step * WIDE + n;
            if (i + 1 < STEPS * WIDE) ask(i + 1);
#pragma unroll
            for (u32 t = 0; t < TALL; t++) {
                multiply(scores[t][2 * n], a[step % 2][t], b[i % 2][0], b[i % 2][1]);
                multiply(scores[t][2 * n + 1], a[step % 2][t], b[i % 2][2], b[i % 2][3]);
            }
        }
}

// Positions after a row's own: −∞.
__device__ inline void mask(Scores &scores, const u32 *positions, u32 first) {
    u32 column = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (u32 t = 0; t < TALL; t++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 position = positions[t * 16 + half * 8];
#pragma unroll
            for (u32 n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (u32 i = 0; i < 2; i++)
                    if (column + n * 8 + i > position) scores[t][n][half * 2 + i] = MINUS_INFINITY;
        }
}

// The largest scores so far; sums and totals are brought down to them. `base` is what exponents are
// relative to.
__device__ inline void rise(const Scores &scores, Softmax &softmax, float factor,
                            float (&sums)[TALL][VALUE_DIM / 8][4], float (&base)[TALL][2]) {
    float by[TALL][2];
    bool rises = false;
#pragma unroll
    for (u32 t = 0; t < TALL; t++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float most = fmaxf(scores[t][0][half * 2], scores[t][0][half * 2 + 1]);
#pragma unroll
            for (u32 n = 1; n < KEYS / 8; n++)
                most = fmaxf(most, fmaxf(scores[t][n][half * 2], scores[t][n][half * 2 + 1]));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
            float before = softmax.largest[t][half];
            most = fmaxf(most, before);
            softmax.largest[t][half] = most;
            // A row that has seen no key yet.
            base[t][half] = most == MINUS_INFINITY ? 0.0f : most * factor;
            by[t][half] = exp_2(before * factor - base[t][half]);
            rises |= most != before;
        }
    // After the first tiles, rarely.
    if (__any_sync(~0u, rises)) {
#pragma unroll
        for (u32 t = 0; t < TALL; t++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                softmax.total[t][half] *= by[t][half];
#pragma unroll
                for (u32 n = 0; n < VALUE_DIM / 8; n++) {
                    sums[t][n][half * 2] *= by[t][half];
                    sums[t][n][half * 2 + 1] *= by[t][half];
                }
            }
    }
}

// sums += 2^(scores · factor − base) · values, 16 keys at a time.
__device__ inline void mix(Scores &scores, Softmax &softmax, float factor, const float (&base)[TALL][2],
                           float (&sums)[TALL][VALUE_DIM / 8][4], u32 values) {
#pragma unroll
    for (u32 step = 0; step < KEYS / 16; step++) {
        u32 a[TALL][4];
#pragma unroll
        for (u32 t = 0; t < TALL; t++)
#pragma unroll
            for (u32 n = 0; n < 2; n++) {
                float(&x)[4] = scores[t][step * 2 + n];
#pragma unroll
                for (u32 i = 0; i < 4; i++) x[i] = exp_2(x[i] * factor - base[t][i / 2]);
                softmax.total[t][0] += x[0] + x[1];
                softmax.total[t][1] += x[2] + x[3];
                a[t][n * 2] = pack(x[0], x[1]);
                a[t][n * 2 + 1] = pack(x[2], x[3]);
            }
#pragma unroll
        for (u32 n = 0; n < VALUE_DIM / 16; n++) {
            u32 b[4];
            matrices_transposed(b, values + step * 16 * VALUE_STRIDE + n * 32);
#pragma unroll
            for (u32 t = 0; t < TALL; t++) {
                multiply(sums[t][2 * n], a[t], b[0], b[1]);
                multiply(sums[t][2 * n + 1], a[t], b[2], b[3]);
            }
        }
    }
}
