// Products of few BF16 rows with a weight, as fast as memory delivers the weight.
//
// Sixteen outputs are the rows of mma.m16n8k16, and up to eight rows of activations its columns, so
// that one row costs what eight do and no sum knows its company. A block's eight warps are teams of
// `split`, each of which has its own outputs; the warps of a team take units of columns in turn and
// add up their sums at the end, in the order of the warps. `split` is a function of the columns
// alone, and so the order of a sum is that of the weight's shape, whatever the number of rows.
//
// Each warp has a ring of STAGES units in shared memory, all of them on their way at once: an H200 has
// to have 21 KiB a multiprocessor under way for 4 TB/s if memory answers after 0.7 us, and a block has
// 32 of INT4 and 64 of others. Activations lie in shared memory for the block's whole life, which is
// `across` tiles of outputs for each team.
//
// Bound: the weight's bytes. At 4 TB/s an H200 issues 7 instructions of a lane per byte; INT4 takes
// about 4.4, counted in the source with six for a product (moe/moe_gemm.cu), INT8 half of it.
//
// BITS is 4 or 8 for lines (krasis-core lines.rs) with scales of GROUP columns, unpacked as in
// moe/moe_gemm.cu, and 16 for BF16 in rows. 256 threads; dynamic shared memory: src/vector.rs.
#include <moe/mma.cuh>

#define WARPS 8
#define THREADS (WARPS * 32)

#if BITS == 16
#define UNIT_COLS 64
#define LINE_SCALES 0
// Bytes between rows of activations, beside their columns: those that eight lanes read together then
// lie in different banks.
#define APART 64
#define UNSCALE 1.0f
#else
#define UNIT_COLS 128
#define LINE_SCALES (128 / GROUP)
#define APART 16
// BF16 pairs: 2^120, and for high nibbles 2^116; minus zero · 2^-13; minus nothing.
#define LOW 0x7b807b80u
#define HIGH 0x79807980u
#define ZERO (BITS == 4 ? 0xba80ba80u : 0xbc80bc80u)
#define NOTHING 0x80008000u
#define UNSCALE 8192.0f
#endif

// Pieces of 16 bytes that a lane has of each of a unit's two halves, which are eight outputs each.
#define PIECES (BITS == 4 ? 1 : 2)
#define UNIT_BYTES (2 * PIECES * 512)
#define SLOT_BYTES (UNIT_BYTES + 2 * LINE_SCALES * 16)
#define RING_BYTES (WARPS * STAGES * SLOT_BYTES)
// Sums of a warp for eight rows: 16 outputs each, and four numbers between them against conflicts.
#define SUM_STRIDE 20
#define SUMS (8 * SUM_STRIDE)

// The rows of a weight that a block may meet. A tile is 16 neighbours, or 8 of two parts.
struct Outputs {
    const u8 *data;
    const u16 *scales;
    u32 cols;
    // Neighbouring halves of a tile, each of eight outputs: 2, or 1 if the second is in another part.
    u32 together;
    // Rows from a tile's first half to its second, and those of a part that exist.
    u32 second, rows;
};

// The same from a matrix that begins `rows` rows later, whole blocks of 8 in lines.
__device__ __forceinline__ Outputs rows_later(Outputs w, u64 rows) {
#if BITS == 16
    w.data += rows * w.cols * 2;
#else
    u32 units = (w.cols + UNIT_COLS - 1) / UNIT_COLS;
    w.data += rows / 8 * units * (128 * BITS);
    w.scales += rows * units * LINE_SCALES;
#endif
    return w;
}

__device__ __forceinline__ u32 word_of(const uint4 &x, u32 i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }

__device__ __forceinline__ u16 bf16_of(float x) { return (u16)rounded_pair(x, 0.0f); }

