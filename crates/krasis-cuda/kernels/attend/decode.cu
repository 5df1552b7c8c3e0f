// Causal attention of few rows over long pasts, keys split among blocks: what it takes is the time
// to read the keys and values once. A block has up to 16 · TALL packed rows of one KV head and a
// part of its keys; its warps take 16 keys in turn, each with its own ring of copies under way, so
// that nothing waits for anything but memory. Warps are brought together through shared memory,
// blocks through memory: by the last of them to arrive, or by `attend_merge` where that is too much for
// one.
//
// An H200 gives 18 bytes a clock to each multiprocessor after about 1,300 clocks: 24 KiB must be under
// way in each, and WARPS · (STAGES − 1) · 16 keys are.
//
//   KEY_DIM, VALUE_DIM   elements of a head, multiples of 16
//   WARPS, TALL, STAGES  the block
//   SHARED_BYTES         what it is launched with
#include <attend/tile.cuh>

#ifndef BLOCKS
#define BLOCKS 1
#endif

constexpr u32 THREADS = WARPS * 32, ROWS = TALL * 16, KEYS = 16;
constexpr u32 KEY_STRIDE = KEY_DIM * 2 + 16, VALUE_STRIDE = VALUE_DIM * 2 + 16;
// F8 rows as they lie in memory, keys 32 bytes apart from each other's banks, values 16; then scales of both.
constexpr u32 RAW_KEY = KEY_DIM + 32, RAW_VALUE = VALUE_DIM + 16;
constexpr u32 TILE = KV_F8 ? KEYS * (RAW_KEY + RAW_VALUE + 8) : KEYS * (KEY_STRIDE + VALUE_STRIDE);
constexpr u32 RING = STAGES * TILE;
constexpr u32 QUERIES = ROWS * KEY_STRIDE;
constexpr u32 STEPS = KEY_DIM / 16;
// At the end, in place of everything: sums of each warp, then (largest, total) of each.
constexpr u32 SUM_STRIDE = VALUE_DIM + 4;
constexpr u32 SUMS = WARPS * ROWS * SUM_STRIDE * 4, END = SUMS + WARPS * ROWS * 8;
constexpr u32 BEGIN = QUERIES + WARPS * RING;
constexpr u32 SHARED = BEGIN > END ? BEGIN : END;
static_assert(KEY_DIM % 16 == 0 && VALUE_DIM % 16 == 0, "multiples of 16");
static_assert(STAGES >= 2, "copies under way");
static_assert(!KV_F8 || (KEY_DIM % 32 == 0 && VALUE_DIM % 32 == 0), "F8 in words");

static_assert(SHARED == SHARED_BYTES, "what it is launched with");

// F8 becomes BF16 by three instructions for two, 2^120 too small: exponent and mantissa go where BF16 has
// them. The other factor of a product is 2^112 larger than it should be, and sums are mended by 2^8.
__device__ inline u32 odd_bytes(u32 word) { return (word >> 4 & 0x07f007f0) | (word & 0x80008000); }
__device__ inline u32 even_bytes(u32 word) { return odd_bytes(word << 8); }
#define LARGER __uint_as_float((127 + 112u) << 23)
#define MEND 256.0f

// 16 rows of a warp; `token` of key `lane % 16`.
template <u32 PIECES, u32 STRIDE>
__device__ inline void copy_keys(const kv *from, u64 token_stride, u32 token, u32 to, u64 policy) {
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 i = 0; i < PIECES / 2; i++) {
        u32 row = (i * 32 + lane) / PIECES, piece = (i * 32 + lane) % PIECES;
        u32 at = __shfl_sync(~0u, token, row);
        bool valid = at != NOWHERE;
        copy_16_once(to + row * STRIDE + piece * 16, from + (valid ? at : 0) * token_stride + piece * KV_PER, valid,
                     policy);
    }
}

// Splits whose results are on their way together.
#define TOGETHER 16

