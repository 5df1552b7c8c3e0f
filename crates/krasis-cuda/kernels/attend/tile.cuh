// What the attention kernels share: which rows a block has, where tokens lie, copies to shared
// memory, and partial results.
//
// A block's rows are packed: the query heads of one KV head, [token, head of the group], so that a
// tile is full whatever the group is, and keys are read once for all of them.
//
//   KV_F8    1: keys and values are F8E4M3 with a scale per token and head; 0: BF16
//   PAGED    1: tokens lie in the pages of their sequence; 0: one after the other, from `pages[seq]`
#pragma once
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

// Tiles of all sequences, one after the other: false beyond the last.
__device__ inline bool find_tile(u32 tile, const Seqs &seqs, u32 group, u32 tile_rows, Tile &to) {
    u32 first = seqs.first_row[0];
    for (u32 seq = 0; seq < seqs.count; seq++) {
        u32 end = seqs.first_row[seq + 1], rows = (end - first) * group;
        u32 tiles = (rows + tile_rows - 1) / tile_rows;
        if (tile < tiles) {
            to = Tile{seq, first, rows, tile * tile_rows};
            return true;
        }
        tile -= tiles;
        first = end;
    }
    return false;
}

// The last position that a tile sees, and one more.
__device__ inline u32 keys_of(const Tile &tile, const Seqs &seqs, u32 group, u32 tile_rows) {
    u32 last = min(tile.start + tile_rows, tile.rows) - 1;
    return seqs.positions[tile.first + last / group] + 1;
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

// Copies of the largest power of two of columns that is left, then of the rest, so that a thread
// keeps its column. `tokens` are [ROWS] in shared memory.
template <u32 ROWS, u32 THREADS, u32 STRIDE, u32 FIRST, u32 PIECES>
__device__ inline void copy_rows(const kv *from, u64 token_stride, const u32 *tokens, u32 to, u32 thread) {
    constexpr u32 WIDE = PIECES >= 32 ? 32 : PIECES >= 16 ? 16 : PIECES >= 8 ? 8 : PIECES >= 4 ? 4
                       : PIECES >= 2 ? 2 : 1;
    constexpr u32 TOGETHER = THREADS / WIDE;
    u32 piece = FIRST + thread % WIDE, row = thread / WIDE;
#pragma unroll
    for (u32 i = 0; i < (ROWS + TOGETHER - 1) / TOGETHER; i++, row += TOGETHER) {
        if (ROWS % TOGETHER && row >= ROWS) break;
        u32 token = tokens[row];
        bool valid = token != NOWHERE;
        const kv *at = from + (valid ? token : 0) * token_stride + piece * KV_PER;
        copy_16(to + row * STRIDE + piece * 16, at, valid);
    }
    if constexpr (PIECES > WIDE)
        copy_rows<ROWS, THREADS, STRIDE, FIRST + WIDE, PIECES - WIDE>(from, token_stride, tokens, to, thread);
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

// Queries of a tile to shared memory, rows of STRIDE bytes; zeros beyond the sequence's rows. Head
// `h` of a row begins at column h · DIM.
template <u32 ROWS, u32 THREADS, u32 DIM, u32 STRIDE>
__device__ inline void load_queries(const u16 *q, u32 q_stride, u32 head, u32 group, const Tile &tile, u8 *to) {
    bool aligned = (((u64)q | (u64)q_stride * 2) & 15) == 0;
    for (u32 i = threadIdx.x; i < ROWS * DIM / 8; i += THREADS) {
        u32 row = i / (DIM / 8), piece = i % (DIM / 8), packed = tile.start + row;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (packed < tile.rows) {
            u32 token = tile.first + packed / group;
            const u16 *from = q + (u64)token * q_stride + (head + packed % group) * DIM + piece * 8;
            if (aligned) {
                x = *(const uint4 *)from;
            } else {
                x.x = from[0] | (u32)from[1] << 16;
                x.y = from[2] | (u32)from[3] << 16;
                x.z = from[4] | (u32)from[5] << 16;
                x.w = from[6] | (u32)from[7] << 16;
            }
        }
        *(uint4 *)(to + row * STRIDE + piece * 16) = x;
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

// A warp brings the splits of one row and head together, in their order: deterministic.
template <u32 DIM>
__device__ inline void merge(const Partial &partial, u32 splits, u32 all, u32 at, u16 *out) {
    constexpr u32 PARTS = (DIM + 127) / 128;
    u32 lane = threadIdx.x % 32;
    const float2 *totals = (const float2 *)partial.totals + at;
    float largest = MINUS_INFINITY;
    for (u32 split = lane; split < splits; split += 32) largest = fmaxf(largest, totals[(u64)split * all].x);
    for (u32 step = 16; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    float4 sums[PARTS];
#pragma unroll
    for (u32 p = 0; p < PARTS; p++) sums[p] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float total = 0.0f;
    for (u32 first = 0; first < splits; first += 32) {
        u32 count = min(splits - first, 32u);
        float mine = 0.0f;
        if (lane < count) {
            float2 one = totals[(u64)(first + lane) * all];
            mine = exp_2(one.x - largest);
            total += mine * one.y;
        }
        const float *from = partial.sums + ((u64)first * all + at) * DIM + lane * 4;
        constexpr u32 TOGETHER = PARTS > 2 ? 4 : 16;
#pragma unroll TOGETHER
        for (u32 s = 0; s < count; s++) {
            float weight = __shfl_sync(~0u, mine, s);
#pragma unroll
            for (u32 p = 0; p < PARTS; p++) {
                // A split without keys has not written its sums.
                float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (weight != 0.0f && p * 128 + lane * 4 < DIM)
                    x = *(const float4 *)(from + (u64)s * all * DIM + p * 128);
                sums[p].x += weight * x.x, sums[p].y += weight * x.y;
                sums[p].z += weight * x.z, sums[p].w += weight * x.w;
            }
        }
    }
    for (u32 step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
    bool aligned = ((u64)out & 3) == 0;
    float by = 1.0f / total;
#pragma unroll
    for (u32 p = 0; p < PARTS; p++) {
        u32 col = p * 128 + lane * 4;
        if (col >= DIM) break;
        put_two(out + col, aligned, sums[p].x * by, sums[p].y * by);
        put_two(out + col + 2, aligned, sums[p].z * by, sums[p].w * by);
    }
}

// The last block of a tile to come here brings the splits together; `counter` is 0 before and after.
// Called by all threads when their partial results are written.
template <u32 DIM, u32 ROWS>
__device__ inline void merge_last(const Partial &partial, u32 splits, u32 *counter, const Tile &tile,
                                  u32 rows, u32 heads, u32 head, u32 group, u16 *out, u32 out_stride) {
    __shared__ u32 arrived;
    publish();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(counter, 1u);
    __syncthreads();
    if (arrived != splits - 1) return;
    publish();
    if (threadIdx.x == 0) *counter = 0;
    for (u32 i = threadIdx.x / 32; i < ROWS; i += blockDim.x / 32) {
        u32 packed = tile.start + i;
        if (packed >= tile.rows) break;
        u32 row = tile.first + packed / group, at_head = head + packed % group;
        merge<DIM>(partial, splits, rows * heads, row * heads + at_head,
                   out + (u64)row * out_stride + at_head * DIM);
    }
}
