// Absorbed multi-head latent attention of few rows over long pasts, keys split among blocks. All heads
// share a token's latent, which is its value too: a block reads each token once for 16 · TALL packed
// rows [token, head].
//
// Scores: warp w has rows 16 (w % TALL) and an equal part of the tile's keys. Values: each warp has all
// rows and LATENT / WARPS columns; weights pass through shared memory. (That each warp does the softmax
// of all rows again, to save a barrier, is slower: 58.9 for 56.8 us at 131,072 tokens and 16 heads.)
//
//   LATENT, ROPE               elements of the two parts of a key
//   WARPS, TALL, KEYS, STAGES  the block; KEYS · TALL / WARPS is 8 or a multiple of 16
//   STAY                       1: queries stay in registers
//   SHARED_BYTES               what it is launched with
#include <attend/tile.cuh>

#ifndef STAY
#define STAY 0
#endif
#ifndef BLOCKS
#define BLOCKS 1
#endif

constexpr u32 THREADS = WARPS * 32, ROWS = TALL * 16, DIM = LATENT + ROPE;
constexpr u32 STRIDE = DIM * 2 + 16, TILE = KEYS * STRIDE;
constexpr u32 RAW = KEYS * (DIM + 8), RAW_SCALES = KEYS * DIM;
constexpr u32 STEPS = DIM / 16;
// Keys of a warp's scores, warps that share rows, columns of a warp's values.
constexpr u32 PART = KEYS * TALL / WARPS, PARTS = WARPS / TALL, COLUMNS = LATENT / WARPS;
constexpr u32 QUERIES = ROWS * STRIDE, RING_AT = QUERIES;
constexpr u32 WEIGHTS_AT = RING_AT + (KV_F8 ? TILE + STAGES * RAW : STAGES * TILE);
constexpr u32 WEIGHT_STRIDE = KEYS * 2 + 16;
constexpr u32 LARGEST_AT = WEIGHTS_AT + ROWS * WEIGHT_STRIDE, BY_AT = LARGEST_AT + PARTS * ROWS * 4;
constexpr u32 TOKENS_AT = BY_AT + ROWS * 4, SHARED = TOKENS_AT + 4 * KEYS * 4;
static_assert((PART == 8 || PART % 16 == 0) && PART > 0 && WARPS % TALL == 0, "a warp's keys are whole matrices");
static_assert(PART > 8 || STEPS % 2 == 0, "pairs of steps");
// Chains of products that do not wait for each other.
constexpr u32 CHAINS = PART == 8 ? 4 : 2;
static_assert(COLUMNS % 16 == 0 && KEYS <= THREADS && STAGES >= 2, "whole matrices");

static_assert(SHARED == SHARED_BYTES, "what it is launched with");

