// Products of few BF16 rows with a weight, as fast as memory delivers the weight.
//
// Sixteen outputs are the rows of mma.m16n8k16, and up to eight rows of activations its columns, so
// that one row costs what eight do and no sum knows its company. A block's eight warps are teams of
// `split`, each of which has its own outputs; the warps of a team take units of columns in turn and
// add up their sums at the end, in the order of the warps. `split` is a function of the weight's shape,
// and so is the order of a sum, whatever the number of rows.
//
// Each warp has a ring of STAGES units in shared memory, all of them on their way at once: an H200 has
// to have 21 KiB a multiprocessor under way for 4 TB/s if memory answers after 0.7 us, and a block has
// 32 of INT4 and 64 of others. Activations lie in shared memory for the block's whole life, which is
// `across` tiles of outputs for each team.
//
// Bound: the weight's bytes. At 4 TB/s an H200 issues 7 instructions of a lane per byte; for a unit of
// INT4 ptxas makes about 5 for sm_90, and half of it for INT8.
//
// BITS is 4 or 8 for lines (krasis-core lines.rs) with scales of GROUP columns, and 16 for BF16 in
// rows. INT8 is unpacked as in moe/moe_gemm.cu. INT4 is a quarter of itself on the way, which takes two
// instructions for a pair, and no scale: a group's sum meets its scale when it is complete.
//
// 256 threads; dynamic shared memory: src/vector.rs.
#include <moe/mma.cuh>
#include <order.cuh>

#define WARPS 8
#define THREADS (WARPS * 32)

#if BITS == 16
#define UNIT_COLS 64
// Bytes from a unit to the next one, and of eight rows.
#define UNIT_STEP 128
#define EIGHT_ROWS(units, cols) ((cols) * 16)
#define LINE_SCALES 0
// Bytes between rows of activations, beside their columns: those that eight lanes read together then
// lie in different banks.
#define APART 64
#define UNSCALE 1.0f
#else
#define UNIT_COLS 128
#define UNIT_STEP (128 * BITS)
#define EIGHT_ROWS(units, cols) ((units) * UNIT_STEP)
#define LINE_SCALES (128 / GROUP)
// Slabs of 32 columns that share a scale.
#define GROUP_SLABS (4 / LINE_SCALES)
#define APART 16
#endif

#if BITS == 4
// BF16 pairs: 32, to which a low nibble adds its quarter, one, and what that is too much, with eight quarters;
// 2^127, which makes a quarter of a high one, and eight quarters.
#define THIRTY_TWO 0x42004200u
#define ONES 0x3f803f80u
#define TOO_MUCH 0xc208c208u
#define HIGH 0x7f007f00u
#define MINUS_TWO 0xc000c000u
#define UNSCALE 4.0f
// Sums of a large group's products that do not wait for each other.
#define CHAINS (LINE_SCALES > 1 ? 1 : 2)
#elif BITS == 8
// BF16 pairs: 2^120; minus 128 · 2^-13; minus nothing.
#define LOW 0x7b807b80u
#define ZERO 0xbc80bc80u
#define NOTHING 0x80008000u
#define UNSCALE 8192.0f
#define CHAINS 1
#endif

// Blocks of a multiprocessor that registers are for: small groups of INT4 need more of them, and with
// three stages shared memory has room for two blocks.
#define BLOCKS (STAGES < 4 || (BITS == 4 && LINE_SCALES > 1) ? 3 : 4)
#define BLOCKS_MORE (BITS == 4 && LINE_SCALES > 1 ? 1 : 2)

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
    u32 units = (w.cols + UNIT_COLS - 1) / UNIT_COLS;
    w.data += rows * EIGHT_ROWS(units, w.cols) / 8;
    w.scales += rows * units * LINE_SCALES;
    return w;
}

__device__ __forceinline__ u32 word_of(const uint4 &x, u32 i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }

__device__ __forceinline__ u16 bf16_of(float x) { return (u16)rounded_pair(x, 0.0f); }

// The same number, of which the compiler does not know how to come by it again: it would do so for every
// unit rather than keep it, even for constants.
__device__ __forceinline__ u32 kept(u32 x, u32 lane) { return __shfl_sync(~0u, x, lane); }