// The results of all splits of a row and head: four columns of them, divided.
__device__ inline float4 merged(const float *sums, const float *totals, u32 splits, u64 apart) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float largest = MINUS_INFINITY, all = 0.0f;
    for (u32 first = 0; first < splits; first += TOGETHER) {
        float4 x[TOGETHER];
        float2 total[TOGETHER];
#pragma unroll
        for (u32 i = 0; i < TOGETHER; i++) {
            u64 at = min(first + i, splits - 1) * apart;
            total[i] = fresh_2(totals + at * 2);
            x[i] = fresh_4(sums + at * VALUE_DIM);
        }
        float most = largest;
#pragma unroll
        for (u32 i = 0; i < TOGETHER; i++) most = fmaxf(most, total[i].x);
        // The first split has the first key, which every row sees.
        float by = exp_2(largest - most);
        largest = most;
        all *= by, sum.x *= by, sum.y *= by, sum.z *= by, sum.w *= by;
#pragma unroll
        for (u32 i = 0; i < TOGETHER; i++) {
            float weight = first + i < splits ? exp_2(total[i].x - largest) : 0.0f;
            all += weight * total[i].y;
            sum.x += weight * x[i].x, sum.y += weight * x[i].y, sum.z += weight * x[i].z, sum.w += weight * x[i].w;
        }
    }
    float by = 1.0f / all;
    return make_float4(sum.x * by, sum.y * by, sum.z * by, sum.w * by);
}