// Grid [splits, 1, tiles], `tiles` at least the sum over sequences of their rows · heads / ROWS, rounded
// up. Block [THREADS], SHARED bytes. One split needs no merging: it writes to `out`.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    mla_attend_decode(const u16 *q, u32 q_stride, const u16 *q_rope, u32 q_rope_stride, const kv *c_data,
                      const float *c_scales, const kv *r_data, const float *r_scales, u32 heads, u32 page,
                      const u32 *first_row, const u32 *positions, const u32 *pages, u32 pages_max,
                      u32 seq_count, u32 rows, float scale, u16 *out, u32 out_stride,
                      float *sums_out, float *totals_out) {
    DYNAMIC_SHARED(shared);
    let_later_start();
    wait_for_earlier();
    const u32 base_address = shared_address(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, splits = gridDim.x;
    Seqs seqs{first_row, positions, pages, pages_max, page, seq_count};
    Tile tile;
    u32 keys;
    if (!find_tile(blockIdx.z, seqs, rows, heads, ROWS, tile, keys)) return;
    u32 tiles = (keys + KEYS - 1) / KEYS;
    u32 from = (u32)((u64)tiles * blockIdx.x / splits), to = (u32)((u64)tiles * (blockIdx.x + 1) / splits);

    u32 *tokens = (u32 *)(shared + TOKENS_AT);
    auto look_up = [&](u32 j) -> u32 {
        if (threadIdx.x >= KEYS || j >= to) return NOWHERE;
        return token_at(seqs, tile.seq, j * KEYS + threadIdx.x, keys);
    };
    auto keep = [&](u32 j, u32 token) {
        if (threadIdx.x < KEYS) tokens[j % 4 * KEYS + threadIdx.x] = token;
    };
    auto copy = [&](u32 j) {
        if (j < to) {
            const u32 *at = tokens + j % 4 * KEYS;
            u32 stage = (j - from) % STAGES;
#if KV_F8
            u32 raw = base_address + RING_AT + TILE + stage * RAW;
            copy_rows<KEYS, THREADS, LATENT, LATENT / 16>(c_data, LATENT, at, raw);
            copy_rows<KEYS, THREADS, ROPE, ROPE / 16>(r_data, ROPE, at, raw + KEYS * LATENT);
            for (u32 i = threadIdx.x; i < 2 * KEYS; i += THREADS) {
                u32 token = at[i % KEYS];
                bool valid = token != NOWHERE;
                copy_4(raw + RAW_SCALES + i * 4, (i < KEYS ? c_scales : r_scales) + (valid ? token : 0), valid);
            }
#else
            u32 tile_at = base_address + RING_AT + stage * TILE;
            copy_rows<KEYS, THREADS, STRIDE, LATENT / 8>(c_data, LATENT, at, tile_at);
            copy_rows<KEYS, THREADS, STRIDE, ROPE / 8>(r_data, ROPE, at, tile_at + LATENT * 2);
#endif
        }
        copies_end();
    };
    copy_queries<ROWS, THREADS, LATENT, STRIDE>(q, q_stride, 0, heads, tile, shared);
    copy_queries<ROWS, THREADS, ROPE, STRIDE>(q_rope, q_rope_stride, 0, heads, tile, shared + LATENT * 2);
    copies_end();
    u32 first_tokens[STAGES];
#pragma unroll
    for (u32 i = 0; i < STAGES; i++) first_tokens[i] = look_up(from + i);
#pragma unroll
    for (u32 i = 0; i < STAGES; i++) keep(from + i, first_tokens[i]);
    __syncthreads();
    for (u32 i = 0; i < STAGES - 1; i++) copy(from + i);

    u32 mine = warp % TALL * 16, part = warp / TALL;
    u32 row_position[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 packed = tile.start + mine + half * 8 + lane / 4;
        row_position[half] = packed < tile.rows ? positions[tile.first + packed / heads] : keys - 1;
    }
    u32 all_see = positions[tile.first + tile.start / heads] + 1;
    float *part_largest = (float *)(shared + LARGEST_AT), *rows_by = (float *)(shared + BY_AT);
    float sums[TALL][COLUMNS / 8][4], largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {0.0f, 0.0f};
#pragma unroll
    for (u32 t = 0; t < TALL; t++)
#pragma unroll
        for (u32 n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) sums[t][n][i] = 0.0f;
    const float factor = scale * LOG2_E;
    u32 query_at = base_address + (mine + lane % 16) * STRIDE + lane / 16 * 16;
    u32 stay[STAY ? STEPS : 1][4];
    if constexpr (STAY) {
        // The queries are there; keys are still on their way.
        copies_wait<STAGES - 1>();
        __syncthreads();
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) matrices(stay[step], query_at + step * 32);
    }

    for (u32 j = from; j < to; j++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        copy(j + STAGES - 1);
        u32 token = look_up(j + STAGES);
        u32 stage = (j - from) % STAGES;
#if KV_F8
        const u8 *raw = shared + RING_AT + TILE + stage * RAW;
        const float *scales = (const float *)(raw + RAW_SCALES);
        widen<KEYS, THREADS, LATENT, STRIDE>(raw, scales, shared + RING_AT, threadIdx.x);
        widen<KEYS, THREADS, ROPE, STRIDE>(raw + KEYS * LATENT, scales + KEYS, shared + RING_AT + LATENT * 2,
                                           threadIdx.x);
        __syncthreads();
        u32 at = base_address + RING_AT;
#else
        u32 at = base_address + RING_AT + stage * TILE;
#endif
        float scores[CHAINS][PART / 8][4];
#pragma unroll
        for (u32 c = 0; c < CHAINS; c++)
#pragma unroll
            for (u32 i = 0; i < PART / 2; i++) scores[c][i / 4][i % 4] = 0.0f;
        auto query = [&](u32 (&a)[4], u32 step) {
            if constexpr (STAY) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) a[i] = stay[step][i];
            } else {
                matrices(a, query_at + step * 32);
            }
        };
        if constexpr (PART == 8) {
            // Four matrices are two steps of eight keys.
            u32 key_at = at + (part * 8 + lane % 8) * STRIDE + lane / 8 * 16;
#pragma unroll
            for (u32 step = 0; step < STEPS; step += 2) {
                u32 a[4], b[4];
                matrices(b, key_at + step * 32);
                query(a, step);
                multiply(scores[step % CHAINS][0], a, b[0], b[1]);
                query(a, step + 1);
                multiply(scores[(step + 1) % CHAINS][0], a, b[2], b[3]);
            }
        } else {
            u32 key_at = at + (part * PART + lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 16;
#pragma unroll
            for (u32 step = 0; step < STEPS; step++) {
                u32 a[4];
                query(a, step);
#pragma unroll
                for (u32 n = 0; n < PART / 16; n++) {
                    u32 b[4];
                    matrices(b, key_at + n * 16 * STRIDE + step * 32);
                    multiply(scores[step % 2][2 * n], a, b[0], b[1]);
                    multiply(scores[step % 2][2 * n + 1], a, b[2], b[3]);
                }
            }
        }
        bool blind = (j + 1) * KEYS > all_see;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float most = MINUS_INFINITY;
#pragma unroll
            for (u32 n = 0; n < PART / 8; n++)
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    float &x = scores[0][n][half * 2 + i];
#pragma unroll
                    for (u32 c = 1; c < CHAINS; c++) x += scores[c][n][half * 2 + i];
                    u32 position = j * KEYS + part * PART + n * 8 + lane % 4 * 2 + i;
                    if (blind && position > row_position[half]) x = MINUS_INFINITY;
                    most = fmaxf(most, x);
                }
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
            if (lane % 4 == 0) part_largest[part * ROWS + mine + half * 8 + lane / 4] = most;
        }
        __syncthreads();
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 row = mine + half * 8 + lane / 4;
            float before = largest[half], most = before;
