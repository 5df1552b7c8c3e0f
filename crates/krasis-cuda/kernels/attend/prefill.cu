// Causal attention of many rows over their pages: a block has ROWS packed rows of one KV head, 16 · TALL
// for each warp (`flash.cuh`). The next tile is copied while this one is computed.
//
//   SPLIT   1: blockIdx.y says which part of the keys; partial results are merged later
#include <attend/flash.cuh>

#ifndef SPLIT
#define SPLIT 0
#endif

constexpr u32 RAW_KEYS = KEYS * KEY_DIM, RAW_VALUES = KEYS * VALUE_DIM;
// BF16: two tiles of each. F8: one tile of each, and two of each as they lie in memory.
constexpr u32 TILES = KV_F8 ? KEY_TILE + VALUE_TILE + 2 * (RAW_KEYS + RAW_VALUES + 8 * KEYS)
                            : 2 * (KEY_TILE + VALUE_TILE);
// Queries that stay in registers come through the place of the tiles.
constexpr u32 TILES_AT = STAY ? 0 : QUERIES;
constexpr u32 TOKENS_AT = STAY ? (QUERIES > TILES ? QUERIES : TILES) : QUERIES + TILES;
constexpr u32 POSITIONS_AT = TOKENS_AT + 4 * KEYS * 4;
constexpr u32 SHARED = POSITIONS_AT + ROWS * 4;
static_assert(KEYS <= THREADS, "a thread finds a token");

static_assert(SHARED == SHARED_BYTES, "what it is launched with");

