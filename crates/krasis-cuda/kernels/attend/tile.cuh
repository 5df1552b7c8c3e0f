// What the attention kernels share: which rows a block has, where tokens lie, copies to shared
// memory, and partial results.
//
// A block's rows are packed: the query heads of one KV head, [token, head of the group], so that a
// tile is full whatever the group is, and keys are read once for all of them.
//
//   KV_F8    1: keys and values are F8E4M3 with a scale per token and head; 0: BF16
//   PAGED    1: tokens lie in the pages of their sequence; 0: one after the other, from `pages[seq]`
#pragma once
#include <arrive.cuh>
#include <attend/ptx.cuh>

#ifndef KV_F8
#define KV_F8 0
#endif
#ifndef PAGED
#define PAGED 1
#endif

#if KV_F8
typedef u8 kv;
#else
typedef u16 kv;
#endif

// Elements of 16 bytes in the store.
#define KV_PER (16 / sizeof(kv))
#define NOWHERE ~0u
#define LOG2_E 1.4426950408889634f
#define MINUS_INFINITY (-__uint_as_float(0x7f800000u))

// Where the keys of a step lie.
struct Seqs {
    const u32 *first_row;
    const u32 *positions;
    const u32 *pages;
    u32 pages_max;
    u32 page;
    u32 count;
};

// A block's part of one sequence.
struct Tile {
    u32 seq;
    // First row of the sequence, its packed rows, and those before this tile.
    u32 first, rows, start;
};

// Tiles of all sequences, one after the other: false beyond the last. `keys` is the last position that
// the tile sees, and one more. By a warp: sequences and the first positions are read together, for each
// read takes a microsecond when other layers have passed through the cache.
__device__ inline bool find_tile(u32 tile, const Seqs &seqs, u32 rows, u32 group, u32 tile_rows, Tile &to, u32 &keys) {
    u32 lane = threadIdx.x % 32;
    u32 position = lane < rows ? seqs.positions[lane] : 0;
    u32 before = 0;
    for (u32 seq = 0; seq < seqs.count; seq += 32) {
        bool mine = seq + lane < seqs.count;
        u32 first = mine ? seqs.first_row[seq + lane] : 0, end = mine ? seqs.first_row[seq + lane + 1] : 0;
        u32 packed = (end - first) * group, tiles = (packed + tile_rows - 1) / tile_rows, sum = tiles;
        for (u32 step = 1; step < 32; step *= 2) {
            u32 other = __shfl_sync(~0u, sum, (lane - step) % 32);
            if (lane >= step) sum += other;
        }
        sum += before;
        u32 here = __ballot_sync(~0u, tile < sum);
        if (here) {
            u32 from = __ffs(here) - 1;
            to = Tile{seq + from, __shfl_sync(~0u, first, from), __shfl_sync(~0u, packed, from),
                      (tile - __shfl_sync(~0u, sum - tiles, from)) * tile_rows};
            u32 last = to.first + (min(to.start + tile_rows, to.rows) - 1) / group;
            u32 early = __shfl_sync(~0u, position, last % 32);
            keys = (last < 32 ? early : seqs.positions[last]) + 1;
            return true;
        }
        before = __shfl_sync(~0u, sum, 31);
    }
    return false;
}

// Where the token at `position` lies, nowhere from `keys` on.
__device__ inline u32 token_at(const Seqs &seqs, u32 seq, u32 position, u32 keys) {
    if (position >= keys) return NOWHERE;
#if PAGED
    u32 page = seqs.pages[(u64)seq * seqs.pages_max + position / seqs.page];
    return page * seqs.page + position % seqs.page;
#else
    return seqs.pages[seq] + position;
#endif
}

// Columns of a pass of copies: the largest power of two that is left, so that a thread keeps its
// column.
constexpr u32 pass_pieces(u32 pieces) {
    return pieces >= 32 ? 32 : pieces >= 16 ? 16 : pieces >= 8 ? 8 : pieces >= 4 ? 4 : pieces >= 2 ? 2 : 1;
}