#pragma unroll
            for (u32 p = 0; p < PARTS; p++) most = fmaxf(most, part_largest[p * ROWS + row]);
            largest[half] = most;
            // A row that has seen no key yet.
            float base = most == MINUS_INFINITY ? 0.0f : most * factor, by = exp_2(before * factor - base);
            if (part == 0 && lane % 4 == 0) rows_by[row] = most == before ? 1.0f : by;
            total[half] *= by;
            u8 *weights = shared + WEIGHTS_AT + row * WEIGHT_STRIDE + (part * PART + lane % 4 * 2) * 2;
#pragma unroll
            for (u32 n = 0; n < PART / 8; n++) {
                float x = exp_2(scores[0][n][half * 2] * factor - base);
                float y = exp_2(scores[0][n][half * 2 + 1] * factor - base);
                total[half] += x + y;
                *(u32 *)(weights + n * 16) = pack(x, y);
            }
        }
        __syncthreads();
        float by[TALL][2];
        bool rises = false;
#pragma unroll
        for (u32 t = 0; t < TALL; t++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                by[t][half] = rows_by[t * 16 + half * 8 + lane / 4];
                rises |= by[t][half] != 1.0f;
            }
        if (__any_sync(~0u, rises)) {
#pragma unroll
            for (u32 t = 0; t < TALL; t++)
#pragma unroll
                for (u32 n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                    for (u32 i = 0; i < 4; i++) sums[t][n][i] *= by[t][i / 2];
        }
        u32 weight_at = base_address + WEIGHTS_AT + lane % 16 * WEIGHT_STRIDE + lane / 16 * 16;
        u32 value_at = at + lane % 16 * STRIDE + lane / 16 * 16 + warp * COLUMNS * 2;
#pragma unroll
        for (u32 step = 0; step < KEYS / 16; step++) {
            u32 a[TALL][4];
#pragma unroll
            for (u32 t = 0; t < TALL; t++) matrices(a[t], weight_at + t * 16 * WEIGHT_STRIDE + step * 32);
#pragma unroll
            for (u32 n = 0; n < COLUMNS / 16; n++) {
                u32 b[4];
                matrices_transposed(b, value_at + step * 16 * STRIDE + n * 32);
#pragma unroll
                for (u32 t = 0; t < TALL; t++) {
                    multiply(sums[t][2 * n], a[t], b[0], b[1]);
                    multiply(sums[t][2 * n + 1], a[t], b[2], b[3]);
                }
            }
        }
        keep(j + STAGES, token);
    }

    // Totals of the parts, in place of their largest scores; every part knows the largest.
    __syncthreads();
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float all = total[half];
        all += __shfl_xor_sync(~0u, all, 1);
        all += __shfl_xor_sync(~0u, all, 2);
        if (lane % 4 == 0) {
            u32 row = mine + half * 8 + lane / 4;
            part_largest[part * ROWS + row] = all;
            if (part == 0) rows_by[row] = largest[half] == MINUS_INFINITY ? MINUS_INFINITY : largest[half] * factor;
        }
    }
    __syncthreads();
    bool aligned = (((u64)out | (u64)out_stride * 2) & 3) == 0;
#pragma unroll
    for (u32 t = 0; t < TALL; t++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 r = t * 16 + half * 8 + lane / 4, packed = tile.start + r;
            if (packed >= tile.rows) continue;
            u32 row = tile.first + packed / heads, head = packed % heads;
            float all = 0.0f;
#pragma unroll
            for (u32 p = 0; p < PARTS; p++) all += part_largest[p * ROWS + r];
            u32 column = warp * COLUMNS + lane % 4 * 2;
            if (splits == 1) {
                float by = 1.0f / all;
                u16 *to_out = out + (u64)row * out_stride + head * LATENT + column;
#pragma unroll
                for (u32 n = 0; n < COLUMNS / 8; n++)
                    put_two(to_out + n * 8, aligned, sums[t][n][half * 2] * by, sums[t][n][half * 2 + 1] * by);
                continue;
            }
            u64 at = ((u64)blockIdx.x * rows + row) * heads + head;
            if (warp == 0 && lane % 4 == 0) {
                totals_out[at * 2] = rows_by[r];
                totals_out[at * 2 + 1] = all;
            }
            float *to_sums = sums_out + at * LATENT + column;
#pragma unroll
            for (u32 n = 0; n < COLUMNS / 8; n++)
                *(float2 *)(to_sums + n * 8) = make_float2(sums[t][n][half * 2], sums[t][n][half * 2 + 1]);
        }
}