// What a lane loads of its warp's units, one after another: addresses are stepped, not computed, as
// a unit leaves no more than 230 instructions of a warp.
struct Loads {
    const u8 *from, *scales;
    // Bytes from the first half of a tile to the second; from a unit to the next, and from a tile's last.
    u64 second;
    u32 step, next;
    u32 unit, units, unit_first, units_end, split;
    // The next tile, and where tiles end of whose halves, or scales, this lane loads something.
    u32 tile, teams, ends[2], scales_end;

    __device__ __forceinline__ Loads(const Outputs &w, u32 split, u32 teams, u32 unit_first, u32 tile, u32 tiles_end,
                                     u32 lane)
        : unit(unit_first), units((w.cols + UNIT_COLS - 1) / UNIT_COLS), unit_first(unit_first), split(split),
          tile(tile), teams(teams) {
        u32 g = lane / 4, t = lane % 4, eight = EIGHT_ROWS(units, w.cols);
        u32 turns = (units + split - 1) >> (__ffs(split) - 1);
        units_end = turns * split;
        second = (u64)w.second * eight / 8;
        step = split * UNIT_STEP, next = teams * w.together * eight - (turns - 1) * step;
        from = w.data + (u64)tile * w.together * eight + unit_first * UNIT_STEP + t * 16;
        // 8 or 16 rows of a tile that follow one another, by a shift: a division would hold up the first loads.
        u32 tall = 8 * w.together, shift = 2 + w.together;
#if BITS == 16
        from += (u64)g * w.cols * 2;
        u32 row = g;
#else
        from += g * (16 * BITS);
        u32 row = 0, half = lane / LINE_SCALES;
        scales = (const u8 *)w.scales + ((u64)tile * w.together * units + unit_first) * (LINE_SCALES * 16) +
                 (half == 1 ? (u64)w.second * units * (LINE_SCALES * 2) : 0) + lane % LINE_SCALES * 16;
#endif
        ends[0] = kept(min((w.rows + tall - 1 - row) >> shift, tiles_end), lane);
        ends[1] = kept(min((w.rows + 7 - row) >> shift, tiles_end), lane);
#if BITS != 16
        scales_end = kept(half == 0 ? ends[0] : half == 1 ? ends[1] : 0, lane);
#endif
    }

    // From another weight of the same shape.
    __device__ __forceinline__ void turn_to(const Outputs &before, const Outputs &w) {
        from += w.data - before.data;
        if (BITS != 16) scales += (const u8 *)w.scales - (const u8 *)before.scales;
    }

    // Starts this lane's copies of a unit into its part of a slot.
    __device__ __forceinline__ void start(u32 slot, u32 cols, u32 lane) {
#pragma unroll
        for (u32 half = 0; half < 2; half++)
#pragma unroll
            for (u32 piece = 0; piece < PIECES; piece++) {
                bool in_row = BITS != 16 || unit * UNIT_COLS + piece * 32 + lane % 4 * 8 < cols;
                copy_16(slot + (half * PIECES + piece) * 512, from + half * second + piece * 64, in_row ? 16 : 0,
                        unit < units && tile < ends[half]);
            }
#if BITS != 16
        copy_16(slot + UNIT_BYTES, scales, 16, unit < units && tile < scales_end);
#endif
        unit += split;
        bool last = unit >= units_end;
        u32 on = last ? next : step;
        from += on;
        if (BITS != 16) scales += on / UNIT_STEP * (LINE_SCALES * 16);
        if (last) unit = unit_first, tile += teams;
    }
};