// Grid [splits, kv heads, tiles], `tiles` at least the sum over sequences of their rows · group / ROWS,
// rounded up: rows · (group / ROWS, rounded up) is enough. Block [THREADS], SHARED bytes. One split
// needs no merging: it writes to `out`. `arrivals` [tiles, kv heads] are zero before and after; without
// them every split leaves its results to `attend_merge`.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attend_decode(const u16 *q, u32 q_stride, const kv *k_data, const float *k_scales, const kv *v_data,
                  const float *v_scales, u32 kv_heads, u32 group, u32 page, const u32 *first_row,
                  const u32 *positions, const u32 *pages, u32 pages_max, u32 seq_count, u32 rows,
                  float scale, u16 *out, u32 out_stride, float *sums_out, float *totals_out, u32 *arrivals) {
    DYNAMIC_SHARED(shared);
    let_later_start();
    const u32 base_address = shared_address(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 kv_head = blockIdx.y, splits = gridDim.x;
    Seqs seqs{first_row, positions, pages, pages_max, page, seq_count};
    Tile tile;
    u32 keys;
    // Pieces go round the blocks and their warps, so that those under way lie together in memory, and
    // so that the first pages can be asked for before the sequence's length is there: most often the
    // sequence is that of this index.
    u32 first = blockIdx.x * WARPS + warp, apart = splits * WARPS;
    u32 guess[STAGES];
#pragma unroll
    for (u32 i = 0; i < STAGES; i++) {
        u32 place = ((first + i * apart) * KEYS + lane % 16) / page;
        guess[i] = blockIdx.z < seq_count && place < pages_max ? pages[(u64)blockIdx.z * pages_max + place] : 0;
    }
    bool there = find_tile(blockIdx.z, seqs, rows, group, ROWS, tile, keys);
    // Lists of the step came before its first kernel; queries, keys and values come from kernels.
    wait_for_earlier();
    if (!there) return;
    u32 to = (keys + KEYS - 1) / KEYS;
    // Splits that have keys: of a short past the first ones.
    u32 used = arrivals ? min(splits, (to + WARPS - 1) / WARPS) : splits;
    if (blockIdx.x >= used) return;

    const kv *k = k_data + (u64)kv_head * KEY_DIM, *v = v_data + (u64)kv_head * VALUE_DIM;
    u64 k_stride = (u64)kv_heads * KEY_DIM, v_stride = (u64)kv_heads * VALUE_DIM;
    const u64 policy = read_once();
    const u32 ring = QUERIES + warp * RING;
    auto look_up = [&](u32 j) -> u32 {
        return j < to ? token_at(seqs, tile.seq, j * KEYS + lane % 16, keys) : NOWHERE;
    };
    auto copy = [&](u32 j, u32 stage, u32 token) {
        if (j < to) {
#if KV_F8
            u32 at = base_address + ring + stage * TILE;
            copy_keys<KEY_DIM / 16, RAW_KEY>(k, k_stride, token, at, policy);
            copy_keys<VALUE_DIM / 16, RAW_VALUE>(v, v_stride, token, at + KEYS * RAW_KEY, policy);
            bool valid = token != NOWHERE;
            u64 scale_at = (u64)(valid ? token : 0) * kv_heads + kv_head;
            copy_4(at + KEYS * (RAW_KEY + RAW_VALUE) + lane * 4, (lane < 16 ? k_scales : v_scales) + scale_at, valid);
#else
            u32 at = base_address + ring + stage * TILE;
            copy_keys<KEY_DIM / 8, KEY_STRIDE>(k, k_stride, token, at, policy);
            copy_keys<VALUE_DIM / 8, VALUE_STRIDE>(v, v_stride, token, at + KEYS * KEY_STRIDE, policy);
#endif
        }
        copies_end();
    };
    copy_queries<ROWS, THREADS, KEY_DIM, KEY_STRIDE>(q, q_stride, kv_head * group, group, tile, shared);
    copies_end();
    u32 first_tokens[STAGES];
#pragma unroll
    for (u32 i = 0; i < STAGES; i++) {
        u32 position = (first + i * apart) * KEYS + lane % 16;
        first_tokens[i] = position < keys ? guess[i] * page + position % page : NOWHERE;
        if (tile.seq != blockIdx.z) first_tokens[i] = look_up(first + i * apart);
    }
#pragma unroll
    for (u32 i = 0; i < STAGES - 1; i++) copy(first + i * apart, i, first_tokens[i]);
    u32 token = first_tokens[STAGES - 1];

    u32 row_position[TALL][2];
#pragma unroll
    for (u32 t = 0; t < TALL; t++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 packed = tile.start + t * 16 + half * 8 + lane / 4;
            row_position[t][half] = packed < tile.rows ? positions[tile.first + packed / group] : keys - 1;
        }
    u32 all_see = positions[tile.first + tile.start / group] + 1;
    // The queries are there; keys and values are still on their way.
    copies_wait<STAGES - 1>();
    __syncthreads();
    u32 stay[TALL][STEPS][4];
#if KV_F8
    // A word of a key is four elements of its row: the even and the odd ones are neighbours in a product.
    auto larger = [&](u32 low, u32 high) {
        return pack(__uint_as_float(low << 16) * LARGER, __uint_as_float(high << 16) * LARGER);
    };
#pragma unroll
    for (u32 i = 0; i < TALL * STEPS * 2; i++) {
        u32 t = i / (STEPS * 2), step = i / 2 % STEPS, half = i % 2;
        uint2 four = *(const uint2 *)(shared + (t * 16 + half * 8 + lane / 4) * KEY_STRIDE +
                                      (step / 2 * 32 + lane % 4 * 8 + step % 2 * 4) * 2);
        stay[t][step][half] = larger(four.x & 0xffff, four.y & 0xffff);
        stay[t][step][2 + half] = larger(four.x >> 16, four.y >> 16);
    }
#else
#pragma unroll
    for (u32 t = 0; t < TALL; t++)
#pragma unroll
        for (u32 step = 0; step < STEPS; step++)
            matrices(stay[t][step], base_address + (t * 16 + lane % 16) * KEY_STRIDE + lane / 16 * 16 + step * 32);
#endif

    float sums[TALL][VALUE_DIM / 8][4], largest[TALL][2], total[TALL][2];
#pragma unroll
    for (u32 t = 0; t < TALL; t++) {
        largest[t][0] = largest[t][1] = MINUS_INFINITY;
        total[t][0] = total[t][1] = 0.0f;
#pragma unroll
        for (u32 n = 0; n < VALUE_DIM / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) sums[t][n][i] = 0.0f;
    }
    const float factor = scale * LOG2_E;
    u32 stage = 0;
    for (u32 j = first; j < to; j += apart) {
        copies_wait<STAGES - 2>();
        __syncwarp();
        // The stage before this one is free: all lanes are here.
        copy(j + (STAGES - 1) * apart, stage == 0 ? STAGES - 1 : stage - 1, token);
        token = look_up(j + STAGES * apart);
        u32 at = base_address + ring + stage * TILE;
        // Even and odd steps apart: two chains of products instead of one.
        float scores[2][TALL][2][4];
#pragma unroll
        for (u32 i = 0; i < 2 * TALL * 2 * 4; i++) scores[i / (TALL * 8)][i / 8 % TALL][i / 4 % 2][i % 4] = 0.0f;
#if KV_F8
        const u8 *raw = shared + ring + stage * TILE;
        const float *scales = (const float *)(raw + KEYS * (RAW_KEY + RAW_VALUE)) + lane % 4 * 2;
        float2 key_scales[2] = {*(const float2 *)scales, *(const float2 *)(scales + 8)};
        float2 value_scales[2] = {*(const float2 *)(scales + 16), *(const float2 *)(scales + 24)};
#pragma unroll
        for (u32 step = 0; step < STEPS; step += 2)
#pragma unroll
            for (u32 n = 0; n < 2; n++) {
                uint2 eight = *(const uint2 *)(raw + (n * 8 + lane / 4) * RAW_KEY + step * 16 + lane % 4 * 8);
#pragma unroll
                for (u32 t = 0; t < TALL; t++) {
                    multiply(scores[0][t][n], stay[t][step], even_bytes(eight.x), odd_bytes(eight.x));
                    multiply(scores[1][t][n], stay[t][step + 1], even_bytes(eight.y), odd_bytes(eight.y));
                }
            }
#else
        u32 key_at = at + (lane % 8 + lane / 16 * 8) * KEY_STRIDE + lane / 8 % 2 * 16;
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            u32 b[4];
            matrices(b, key_at + step * 32);
#pragma unroll
            for (u32 t = 0; t < TALL; t++) {
                multiply(scores[step % 2][t][0], stay[t][step], b[0], b[1]);
                multiply(scores[step % 2][t][1], stay[t][step], b[2], b[3]);
            }
        }
#endif
        bool blind = (j + 1) * KEYS > all_see, rises = false;
        float by[TALL][2];
        u32 a[TALL][4];
#pragma unroll
        for (u32 t = 0; t < TALL; t++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                float x[4], most = MINUS_INFINITY;
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    x[i] = scores[0][t][i / 2][half * 2 + i % 2] + scores[1][t][i / 2][half * 2 + i % 2];
#if KV_F8
                    x[i] *= MEND * (i % 2 ? key_scales[i / 2].y : key_scales[i / 2].x);
#endif
                    u32 position = j * KEYS + i / 2 * 8 + lane % 4 * 2 + i % 2;
                    if (blind && position > row_position[t][half]) x[i] = MINUS_INFINITY;
                    most = fmaxf(most, x[i]);
                }
                most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
                most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
                float before = largest[t][half];
                most = fmaxf(most, before);
                largest[t][half] = most;
                // A row that has seen no key yet.
                float base = most == MINUS_INFINITY ? 0.0f : most * factor;
                by[t][half] = exp_2(before * factor - base);
                rises |= most != before;
#pragma unroll
                for (u32 i = 0; i < 4; i++) x[i] = exp_2(x[i] * factor - base);
                total[t][half] = total[t][half] * by[t][half] + (x[0] + x[1] + (x[2] + x[3]));
#if KV_F8
#pragma unroll
                for (u32 i = 0; i < 4; i++)
                    x[i] *= LARGER * (i % 2 ? value_scales[i / 2].y : value_scales[i / 2].x);
#endif
                a[t][half] = pack(x[0], x[1]);
                a[t][2 + half] = pack(x[2], x[3]);
            }
        if (__any_sync(~0u, rises)) {
#pragma unroll
            for (u32 t = 0; t < TALL; t++)
#pragma unroll
                for (u32 n = 0; n < VALUE_DIM / 8; n++)
#pragma unroll
                    for (u32 i = 0; i < 4; i++) sums[t][n][i] *= by[t][i / 2];
        }
#if KV_F8
        u32 value_at = at + KEYS * RAW_KEY + lane % 16 * RAW_VALUE + lane / 16 * 16;
#pragma unroll
        for (u32 n = 0; n < VALUE_DIM / 32; n++) {
            // Transposed, a word is two neighbours of two keys: the even columns are one product, the odd
            // ones another.
            u32 b[4];
            matrices_transposed(b, value_at + n * 32);
#pragma unroll
            for (u32 t = 0; t < TALL; t++)
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    multiply(sums[t][4 * n + 2 * i], a[t], even_bytes(b[2 * i]), even_bytes(b[2 * i + 1]));
                    multiply(sums[t][4 * n + 2 * i + 1], a[t], odd_bytes(b[2 * i]), odd_bytes(b[2 * i + 1]));
                }
        }