// Copies rows of PIECES · 16 bytes, `tokens` [ROWS] in shared memory, to rows of STRIDE bytes. Tokens
// are read before anything is copied: the hardware keeps the order of reads and writes of shared
// memory, and would wait for each.
template <u32 ROWS, u32 THREADS, u32 STRIDE, u32 PIECES, u32 FIRST = 0>
__device__ inline void copy_rows(const kv *from, u64 token_stride, const u32 *tokens, u32 to) {
    constexpr u32 WIDE = pass_pieces(PIECES), TOGETHER = THREADS / WIDE, COUNT = (ROWS + TOGETHER - 1) / TOGETHER;
    u32 piece = FIRST + threadIdx.x % WIDE, first = threadIdx.x / WIDE;
    u32 token[COUNT];
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
        u32 row = first + i * TOGETHER;
        token[i] = ROWS % TOGETHER && row >= ROWS ? NOWHERE : tokens[row];
    }
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
        u32 row = first + i * TOGETHER;
        if (ROWS % TOGETHER && row >= ROWS) break;
        bool valid = token[i] != NOWHERE;
        copy_16(to + row * STRIDE + piece * 16, from + (valid ? token[i] : 0) * token_stride + piece * KV_PER, valid);
    }
    if constexpr (PIECES > WIDE)
        copy_rows<ROWS, THREADS, STRIDE, PIECES - WIDE, FIRST + WIDE>(from, token_stride, tokens, to);
}

// The same for keys and values of one shape: one look at the tokens.
template <u32 ROWS, u32 THREADS, u32 STRIDE, u32 PIECES, u32 FIRST = 0>
__device__ inline void copy_both(const kv *keys, const kv *values, u64 token_stride, const u32 *tokens,
                                 u32 to_keys, u32 to_values) {
    constexpr u32 WIDE = pass_pieces(PIECES), TOGETHER = THREADS / WIDE, COUNT = (ROWS + TOGETHER - 1) / TOGETHER;
    u32 piece = FIRST + threadIdx.x % WIDE, first = threadIdx.x / WIDE;
    u32 token[COUNT];
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
        u32 row = first + i * TOGETHER;
        token[i] = ROWS % TOGETHER && row >= ROWS ? NOWHERE : tokens[row];
    }
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
        u32 row = first + i * TOGETHER, at = row * STRIDE + piece * 16;
        if (ROWS % TOGETHER && row >= ROWS) break;
        bool valid = token[i] != NOWHERE;
        u64 offset = (valid ? token[i] : 0) * token_stride + piece * KV_PER;
        copy_16(to_keys + at, keys + offset, valid);
        copy_16(to_values + at, values + offset, valid);
    }
    if constexpr (PIECES > WIDE)
        copy_both<ROWS, THREADS, STRIDE, PIECES - WIDE, FIRST + WIDE>(keys, values, token_stride, tokens, to_keys,
                                                                      to_values);
}

// F8 rows of DIM bytes, times their scales, to BF16 rows of STRIDE bytes.
template <u32 ROWS, u32 THREADS, u32 DIM, u32 STRIDE>
__device__ inline void widen(const u8 *from, const float *scales, u8 *to, u32 thread) {
#pragma unroll 4
    for (u32 i = thread; i < ROWS * DIM / 16; i += THREADS) {
        u32 row = i / (DIM / 16), piece = i % (DIM / 16);
        uint4 in = ((const uint4 *)from)[i];
        float scale = scales[row];
        uint4 *out = (uint4 *)(to + row * STRIDE + piece * 32);
        out[0] = make_uint4(pack_f8(in.x, scale), pack_f8(in.x >> 16, scale), pack_f8(in.y, scale),
                            pack_f8(in.y >> 16, scale));
        out[1] = make_uint4(pack_f8(in.z, scale), pack_f8(in.z >> 16, scale), pack_f8(in.w, scale),
                            pack_f8(in.w >> 16, scale));
    }
}