// Adds the products of the unit in the slot of which `slot` is this lane's part. `x_at[e]` is what this
// lane reads of rows 8e to 8e + 7 of the activations, `scales_apart` what lies from `slot` to its scales, and
// `nibbles` are the low ones of bytes 0 and 2.
template <u32 EIGHTS>
__device__ __forceinline__ void multiply_unit(u32 slot, const u32 (&x_at)[EIGHTS], u32 scales_apart, u32 nibbles,
                                              u32 unit, float (&sums)[EIGHTS][4]) {
    uint4 words[2][PIECES];
#pragma unroll
    for (u32 half = 0; half < 2; half++)
#pragma unroll
        for (u32 piece = 0; piece < PIECES; piece++)
            words[half][piece] = shared_16(slot + (half * PIECES + piece) * 512);
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
    u32 scales_at = slot + scales_apart;
#pragma unroll
    for (u32 group = 0; group < LINE_SCALES; group++) {
        u32 scales[2] = {shared_2(scales_at + group * 16), shared_2(scales_at + (LINE_SCALES + group) * 16)};
#if BITS == 4
        float group_sums[CHAINS][EIGHTS][4] = {};
#else
        bf16x2 low[2], zero[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            low[half] = fma_pair(scales[half] * 0x10001u, LOW, NOTHING);
            zero[half] = fma_pair(scales[half] * 0x10001u, ZERO, NOTHING);
        }
        float(&group_sums)[1][EIGHTS][4] = *(float(*)[1][EIGHTS][4])sums;
#endif
        // The activations of eight rows come a slab ahead.
        u32 slabs[2][EIGHTS][4];
        auto load_slab = [&](u32 slab) {
#pragma unroll
            for (u32 e = 0; e < EIGHTS; e++)
                load_matrices(slabs[slab % 2][e], x_at[e] + unit * 256 + slab * 64);
        };
#pragma unroll
        for (u32 slab = group * GROUP_SLABS; slab < (group + 1) * GROUP_SLABS; slab++) {
            if (EIGHTS > 1 || slab % GROUP_SLABS == 0) load_slab(slab);
            if (EIGHTS == 1 && (slab + 1) % GROUP_SLABS != 0) load_slab(slab + 1);
            u32(&x)[EIGHTS][4] = slabs[slab % 2];
#pragma unroll
            for (u32 step = 0; step < 2; step++) {
                u32 weights[4];
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    u32 first = word_of(words[half][0], slab) >> 8 * step;
#if BITS == 4
                    weights[half] = fma_pair((first & nibbles) | THIRTY_TWO, ONES, TOO_MUCH);
                    weights[2 + half] = fma_pair(first & 0x00f000f0, HIGH, MINUS_TWO);
#else
                    u32 second = word_of(words[half][1], slab) >> 8 * step;
                    weights[half] = fma_pair(first & 0x00ff00ff, low[half], zero[half]);
                    weights[2 + half] = fma_pair(second & 0x00ff00ff, low[half], zero[half]);
#endif
                }
#pragma unroll
                for (u32 e = 0; e < EIGHTS; e++)
                    multiply_add(group_sums[step % CHAINS][e], weights, x[e][2 * step], x[e][2 * step + 1]);
            }
        }
#if BITS == 4
#pragma unroll
        for (u32 e = 0; e < EIGHTS; e++)
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                float sum = group_sums[0][e][c] + (CHAINS > 1 ? group_sums[CHAINS - 1][e][c] : 0.0f);
                sums[e][c] += __uint_as_float(scales[c / 2] << 16) * sum;
            }
#endif
    }
#endif
}

// For whoever knows before what there is to do.
__device__ __forceinline__ bool after_earlier(u32 &, u32 &, Outputs &) {
    wait_for_earlier();
    return true;
}

