// Latent attention of many rows over keys and values that were expanded (`mla_expand.cu`): a block has
// ROWS rows of one head (`flash.cuh`), and takes a window of the past at a time. What it knows of its rows
// is kept from window to window to the bit, so that windows change nothing.
//
//   ROPE   columns of a key that are rotated, and the same for all heads; the others come before them
#include <attend/flash.cuh>
#include <attend/prompts.cuh>

constexpr u32 NOPE = KEY_DIM - ROPE, TILES_AT = QUERIES, VALUES_AT = TILES_AT + 2 * KEY_TILE;
constexpr u32 POSITIONS_AT = VALUES_AT + 2 * VALUE_TILE;
// What the end needs to know and the keys do not, for registers are short.
constexpr u32 ASIDE_AT = POSITIONS_AT + ROWS * 4;
static_assert(ASIDE_AT + 16 == SHARED_BYTES && STAY == 0, "what it is launched with");
static_assert(TOGETHER % KEYS == 0, "windows are whole tiles");

// What is kept of a row and head besides its sums: four lanes' totals, and the largest score.
#define KEPT 8

// PIECES · 16 bytes of each of KEYS rows, of which `valid` are there; zeros for the others.
template <u32 PIECES, u32 STRIDE> __device__ inline void copy_tile(const u16 *from, u32 valid, u32 to) {
#pragma unroll
    for (u32 i = 0; i < KEYS * PIECES / THREADS; i++) {
        u32 row = (i * THREADS + threadIdx.x) / PIECES, piece = threadIdx.x % PIECES;
        bool there = row < valid;
        copy_16(to + row * STRIDE + piece * 16, from + ((there ? row : 0) * PIECES + piece) * 8, there);
    }
}