#else
        u32 value_at = at + KEYS * KEY_STRIDE + lane % 16 * VALUE_STRIDE + lane / 16 * 16;
#pragma unroll
        for (u32 n = 0; n < VALUE_DIM / 16; n++) {
            u32 b[4];
            matrices_transposed(b, value_at + n * 32);
#pragma unroll
            for (u32 t = 0; t < TALL; t++) {
                multiply(sums[t][2 * n], a[t], b[0], b[1]);
                multiply(sums[t][2 * n + 1], a[t], b[2], b[3]);
            }
        }
#endif
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }

    copies_wait<0>();
    __syncthreads();
    float *warp_sums = (float *)shared;
    float2 *warp_totals = (float2 *)(shared + SUMS);
#pragma unroll
    for (u32 t = 0; t < TALL; t++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 row = t * 16 + half * 8 + lane / 4;
            bool there = tile.start + row < tile.rows;
            float all = total[t][half];
            all += __shfl_xor_sync(~0u, all, 1);
            all += __shfl_xor_sync(~0u, all, 2);
            float most = largest[t][half];
            if (!there) continue;
            if (lane % 4 == 0)
                warp_totals[warp * ROWS + row] =
                    make_float2(most == MINUS_INFINITY ? MINUS_INFINITY : most * factor, all);
#if KV_F8
            float *to_sums = warp_sums + (warp * ROWS + row) * SUM_STRIDE + lane % 4 * 4;
#pragma unroll
            for (u32 n = 0; n < VALUE_DIM / 16; n++) {
                const float *even = sums[t][2 * n] + half * 2, *odd = sums[t][2 * n + 1] + half * 2;
                *(float4 *)(to_sums + n * 16) =
                    make_float4(even[0] * MEND, odd[0] * MEND, even[1] * MEND, odd[1] * MEND);
            }
#else
            float *to_sums = warp_sums + (warp * ROWS + row) * SUM_STRIDE + lane % 4 * 2;
#pragma unroll
            for (u32 n = 0; n < VALUE_DIM / 8; n++)
                *(float2 *)(to_sums + n * 8) = make_float2(sums[t][n][half * 2], sums[t][n][half * 2 + 1]);
#endif
        }
    __syncthreads();
    u32 heads = kv_heads * group;
    for (u32 i = threadIdx.x; i < ROWS * VALUE_DIM / 4; i += THREADS) {
        u32 r = i / (VALUE_DIM / 4), col = i % (VALUE_DIM / 4) * 4, packed = tile.start + r;
        if (packed >= tile.rows) break;
        float most = MINUS_INFINITY, all = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) most = fmaxf(most, warp_totals[w * ROWS + r].x);
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (most != MINUS_INFINITY) {
#pragma unroll
            for (u32 w = 0; w < WARPS; w++) {
                float2 one = warp_totals[w * ROWS + r];
                float weight = exp_2(one.x - most);
                float4 x = *(const float4 *)(warp_sums + (w * ROWS + r) * SUM_STRIDE + col);
                all += weight * one.y;
                sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
            }
        }
        u32 row = tile.first + packed / group, head = kv_head * group + packed % group;
        if (used == 1) {
            put_four(out + (u64)row * out_stride + head * VALUE_DIM + col, sum, 1.0f / all);
            continue;
        }
        u64 to_row = ((u64)blockIdx.x * rows + row) * heads + head;
        *(float4 *)(sums_out + to_row * VALUE_DIM + col) = sum;
        if (col == 0) totals_out[to_row * 2] = most, totals_out[to_row * 2 + 1] = all;
    }
    if (!arrivals || used == 1 || !last_to_arrive(arrivals + blockIdx.z * kv_heads + kv_head, used, shared)) return;
    for (u32 i = threadIdx.x; i < ROWS * VALUE_DIM / 4; i += THREADS) {
        u32 r = i / (VALUE_DIM / 4), col = i % (VALUE_DIM / 4) * 4, packed = tile.start + r;
        if (packed >= tile.rows) break;
        u32 row = tile.first + packed / group, head = kv_head * group + packed % group;
        u64 at = (u64)row * heads + head;
        float4 sum = merged(sums_out + at * VALUE_DIM + col, totals_out + at * 2, used, (u64)rows * heads);
        put_four(out + (u64)row * out_stride + head * VALUE_DIM + col, sum, 1.0f);
    }
}