// Starts a lane's copies of unit `unit` of a tile's columns into a slot.
__device__ __forceinline__ void load_unit(u32 slot, const Outputs &w, u32 tile, u32 unit, u32 units, u32 lane) {
    u32 g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 row = tile * w.together * 8 + half * w.second;
        bool there = unit < units && (tile * w.together + half * (w.together - 1)) * 8 + (BITS == 16 ? g : 0) < w.rows;
#if BITS == 16
        const u8 *from = w.data + ((u64)(row + g) * w.cols + unit * UNIT_COLS) * 2 + t * 16;
#else
        const u8 *from = w.data + (u64)(row / 8 * units + unit) * (128 * BITS) + g * (16 * BITS) + t * 16;
#endif
#pragma unroll
        for (u32 piece = 0; piece < PIECES; piece++) {
            bool in_row = BITS != 16 || unit * UNIT_COLS + piece * 32 + t * 8 < w.cols;
            copy_16(slot + (half * PIECES + piece) * 512 + lane * 16, from + piece * 64, in_row ? 16 : 0, there);
        }
    }
#if BITS != 16
    u32 half = lane / LINE_SCALES, row = tile * w.together * 8 + half * w.second;
    copy_16(slot + UNIT_BYTES + lane * 16,
            w.scales + (u64)((row / 8 * units + unit) * LINE_SCALES + lane % LINE_SCALES) * 8, 16,
            half < 2 && unit < units && (tile * w.together + half * (w.together - 1)) * 8 < w.rows);
#endif
}

// Adds a unit's products. `x_at[e]` is what this lane reads of rows 8e to 8e + 7 of the activations.
template <u32 EIGHTS>
__device__ __forceinline__ void multiply_unit(const u8 *slot, const u32 (&x_at)[EIGHTS], u32 unit, u32 lane,
                                              float (&sums)[EIGHTS][4]) {
    uint4 words[2][PIECES];
#pragma unroll
    for (u32 half = 0; half < 2; half++)
#pragma unroll
        for (u32 piece = 0; piece < PIECES; piece++)
            words[half][piece] = *(const uint4 *)(slot + (half * PIECES + piece) * 512 + lane * 16);
#if BITS == 16
    // A lane's eight neighbouring columns stand in both operands where the instruction wants four of
    // one eight and four of the next: the same columns meet all the same.
#pragma unroll
    for (u32 piece = 0; piece < 2; piece++)
#pragma unroll
        for (u32 e = 0; e < EIGHTS; e++) {
            uint4 x = shared_16(x_at[e] + unit * 128 + piece * 64);
            const uint4 &upper = words[0][piece], &lower = words[1][piece];
            const u32 first[4] = {upper.x, lower.x, upper.y, lower.y};
            const u32 second[4] = {upper.z, lower.z, upper.w, lower.w};
            multiply_add(sums[e], first, x.x, x.y);
            multiply_add(sums[e], second, x.z, x.w);
        }
#else
    bf16x2 low[2], high[2], zero[2];
#pragma unroll
    for (u32 slab = 0; slab < 4; slab++) {
        if (slab % (4 / LINE_SCALES) == 0)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 at = (half * LINE_SCALES + slab / (4 / LINE_SCALES)) * 16 + lane / 4 * 2;
                bf16x2 scale = *(const u16 *)(slot + UNIT_BYTES + at) * 0x10001u;
                low[half] = fma_pair(scale, LOW, NOTHING);
                if (BITS == 4) high[half] = fma_pair(scale, HIGH, NOTHING);
                zero[half] = fma_pair(scale, ZERO, NOTHING);
            }
        u32 x[EIGHTS][4];
#pragma unroll
        for (u32 e = 0; e < EIGHTS; e++) load_matrices(x[e], x_at[e] + unit * 256 + slab * 64);
#pragma unroll
        for (u32 step = 0; step < 2; step++) {
            u32 weights[4];
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 first = word_of(words[half][0], slab) >> 8 * step;
#if BITS == 4
                weights[half] = fma_pair(first & 0x000f000f, low[half], zero[half]);
                weights[2 + half] = fma_pair(first & 0x00f000f0, high[half], zero[half]);
#else
                u32 second = word_of(words[half][1], slab) >> 8 * step;
                weights[half] = fma_pair(first & 0x00ff00ff, low[half], zero[half]);
                weights[2 + half] = fma_pair(second & 0x00ff00ff, low[half], zero[half]);
#endif
            }
#pragma unroll
            for (u32 e = 0; e < EIGHTS; e++) multiply_add(sums[e], weights, x[e][2 * step], x[e][2 * step + 1]);
        }
    }
#endif
}