// Grid [heads · tiles], `tiles` at least the sum over prompts of their rows / ROWS, rounded up: rows / ROWS
// + prompts is enough. Block [THREADS]. Of all prompts' keys, `window` from `window_first` on are there:
// `keys` and `values` are [heads, window, …], `k_rope` [window, ROPE]. `out` may lie where `q` does, heads
// in the same columns.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    mla_prefill(const u16 *q, u32 q_stride, const u16 *q_rope, u32 q_rope_stride, const u16 *keys,
                const u16 *k_rope, const u16 *values, u32 heads, const u32 *first_row,
                const u32 *positions, u32 prompts, u32 rows, u32 window_first, u32 window, float scale,
                u16 *out, u32 out_stride, float *kept_sums, float *kept) {
    DYNAMIC_SHARED(shared);
    let_later_start();
    wait_for_earlier();
    const u32 base_address = shared_address(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // The last rows see the most keys: they go first.
    u32 head = blockIdx.x % heads, tile_index = gridDim.x / heads - 1 - blockIdx.x / heads;
    Seqs seqs{first_row, positions, 0, 0, 0, prompts};
    Tile tile;
    u32 past;
    if (!find_tile(tile_index, seqs, rows, 1, ROWS, tile, past)) return;
    u32 before = keys_before(Prompts{first_row, positions, prompts}, tile.seq);
    if (before >= window_first + window || before + past <= window_first) return;
    // Positions that are in the window.
    u32 begin = window_first > before ? window_first - before : 0;
    u32 end = min(past, window_first + window - before), tiles = (end - begin + KEYS - 1) / KEYS;
    const u32 line = before + begin - window_first, count = end - begin;

    u32 *row_positions = (u32 *)(shared + POSITIONS_AT), *aside = (u32 *)(shared + ASIDE_AT);
    if (threadIdx.x == 0) {
        aside[0] = tile.first + tile.start, aside[1] = tile.rows - tile.start;
        aside[2] = head, aside[3] = end == past;
    }
    for (u32 row = threadIdx.x; row < ROWS; row += THREADS)
        row_positions[row] = tile.start + row < tile.rows ? positions[tile.first + tile.start + row] : past - 1;
    copy_queries<ROWS, THREADS, NOPE, KEY_STRIDE>(q, q_stride, head, 1, tile, shared);
    copy_queries<ROWS, THREADS, ROPE, KEY_STRIDE>(q_rope, q_rope_stride, head, 1, tile, shared + NOPE * 2);
    auto copy = [&](u32 j) {
        if (j < tiles) {
            u32 valid = count - j * KEYS, key_to = base_address + TILES_AT + j % 2 * KEY_TILE;
            u64 from = line + j * KEYS, of_head = from + head * window;
            copy_tile<NOPE / 8, KEY_STRIDE>(keys + of_head * NOPE, valid, key_to);
            copy_tile<ROPE / 8, KEY_STRIDE>(k_rope + from * ROPE, valid, key_to + NOPE * 2);
            copy_tile<VALUE_DIM / 8, VALUE_STRIDE>(values + of_head * VALUE_DIM, valid,
                                                   base_address + VALUES_AT + j % 2 * VALUE_TILE);
        }
        copies_end();
    };
    copy(0);

    u32 first_of_warp = warp * TALL * 16;
    float sums[TALL][VALUE_DIM / 8][4];
    Softmax softmax;
#pragma unroll
    for (u32 t = 0; t < TALL; t++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 row = tile.start + first_of_warp + lane / 4 + t * 16 + half * 8;
            bool goes_on = begin > 0 && row < tile.rows;
            u64 place = (u64)(tile.first + row) * heads + head;
            softmax.largest[t][half] = goes_on ? kept[place * KEPT + 4] : MINUS_INFINITY;
            softmax.total[t][half] = goes_on ? kept[place * KEPT + lane % 4] : 0.0f;
            const float2 *from = (const float2 *)(kept_sums + place * VALUE_DIM) + lane % 4;
#pragma unroll
            for (u32 n = 0; n < VALUE_DIM / 8; n++) {
                float2 two = goes_on ? from[n * 4] : make_float2(0.0f, 0.0f);
                sums[t][n][half * 2] = two.x, sums[t][n][half * 2 + 1] = two.y;
            }
        }
    const float factor = scale * LOG2_E;
    u32 query_at = base_address + (first_of_warp + lane % 16) * KEY_STRIDE + lane / 16 * 16;
    u32 key_at = base_address + TILES_AT + (lane % 8 + lane / 16 * 8) * KEY_STRIDE + lane / 8 % 2 * 16;
    u32 value_at = base_address + VALUES_AT + lane % 16 * VALUE_STRIDE + lane / 16 * 16;
    u32 stay[1][1][4];
    __syncthreads();
    const u32 *my_positions = row_positions + first_of_warp + lane / 4;
    for (u32 j = 0; j < tiles; j++) {
        copies_wait<0>();
        __syncthreads();
        copy(j + 1);
        // Rows of a warp ascend: behind the last one's position all are blind, behind the first one's some.
        // Both are read anew, for registers are short.
        u32 first = begin + j * KEYS;
        if (first > row_positions[first_of_warp + TALL * 16 - 1]) continue;
        Scores scores;
        score(scores, stay, query_at, key_at + j % 2 * KEY_TILE);
        if (first + KEYS > row_positions[first_of_warp] + 1) mask(scores, my_positions, first);
        float base[TALL][2];
        rise(scores, softmax, factor, sums, base);
        mix(scores, softmax, factor, base, sums, value_at + j % 2 * VALUE_TILE);
    }

    u32 first_row_of_tile = aside[0], rows_left = aside[1], to_head = aside[2];
    bool done = aside[3], aligned = (((u64)out | (u64)out_stride * 2) & 3) == 0;
#pragma unroll
    for (u32 t = 0; t < TALL; t++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 row = threadIdx.x / 32 * TALL * 16 + threadIdx.x % 32 / 4 + t * 16 + half * 8;
            float all = softmax.total[t][half];
            all += __shfl_xor_sync(~0u, all, 1);
            all += __shfl_xor_sync(~0u, all, 2);
            if (row >= rows_left) continue;
            row += first_row_of_tile;
            if (done) {
                float by = 1.0f / all;
                u16 *to = out + (u64)row * out_stride + to_head * VALUE_DIM + threadIdx.x % 4 * 2;
#pragma unroll
                for (u32 n = 0; n < VALUE_DIM / 8; n++)
                    put_two(to + n * 8, aligned, sums[t][n][half * 2] * by, sums[t][n][half * 2 + 1] * by);
            } else {
                u64 place = (u64)row * heads + to_head;
                kept[place * KEPT + threadIdx.x % 4] = softmax.total[t][half];
                if (threadIdx.x % 4 == 0) kept[place * KEPT + 4] = softmax.largest[t][half];
                float2 *to = (float2 *)(kept_sums + place * VALUE_DIM) + threadIdx.x % 4;
#pragma unroll
                for (u32 n = 0; n < VALUE_DIM / 8; n++)
                    to[n * 4] = make_float2(sums[t][n][half * 2], sums[t][n][half * 2 + 1]);
            }
        }
}