// The sums of `rows` rows with the outputs of `across` tiles for each team, of `tiles` in all, which
// blocks take in order. What is multiplied are the pairs that the first lanes name, `top_k` of which share a row
// of `x`. `ready(pair, rows, w)` waits for earlier kernels, and says whether there is anything to do; unless
// `EARLY`, only it knows which pairs, and which weight of this shape, which then comes behind `x`. Calls
// `store(pair, tile, output of eight, sums of both halves)`.
template <u32 EIGHTS, bool EARLY, class Ready, class Store>
__device__ __forceinline__ void few_rows(u8 *shared, const u16 *x, u32 x_stride, u32 pair, u32 top_k, u32 rows,
                                         Outputs w, u32 split, u32 across, u32 block, u32 tiles, Ready ready,
                                         Store store) {
    u32 thread = thread_number(), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    // `split` is a power of two, and divisions would hold up the first loads.
    u32 shift = __ffs(split) - 1, teams = WARPS >> shift, team = warp >> shift, unit_first = warp & (split - 1);
    u32 units = (w.cols + UNIT_COLS - 1) / UNIT_COLS, units_end = (units + split - 1) >> shift << shift;
    u32 first = block * across * teams, tiles_end = min(tiles, first + across * teams);

    // Weights are under way before the kernels that the activations come from are done.
    u32 ring = shared_address(shared) + warp * STAGES * SLOT_BYTES + lane * 16;
    Loads loads(w, split, teams, unit_first, first + team, tiles_end, lane);
    auto load_weights = [&] {
#pragma unroll
        for (u32 i = 0; i < STAGES; i++) {
            loads.start(ring + i * SLOT_BYTES, w.cols, lane);
            copies_together();
        }
    };
    if (EARLY) load_weights();
    Outputs before = w;
    if (!ready(pair, rows, w)) return;
    if (!EARLY) loads.turn_to(before, w);

    float *all_sums = (float *)(shared + RING_BYTES);
    // A tile's sums may be read while the next one's are written, where both leave room for as many blocks.
    const u32 TILE_SUMS = EIGHTS * WARPS * SUMS;
    u32 sum_turns = BITS == 4 && rows <= 4 ? 2 : 1;
    u32 x_shared = shared_address(shared + RING_BYTES) + sum_turns * TILE_SUMS * 4;
    u32 x_bytes = units * UNIT_COLS * 2 + APART;
#pragma unroll 1
    for (u32 r = 0; r < rows; r++) {
        const u16 *row = x + (u64)(__shfl_sync(~0u, pair, r) / top_k) * x_stride;
        for (u32 col = thread * 8; col < units * UNIT_COLS; col += THREADS * 8)
            copy_16(x_shared + r * x_bytes + col * 2, row + col, col < w.cols ? 16 : 0, true);
    }
    copies_together();
    if (!EARLY) load_weights();
    // Columns of the product that have no row repeat the last one, and are thrown away.
    u32 x_at[EIGHTS];
#pragma unroll
    for (u32 e = 0; e < EIGHTS; e++)
#if BITS == 16
        x_at[e] = kept(x_shared + min(8 * e + g, rows - 1) * x_bytes + t * 16, lane);
#else
        x_at[e] = kept(x_shared + min(8 * e + lane % 8, rows - 1) * x_bytes + lane / 8 * 16, lane);
#endif
    // Slots have the scales of eight rows together, and this lane has row `g` of either half.
    u32 scales_apart = kept(UNIT_BYTES - lane * 16 + g * 2, lane);
    // There are fewer than 2^31 columns, which the compiler does not know either.
    u32 nibbles = kept(0x000f000f + (w.cols >> 31), lane);
    copies_arrived<EARLY ? 0 : STAGES>();
    __syncthreads();
    ring = kept(ring, lane);
    u32 slot = 0;
#pragma unroll 1
    for (u32 i = 0; i < across; i++) {
        float sums[EIGHTS][4] = {};
#pragma unroll 1
        for (u32 unit = unit_first; unit < units_end; unit += split) {
            copies_arrived<STAGES - 1>();
            __syncwarp();
            if (unit < units) multiply_unit<EIGHTS>(ring + slot, x_at, scales_apart, nibbles, unit, sums);
            __syncwarp();
            if (EIGHTS > 1 || loads.tile < tiles_end) loads.start(ring + slot, w.cols, lane);
            copies_together();
            slot = slot == (STAGES - 1) * SLOT_BYTES ? 0 : slot + SLOT_BYTES;
        }
        float *tile_sums = all_sums + (i & (sum_turns - 1)) * TILE_SUMS;
#pragma unroll
        for (u32 e = 0; e < EIGHTS; e++)
#pragma unroll
            for (u32 c = 0; c < 4; c++)
                tile_sums[(warp * EIGHTS + e) * SUMS + (2 * t + c % 2) * SUM_STRIDE + g + c / 2 * 8] = sums[e][c];
        __syncthreads();
#pragma unroll 1
        for (u32 cell = thread; cell < teams * EIGHTS * 64; cell += THREADS) {
            u32 member_first = cell / (EIGHTS * 64) * split, row = cell / 8 % (EIGHTS * 8), output = cell % 8;
            u32 tile = first + i * teams + cell / (EIGHTS * 64);
            u32 its_pair = __shfl_sync(~0u, pair, row);
            if (row >= rows || tile >= tiles) continue;
            float both[2] = {};
#pragma unroll
            for (u32 member = 0; member < WARPS; member++)
                if (member < split)
#pragma unroll
                    for (u32 half = 0; half < 2; half++)
                        both[half] += tile_sums[((member_first + member) * EIGHTS + row / 8) * SUMS +
                                                row % 8 * SUM_STRIDE + output + half * 8];
            store(its_pair, tile, output, both[0] * UNSCALE, both[1] * UNSCALE);
        }
        if (sum_turns == 1 && i + 1 < across) __syncthreads();
    }
    copies_arrived<0>();
}