// The sums of `rows` rows with the outputs of `across` tiles for each team, from tile `first` of
// `tiles` on. What is multiplied are the pairs that the first lanes name, `top_k` of which share a row
// of `x`. Calls `store(pair, tile, output of eight, sums of both halves)`.
template <u32 EIGHTS, class Store>
__device__ __forceinline__ void few_rows(u8 *shared, const u16 *x, u32 x_stride, u32 pair, u32 top_k, u32 rows,
                                         const Outputs &w, u32 split, u32 across, u32 first, u32 tiles, Store store) {
    u32 thread = thread_number(), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    u32 units = (w.cols + UNIT_COLS - 1) / UNIT_COLS, turns = (units + split - 1) / split, teams = WARPS / split;
    u32 turn_first = warp % split;
    first += warp / split;

    u8 *ring = shared + warp * STAGES * SLOT_BYTES;
    float *all_sums = (float *)(shared + RING_BYTES);
    u32 x_shared = shared_address(shared + RING_BYTES) + EIGHTS * WARPS * SUMS * 4;
    u32 x_bytes = units * UNIT_COLS * 2 + APART;

    u32 total = turns * across, to = shared_address(ring), load_turn = 0, load_tile = first;
    auto load = [&](u32 number) {
        if (number < total && load_tile < tiles)
            load_unit(to + number % STAGES * SLOT_BYTES, w, load_tile, load_turn * split + turn_first, units, lane);
        if (++load_turn == turns) load_turn = 0, load_tile += teams;
    };
    load(0);
#pragma unroll 1
    for (u32 r = 0; r < rows; r++) {
        const u16 *row = x + (u64)(__shfl_sync(~0u, pair, r) / top_k) * x_stride;
        for (u32 col = thread * 8; col < units * UNIT_COLS; col += THREADS * 8)
            copy_16(x_shared + r * x_bytes + col * 2, row + col, col < w.cols ? 16 : 0, true);
    }
    copies_together();
#pragma unroll
    for (u32 i = 1; i < STAGES; i++) {
        load(i);
        copies_together();
    }
    // Columns of the product that have no row repeat the last one, and are thrown away.
    u32 x_at[EIGHTS];
#pragma unroll
    for (u32 e = 0; e < EIGHTS; e++)
#if BITS == 16
        x_at[e] = x_shared + min(8 * e + g, rows - 1) * x_bytes + t * 16;
#else
        x_at[e] = x_shared + min(8 * e + lane % 8, rows - 1) * x_bytes + lane / 8 * 16;
#endif
    copies_arrived<STAGES - 1>();
    __syncthreads();

    u32 number = 0;
#pragma unroll 1
    for (u32 i = 0; i < across; i++) {
        float sums[EIGHTS][4] = {};
#pragma unroll 1
        for (u32 turn = 0; turn < turns; turn++, number++) {
            copies_arrived<STAGES - 1>();
            __syncwarp();
            u32 unit = turn * split + turn_first;
            if (unit < units) multiply_unit<EIGHTS>(ring + number % STAGES * SLOT_BYTES, x_at, unit, lane, sums);
            __syncwarp();
            load(number + STAGES);
            copies_together();
        }
#pragma unroll
        for (u32 e = 0; e < EIGHTS; e++)
#pragma unroll
            for (u32 c = 0; c < 4; c++)
                all_sums[(warp * EIGHTS + e) * SUMS + (2 * t + c % 2) * SUM_STRIDE + g + c / 2 * 8] = sums[e][c];
        __syncthreads();
        for (u32 cell = thread; cell < teams * EIGHTS * 64; cell += THREADS) {
            u32 team = cell / (EIGHTS * 64), row = cell / 8 % (EIGHTS * 8), output = cell % 8;
            u32 tile = first - warp / split + i * teams + team;
            u32 its_pair = __shfl_sync(~0u, pair, row);
            float both[2] = {};
            for (u32 member = 0; member < split; member++)
#pragma unroll
                for (u32 half = 0; half < 2; half++)
                    both[half] += all_sums[((team * split + member) * EIGHTS + row / 8) * SUMS +
                                           row % 8 * SUM_STRIDE + output + half * 8];
            if (row < rows && tile < tiles) store(its_pair, tile, output, both[0] * UNSCALE, both[1] * UNSCALE);
        }
        if (i + 1 < across) __syncthreads();
    }
    copies_arrived<0>();
}