// Starts to copy the queries of a tile to shared memory, rows of STRIDE bytes; zeros beyond the
// sequence's rows. Head `h` of a row begins at column h · DIM. Views that do not begin at 16 bytes are
// copied at once, two bytes at a time.
template <u32 ROWS, u32 THREADS, u32 DIM, u32 STRIDE>
__device__ inline void copy_queries(const u16 *q, u32 q_stride, u32 head, u32 group, const Tile &tile, u8 *to) {
    bool aligned = (((u64)q | (u64)q_stride * 2) & 15) == 0;
    u32 to_address = shared_address(to);
    for (u32 i = threadIdx.x; i < ROWS * DIM / 8; i += THREADS) {
        u32 row = i / (DIM / 8), piece = i % (DIM / 8), packed = tile.start + row;
        bool valid = packed < tile.rows;
        if (!valid) packed = tile.start;
        const u16 *from = q + (u64)(tile.first + packed / group) * q_stride;
        from += (head + packed % group) * DIM + piece * 8;
        u32 at = row * STRIDE + piece * 16;
        if (aligned) {
            copy_16(to_address + at, from, valid);
        } else {
#pragma unroll
            for (u32 j = 0; j < 8; j++) ((u16 *)(to + at))[j] = valid ? from[j] : 0;
        }
    }
}

// Two neighbours of a BF16 row.
__device__ inline void put_two(u16 *to, bool aligned, float a, float b) {
    u32 both = pack(a, b);
    if (aligned) {
        *(u32 *)to = both;
    } else {
        to[0] = (u16)both;
        to[1] = (u16)(both >> 16);
    }
}

// Partial results of splits: sums before division, and (largest score · scale · log2 e, total).
struct Partial {
    // [splits, rows · heads, dim] and [splits, rows · heads, 2]
    float *sums, *totals;
};

// Brings the splits of a row and head together, by SHARES warps that take splits in turn, each lane
// four columns from `column` + 4 · lane: what is loaded never waits for what was. The sums of this
// warp's splits, not divided yet; `total` is that of all.
template <u32 DIM, u32 SHARES, u32 TOGETHER>
__device__ inline float4 merge(const Partial &partial, u32 splits, u32 all, u32 at, u32 warp, u32 column,
                               float &total) {
    u32 lane = threadIdx.x % 32;
    const float2 *totals = (const float2 *)partial.totals + at;
    const float *sums = partial.sums + (u64)at * DIM + column + lane * 4;
    bool inside = DIM % 128 == 0 || column + lane * 4 < DIM;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float largest = MINUS_INFINITY;
    total = 0.0f;
    for (u32 first = warp; first == warp || first < splits; first += SHARES * TOGETHER) {
        float4 x[TOGETHER];
        float weight[TOGETHER];
#pragma unroll
        for (u32 i = 0; i < TOGETHER; i++) {
            u32 split = first + i * SHARES;
            x[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            weight[i] = MINUS_INFINITY;
            if (split < splits) {
                weight[i] = totals[(u64)split * all].x;
                if (inside) x[i] = *(const float4 *)(sums + (u64)split * all * DIM);
            }
        }
        if (first == warp) {
            for (u32 split = lane; split < splits; split += 32)
                largest = fmaxf(largest, totals[(u64)split * all].x);
            for (u32 step = 16; step > 0; step /= 2)
                largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
            for (u32 split = lane; split < splits; split += 32) {
                float2 one = totals[(u64)split * all];
                total += exp_2(one.x - largest) * one.y;
            }
            for (u32 step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
        }
#pragma unroll
        for (u32 i = 0; i < TOGETHER; i++) {
            float by = exp_2(weight[i] - largest);
            sum.x += by * x[i].x, sum.y += by * x[i].y, sum.z += by * x[i].z, sum.w += by * x[i].w;
        }
    }
    return sum;
}

__device__ inline void put_four(u16 *to, const float4 &sum, float by) {
    bool aligned = ((u64)to & 3) == 0;
    put_two(to, aligned, sum.x * by, sum.y * by);
    put_two(to + 2, aligned, sum.z * by, sum.w * by);
}