// Grid [kv heads · tiles] or, with SPLIT, [kv heads · tiles, splits], where `tiles` is at least the
// sum over sequences of their rows · group / ROWS, rounded up: rows · group / ROWS + sequences is
// enough. Block [THREADS], SHARED bytes.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attend_prefill(const u16 *q, u32 q_stride, const kv *k_data, const float *k_scales, const kv *v_data,
                   const float *v_scales, u32 kv_heads, u32 group, u32 page, const u32 *first_row,
                   const u32 *positions, const u32 *pages, u32 pages_max, u32 seq_count, u32 rows,
                   float scale, u16 *out, u32 out_stride, float *sums_out, float *totals_out) {
    DYNAMIC_SHARED(shared);
    let_later_start();
    wait_for_earlier();
    const u32 base_address = shared_address(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // The last rows see the most keys: they go first.
    u32 kv_head = blockIdx.x % kv_heads, tile_index = gridDim.x / kv_heads - 1 - blockIdx.x / kv_heads;
    Seqs seqs{first_row, positions, pages, pages_max, page, seq_count};
    Tile tile;
    u32 keys;
    if (!find_tile(tile_index, seqs, rows, group, ROWS, tile, keys)) return;
    u32 tiles = (keys + KEYS - 1) / KEYS;
    u32 from = 0, to = tiles;
#if SPLIT
    from = (u32)((u64)tiles * blockIdx.y / gridDim.y), to = (u32)((u64)tiles * (blockIdx.y + 1) / gridDim.y);
#endif

    u32 *tokens = (u32 *)(shared + TOKENS_AT), *row_positions = (u32 *)(shared + POSITIONS_AT);
    for (u32 row = threadIdx.x; row < ROWS; row += THREADS) {
        u32 packed = tile.start + row;
        row_positions[row] = packed < tile.rows ? positions[tile.first + packed / group] : keys - 1;
    }
    // The tokens of a tile are looked up before they are needed, one by each of KEYS threads.
    auto look_up = [&](u32 j) -> u32 {
        if (threadIdx.x >= KEYS || j >= to) return NOWHERE;
        return token_at(seqs, tile.seq, j * KEYS + threadIdx.x, keys);
    };
    auto keep = [&](u32 j, u32 token) {
        if (threadIdx.x < KEYS) tokens[j % 4 * KEYS + threadIdx.x] = token;
    };
    u32 first_tokens[3];
#pragma unroll
    for (u32 i = 0; i < 3; i++) first_tokens[i] = look_up(from + i);
#pragma unroll
    for (u32 i = 0; i < 3; i++) keep(from + i, first_tokens[i]);
    copy_queries<ROWS, THREADS, KEY_DIM, KEY_STRIDE>(q, q_stride, kv_head * group, group, tile, shared);
    copies_end();
    if constexpr (STAY) copies_wait<0>();
    __syncthreads();

    const kv *k = k_data + (u64)kv_head * KEY_DIM, *v = v_data + (u64)kv_head * VALUE_DIM;
    u64 k_stride = (u64)kv_heads * KEY_DIM, v_stride = (u64)kv_heads * VALUE_DIM;
    const u32 tiles_at = base_address + TILES_AT;
    auto copy = [&](u32 j) {
        if (j < to) {
            const u32 *at = tokens + j % 4 * KEYS;
#if KV_F8
            u32 raw = tiles_at + KEY_TILE + VALUE_TILE, raw_values = raw + 2 * RAW_KEYS;
            u32 scales = raw_values + 2 * RAW_VALUES;
            copy_rows<KEYS, THREADS, KEY_DIM, KEY_DIM / 16>(k, k_stride, at, raw + j % 2 * RAW_KEYS);
            copy_rows<KEYS, THREADS, VALUE_DIM, VALUE_DIM / 16>(v, v_stride, at, raw_values + j % 2 * RAW_VALUES);
            if (threadIdx.x < KEYS) {
                u32 token = at[threadIdx.x], scale_to = scales + (j % 2 * KEYS + threadIdx.x) * 4;
                bool valid = token != NOWHERE;
                u64 scale_at = (u64)(valid ? token : 0) * kv_heads + kv_head;
                copy_4(scale_to, k_scales + scale_at, valid);
                copy_4(scale_to + 2 * KEYS * 4, v_scales + scale_at, valid);
            }
#else
            u32 key_to = tiles_at + j % 2 * KEY_TILE, value_to = tiles_at + 2 * KEY_TILE + j % 2 * VALUE_TILE;
            if constexpr (KEY_DIM == VALUE_DIM) {
                copy_both<KEYS, THREADS, KEY_STRIDE, KEY_DIM / 8>(k, v, k_stride, at, key_to, value_to);
            } else {
                copy_rows<KEYS, THREADS, KEY_STRIDE, KEY_DIM / 8>(k, k_stride, at, key_to);
                copy_rows<KEYS, THREADS, VALUE_STRIDE, VALUE_DIM / 8>(v, v_stride, at, value_to);
            }
#endif
        }
        copies_end();
    };

    // Lane addresses of the 8x8 matrices: queries, keys and values.
    u32 first_row_of_warp = warp * TALL * 16;
    u32 query_at = base_address + (first_row_of_warp + lane % 16) * KEY_STRIDE + lane / 16 * 16;
    u32 key_at = tiles_at + (lane % 8 + lane / 16 * 8) * KEY_STRIDE + lane / 8 % 2 * 16;
    u32 value_at = tiles_at + (KV_F8 ? 1 : 2) * KEY_TILE + lane % 16 * VALUE_STRIDE + lane / 16 * 16;
    auto keys_at = [&](u32 j) { return key_at + (KV_F8 ? 0 : j % 2 * KEY_TILE); };
    auto values_at = [&](u32 j) { return value_at + (KV_F8 ? 0 : j % 2 * VALUE_TILE); };

    u32 stay[STAY ? TALL : 1][STAY ? STEPS : 1][4];
    if constexpr (STAY) {
#pragma unroll
        for (u32 t = 0; t < TALL; t++)
#pragma unroll
            for (u32 step = 0; step < STEPS; step++)
                matrices(stay[t][step], query_at + t * 16 * KEY_STRIDE + step * 32);
        __syncthreads();
    }
    float sums[TALL][VALUE_DIM / 8][4];
    Softmax softmax;
#pragma unroll
    for (u32 t = 0; t < TALL; t++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++)
            softmax.largest[t][half] = MINUS_INFINITY, softmax.total[t][half] = 0.0f;
#pragma unroll
        for (u32 n = 0; n < VALUE_DIM / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) sums[t][n][i] = 0.0f;
    }
    const float factor = scale * LOG2_E;
    const u32 *my_positions = row_positions + first_row_of_warp + lane / 4;
    // Rows of a warp ascend: from `all_see` on some are blind, from `none_sees` on all.
    u32 all_see = row_positions[first_row_of_warp] + 1;
    u32 none_sees = row_positions[first_row_of_warp + TALL * 16 - 1] + 1;
    auto weigh = [&](Scores &scores, u32 j) {
        if ((j + 1) * KEYS > all_see) mask(scores, my_positions, j * KEYS);
        float base[TALL][2];
        rise(scores, softmax, factor, sums, base);
        mix(scores, softmax, factor, base, sums, values_at(j));
    };

    copy(from);
    for (u32 j = from; j < to; j++) {
        copies_wait<0>();
        __syncthreads();
        copy(j + 1);
        u32 token = look_up(j + 3);
#if KV_F8
        const u8 *raw = shared + TILES_AT + KEY_TILE + VALUE_TILE;
        const float *scales = (const float *)(raw + 2 * (RAW_KEYS + RAW_VALUES)) + j % 2 * KEYS;
        widen<KEYS, THREADS, KEY_DIM, KEY_STRIDE>(raw + j % 2 * RAW_KEYS, scales, shared + TILES_AT,
                                                  threadIdx.x);
        widen<KEYS, THREADS, VALUE_DIM, VALUE_STRIDE>(raw + 2 * RAW_KEYS + j % 2 * RAW_VALUES,
                                                      scales + 2 * KEYS, shared + TILES_AT + KEY_TILE,
                                                      threadIdx.x);
        __syncthreads();
#endif
        if (j * KEYS < none_sees) {
            Scores scores;
            score(scores, stay, query_at, keys_at(j));
            weigh(scores, j);
        }
        keep(j + 3, token);
    }

    bool aligned = (((u64)out | (u64)out_stride * 2) & 3) == 0;
#pragma unroll
    for (u32 t = 0; t < TALL; t++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float total = softmax.total[t][half];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            u32 packed = tile.start + first_row_of_warp + t * 16 + half * 8 + lane / 4;
            if (packed >= tile.rows) continue;
            u32 row = tile.first + packed / group, head = kv_head * group + packed % group;
#if SPLIT
            u32 heads = kv_heads * group;
            u64 at = ((u64)blockIdx.y * rows + row) * heads + head;
            if (lane % 4 == 0) {
                float largest = softmax.largest[t][half];
                totals_out[at * 2] = largest == MINUS_INFINITY ? MINUS_INFINITY : largest * factor;
                totals_out[at * 2 + 1] = total;
            }
            float *to_sums = sums_out + at * VALUE_DIM + lane % 4 * 2;
#pragma unroll
            for (u32 n = 0; n < VALUE_DIM / 8; n++) {
                to_sums[n * 8] = sums[t][n][half * 2];
                to_sums[n * 8 + 1] = sums[t][n][half * 2 + 1];
            }
#else
            float by = 1.0f / total;
            u16 *to_out = out + (u64)row * out_stride + head * VALUE_DIM + lane % 4 * 2;
#pragma unroll
            for (u32 n = 0; n < VALUE_DIM / 8; n++)
                put_two(to_out + n * 8, aligned, sums[t][n][half * 2] * by, sums[t][n][half * 2 + 1] * by);
#endif
        }
}
