// Grouped products of BF16 rows with quantised experts in lines (krasis-core lines.rs).
//
// A block computes tiles of up to TILE_ROWS pairs by 256 outputs: 128 of gate and the same 128 of
// up, or 256 of down. Each of eight warps has all rows and 32 outputs, so that weights are unpacked
// once and serve up to eight products each. Blocks stay, and take every
// gridDim.x-th tile, an expert's outputs one after the other. STAGES stages of 128 columns flow
// through shared memory across the borders of tiles; copies are issued between products, as all at
// once would fill the queue that they share with reads.
//
// Unpacking: an integer of a line, masked where it lies, is a BF16 number of integer · 2^-133, for
// the subnormal numbers and the first normal ones are equally spaced. One multiplication and
// addition, rounded once, makes `scale · (integer - zero) · 2^-13` of it, and the sum is scaled by
// 2^13 at the end. Scales must be less than 2^8.
//
// Bound: the issue of instructions. On an H200 a product takes its quarter of a multiprocessor six
// clocks in which neither of two warps issues anything else, and every other instruction takes one:
// measured with registers alone, 643 TFLOP/s without unpacking, 539 and 486 with 5 and 7.5 other
// instructions to four products. So what counts is instructions beside a product.
//
// BITS is 4 or 8, GROUP 32, 64 or 128; STAGES and TILE_ROWS are chosen in src/lines.rs. The grid is
// what the GPU holds, 256 threads; dynamic shared memory: SHARED_BYTES. Columns and strides are
// multiples of 8, and buffers start at multiples of 16 bytes.
#include <moe/mma.cuh>

// Steps of 16 columns over which a stage's copies are spread: few if there are but two stages.
#define SPREAD (STAGES == 2 ? 2 : 8)
#define THREADS 256
// Steps of 16 rows in a tile.
#define STEPS (TILE_ROWS / 16)
// Blocks of 8 outputs in each of a tile's two parts, and a warp's part of them.
#define PART 16
#define MINE 2

#define LINE (16 * BITS)
#define BLOCK (8 * LINE)
#define LINE_SCALES (128 / GROUP)
#define X_BYTES (TILE_ROWS * 256)
#define WEIGHT_BYTES (2 * PART * BLOCK)
#define SCALE_BYTES (2 * PART * 16 * LINE_SCALES)
#define STAGE (X_BYTES + WEIGHT_BYTES + SCALE_BYTES)
// What is known of tiles from where loading is to where sums are stored.
#define RING (STAGES + 2)
#define RING_BYTES (RING * (128 + TILE_ROWS + 2) * 4 + 8)
#define SHARED_BYTES (STAGES * STAGE + RING_BYTES)

// BF16 pairs: 2^120, and for high nibbles 2^116; minus zero · 2^-13; minus nothing.
#define LOW 0x7b807b80u
#define HIGH 0x79807980u
#define ZERO (BITS == 4 ? 0xba80ba80u : 0xbc80bc80u)
#define NOTHING 0x80008000u
#define UNSCALE 8192.0f

// The weights that a tile may meet.
struct Bank {
    const u8 *data;
    const u16 *scales;
    u32 cols;
    // Blocks of 8 rows: of an expert, from a tile's first part to its second, which have outputs.
    u32 expert_blocks, second, blocks;
    // Blocks from a tile to the next: PART if the parts are gate and up, else 2 · PART.
    u32 stride;
};

struct Kernel {
    Bank bank;
    const u16 *x;
    u32 x_stride, top_k;
    const u32 *sorted, *tiles;

    // Shared memory: stages, then rows of x (in 16 bytes) and pairs of each tile, then tiles.
    u32 stages;
    u32 (*rows)[16][8], (*pairs)[TILE_ROWS], (*sizes)[2];
    u32 done, phase; // A barrier of warps that have read a stage, and what was copied.
    u32 lines, tiles_across, total;

    // Loading: the stage, the tile's place in the ring, steps of rows (none: nothing is left), blocks
    // with outputs from this warp's first on, the lines of the bank before the tile, and the line;
    // where this lane's first piece of it is.
    u32 to, load_entry, load_steps, load_before, load_line;
    int load_left;
    const u8 *load_data;
    const u16 *load_x;
    uint4 load_rows;
    // The tile after it: number; expert, first entry and entries; a pair that has been asked for.
    u32 next;
    uint3 next_tile;
    u32 next_pair;

    // A warp's place in a stage.
    u32 x_at, weight_at, scale_at;
    u32 odd_row;
    // A thread's number, and where its first copies go in a stage.
    u32 thread, x_to, weight_to;

    float sums[STEPS][2 * MINE][4];
    // What is multiplied at a step, and the unpacked weights of this one and the next.
    u32 x_parts[STEPS][4];
    bf16x2 weights[2][2 * MINE][2];
    // Packed weights to come.
    uint4 words[2 * MINE][BITS / 4];
    bf16x2 low[2 * MINE], high[2 * MINE], zero[2 * MINE];

    __device__ __forceinline__ static u32 word_of(const uint4 &x, u32 i) {
        return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
    }

    __device__ __forceinline__ static u32 after(u32 entry) { return entry == RING - 1 ? 0 : entry + 1; }
    __device__ __forceinline__ u32 stage_after(u32 stage) const {
        return stage == stages + (STAGES - 1) * STAGE ? stages : stage + STAGE;
    }

    // What `tiles` says of tile `next`: beyond the last there are no entries.
    __device__ __forceinline__ void look_up() {
        next_tile.z = 0;
        if (next >= total) return;
        const u32 *tile = tiles + 1 + 3 * (next / tiles_across);
        next_tile = make_uint3(tile[0], tile[1], tile[2]);
    }

    // Its pairs are asked for a line later, and written down a line after that, if there are lines.
    __device__ __forceinline__ bool asks() const { return load_line == (lines > 1 ? 1 : 0) && next_tile.z != 0; }

    __device__ __forceinline__ void ask() {
        if (thread < TILE_ROWS) next_pair = sorted[next_tile.y + min(thread, next_tile.z - 1)];
    }

    __device__ __forceinline__ void write_down(u32 entry) {
        if (thread < TILE_ROWS) {
            rows[entry][thread % 16][thread / 16] = next_pair / top_k * (x_stride / 8);
            pairs[entry][thread] = next_pair;
        }
        if (thread == 0) {
            sizes[entry][0] = next_tile.z;
            sizes[entry][1] = next % tiles_across * bank.stride;
        }
    }

    // Before a barrier: what `enter` may need after it.
    __device__ __forceinline__ void settle() {
        if (load_steps != 0 && asks()) write_down(after(load_entry));
    }

    // Makes tile `next` the one that is loaded.
    __device__ __forceinline__ void enter() {
        load_steps = (next_tile.z + 15) / 16;
        load_line = 0, load_left = -(int)PART;
        load_entry = after(load_entry);
        if (load_steps == 0) return;
        u32 block = next % tiles_across * bank.stride, warp = thread / 32;
        load_left = (int)(bank.blocks - block - warp);
        load_before = (next_tile.x * bank.expert_blocks + block) * lines;
        load_x = x + thread % 16 * 8;
        load_data = bank.data + (u64)(load_before + warp * lines) * BLOCK + thread % 32 * 16;
        next += gridDim.x;
        look_up();
    }

    // After a barrier: turns to the next line, and looks ahead.
    __device__ __forceinline__ void turn() {
        if (load_steps == 0) return;
        load_data += BLOCK, load_x += 128;
        if (++load_line == lines) enter();
        if (load_steps != 0 && asks()) ask();
    }

    // Starts one eighth of a stage's copies.
    __device__ __forceinline__ void load(u32 eighth) {
#pragma unroll
        for (u32 i = 0; i < STEPS; i++) {
            if (i * 8 / STEPS != eighth) continue;
            if (i % 4 == 0) load_rows = *(const uint4 *)&rows[load_entry][thread / 16][i];
            bool in_row = load_line * 128 + thread % 16 * 8 < bank.cols;
            copy_16(to + x_to + i * 16 * 256, load_x + (u64)word_of(load_rows, i % 4) * 8, in_row ? 16 : 0,
                    i < load_steps);
        }
        const u32 copies = 2 * PART / 8 * (BLOCK / 512);
#pragma unroll
        for (u32 i = 0; i < copies; i++) {
            if (i * 8 / copies != eighth) continue;
            u32 half = i % (BLOCK / 512), part = i / (copies / 2), block = i / (BLOCK / 512) % (PART / 8) * 8;
            copy_16(to + weight_to + (part * PART + block) * BLOCK + half * 512,
                    load_data + (u64)((part ? bank.second : 0) + block) * lines * BLOCK + half * 512, 16,
                    (int)(block + part * inside()) < load_left);
        }
        if (eighth == 7) {
            u32 block = thread / LINE_SCALES, scale = thread % LINE_SCALES, part = block / PART;
            u32 line = load_before + load_line + ((part ? bank.second : 0) + block % PART) * lines;
            copy_16(to + X_BYTES + WEIGHT_BYTES + thread * 16,
                    bank.scales + (u64)(line * LINE_SCALES + scale) * 8, 16,
                    thread < 2 * PART * LINE_SCALES &&
                        (int)(block % PART + part * inside()) < load_left + (int)(thread / 32));
        }
    }

    // Blocks of the matrix from a tile's first part to its second.
    __device__ __forceinline__ u32 inside() const { return bank.stride == PART ? 0 : PART; }

    // Reads what the steps from `k` on are unpacked from, where that changes.
    __device__ __forceinline__ void load_packed(u32 stage, u32 k) {
#pragma unroll
        for (u32 part = 0; part < 2; part++) {
#pragma unroll
            for (u32 j = 0; j < MINE; j++) {
                u32 at = stage + weight_at + part * PART * BLOCK + j * 2 * LINE;
                if (k == 0) words[part * MINE + j][0] = shared_16(at + (BITS == 4 ? 0 : odd_row * 64));
                if (k == 0 && BITS == 8) words[part * MINE + j][1] = shared_16(at + (odd_row ^ 1) * 64);
            }
            if (k % (8 / LINE_SCALES) == 0) {
                u32 chunk = part * PART * LINE_SCALES + k / (8 / LINE_SCALES);
                uint2 raw = shared_8(stage + scale_at + chunk * 16);
#pragma unroll
                for (u32 j = 0; j < MINE; j++) {
                    bf16x2 scale = __byte_perm(j ? raw.y : raw.x, 0, odd_row ? 0x3232 : 0x1010);
                    low[part * MINE + j] = fma_pair(scale, LOW, NOTHING);
                    if (BITS == 4) high[part * MINE + j] = fma_pair(scale, HIGH, NOTHING);
                    zero[part * MINE + j] = fma_pair(scale, ZERO, NOTHING);
                }
            }
        }
    }

    // Both weight registers of matrix `j` for step `k`.
    __device__ __forceinline__ void unpack(u32 j, u32 k) {
        u32 first = word_of(words[j][0], k / 2) >> k % 2 * 8;
#if BITS == 4
        weights[k % 2][j][0] = fma_pair(first & 0x000f000f, low[j], zero[j]);
        weights[k % 2][j][1] = fma_pair(first & 0x00f000f0, high[j], zero[j]);
#else
        u32 second = word_of(words[j][1], k / 2) >> k % 2 * 8;
        weights[k % 2][j][0] = fma_pair(first & 0x00ff00ff, low[j], zero[j]);
        weights[k % 2][j][1] = fma_pair(second & 0x00ff00ff, low[j], zero[j]);
#endif
    }

    // A tile's sums for a warp with COUNT steps of rows. While a step's products are under way, the
    // next step is read and unpacked, so that neither waits for the other. Between telling that a
    // stage has been read and waiting for the others lie products of its last step.
    template <u32 COUNT> __device__ __forceinline__ void tile(u32 &stage) {
#pragma unroll 1
        for (u32 line = 0; line < lines; line++) {
#pragma unroll
            for (u32 k = 0; k < 8; k++) {
                u32 next = (k + 1) % 8;
                const u32 before = next == 0 ? COUNT / 2 : 0, parts = COUNT > before ? COUNT - before : 1;
                if (next == 0) {
                    copies_together();
                    settle();
                    copies_arrived<STAGES - 2>();
                    tell(done);
                }
#pragma unroll
                for (u32 i = 0; i < STEPS; i++)
                    if (i < before) multiply_step(i, k);
                if (next == 0) {
                    await(done, phase);
                    phase ^= 1;
                    turn();
                    to = stage;
                    stage = stage_after(stage);
                }
                u32 x_next = stage + x_at ^ next * 32;
                if (COUNT != 0 || next == 0) load_packed(stage, next);
#pragma unroll
                for (u32 i = 0; i < STEPS; i++)
                    if (i < before) load_matrices(x_parts[i], x_next + i * 16 * 256);
#pragma unroll
                for (u32 i = 0; i < STEPS; i++) {
                    if (i < before) continue;
                    if (i < COUNT) multiply_step(i, k);
                    if (i < COUNT || next == 0) load_matrices(x_parts[i], x_next + i * 16 * 256);
                    if (COUNT != 0 || next == 0)
#pragma unroll
                        for (u32 j = 0; j < 2 * MINE; j++)
                            if (j * parts / (2 * MINE) == i - before) unpack(j, next);
                    if (i == before)
#pragma unroll
                        for (u32 eighth = 0; eighth < 8; eighth++)
                            if (eighth * SPREAD / 8 == next) load(eighth);
                }
            }
        }
    }

    __device__ __forceinline__ void multiply_step(u32 i, u32 k) {
#pragma unroll
        for (u32 j = 0; j < 2 * MINE; j++)
            multiply_add(sums[i][j], x_parts[i], weights[k % 2][j][0], weights[k % 2][j][1]);
    }

    // Calls `store(pair, this lane's first output, sums, upper half)` for each row.
    template <class Store> __device__ __forceinline__ void run(u8 *shared, Store store) {
        lines = (bank.cols + 127) / 128;
        tiles_across = (bank.blocks + bank.stride - 1) / bank.stride;
        total = tiles[0] * tiles_across;
        if (blockIdx.x >= total) return;
        stages = shared_address(shared);
        rows = (u32(*)[16][8])(shared + STAGES * STAGE);
        done = stages + STAGES * STAGE + RING * (128 + TILE_ROWS + 2) * 4;
        pairs = (u32(*)[TILE_ROWS])(rows + RING);
        sizes = (u32(*)[2])(pairs + RING);

        thread = thread_number();
        u32 warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
        x_to = thread / 16 * 256 + (thread % 16 ^ thread / 16 % 8) * 16;
        // The planes of INT8 change places in odd rows, so that both rows of a quarter warp are read
        // at once.
        weight_to = X_BYTES + warp * BLOCK + (BITS == 4 ? lane : lane ^ (lane / 8 % 2 * 4)) * 16;
        x_at = lane % 16 * 256 + (lane / 16 ^ lane % 8) * 16;
        // Column 2t + o of matrix j is row t % 2 · 4 + 2j + o of block t / 2: a lane has four outputs in
        // a row.
        u32 block = warp * MINE + g / 4, row = g / 2 % 2 * 4 + g % 2;
        odd_row = g % 2;
        weight_at = X_BYTES + block * BLOCK + row * LINE + t * 16;
        scale_at = X_BYTES + WEIGHT_BYTES + block * 16 * LINE_SCALES + g / 2 % 2 * 8;

        next = blockIdx.x;
        load_entry = RING - 1;
        look_up();
        ask();
        write_down(0);
        enter();
        if (asks()) ask();
        to = stages;
        phase = 0;
        if (thread == 0) expect(done, THREADS / 32);
        __syncthreads();
#pragma unroll 1
        for (u32 i = 0; i < STAGES - 1; i++) {
#pragma unroll 1
            for (u32 eighth = 0; eighth < 8; eighth++) load(eighth);
            copies_together();
            settle();
            __syncthreads();
            turn(), to += STAGE;
        }
        // The last stage is begun, as if after the last step of a line: the first line goes on with it.
#pragma unroll
        for (u32 eighth = 0; eighth < 8; eighth++)
            if (eighth * SPREAD / 8 == 0) load(eighth);
        copies_arrived<STAGES - 2>();
        __syncthreads();

        u32 stage = stages, entry = 0;
        u32 x_first = stage + x_at;
#pragma unroll
        for (u32 i = 0; i < STEPS; i++) load_matrices(x_parts[i], x_first + i * 16 * 256);
        load_packed(stage, 0);
#pragma unroll
        for (u32 j = 0; j < 2 * MINE; j++) unpack(j, 0);
#pragma unroll 1
        for (u32 number = blockIdx.x; number < total; number += gridDim.x) {
            u32 size = sizes[entry][0], count = (size + 15) / 16;
            u32 first_block = sizes[entry][1] + warp * MINE;
            if (first_block >= bank.blocks) count = 0;
#pragma unroll
            for (u32 i = 0; i < STEPS; i++)
#pragma unroll
                for (u32 j = 0; j < 2 * MINE; j++)
#pragma unroll
                    for (u32 c = 0; c < 4; c++) sums[i][j][c] = 0.0f;
            switch (count) {
            case 0: tile<0>(stage); break;
            case 1: tile<1>(stage); break;
            case 2: tile<2>(stage); break;
            case 3: tile<3>(stage); break;
#if STEPS > 4
            case 4: tile<4>(stage); break;
            case 5: tile<5>(stage); break;
#endif
#if STEPS > 6
            case 6: tile<6>(stage); break;
            case 7: tile<7>(stage); break;
#endif
            default: tile<STEPS>(stage);
            }
#pragma unroll
            for (u32 i = 0; i < STEPS; i++)
#pragma unroll
                for (u32 upper = 0; upper < 2; upper++) {
                    u32 row = i * 16 + upper * 8 + g;
                    if (i < count && row < size) store(pairs[entry][row], first_block * 8 + t * 4, sums[i], upper);
                }
            entry = after(entry);
        }
        copies_arrived<0>();
    }
};

// Writes four outputs, or those of them that exist.
__device__ __forceinline__ void put(u16 *row, u32 first, u32 outputs, bf16x2 low, bf16x2 high) {
    if (first + 4 <= outputs) {
        *(uint2 *)(row + first) = make_uint2(low, high);
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (first + i < outputs) row[first + i] = (u16)((i < 2 ? low : high) >> (i % 2 * 16));
    }
}

// inner[pair] = silu(gate · x[pair / top_k]) · (up · x[pair / top_k]), for the pairs in tiles. An
// expert is `gate_rows` rows of gate, whole blocks, then as many of up.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    moe_gate_up(const u16 *x, u32 x_stride, const u32 *sorted, const u32 *tiles, u32 top_k, const u8 *data,
                const u16 *scales, u32 cols, u32 gate_rows, u16 *inner, u32 inner_stride, u32 inter) {
    DYNAMIC_SHARED(u8, shared);
    Kernel kernel;
    kernel.bank = Bank{data, scales, cols, gate_rows / 4, gate_rows / 8, (inter + 7) / 8, PART};
    kernel.x = x, kernel.x_stride = x_stride, kernel.top_k = top_k;
    kernel.sorted = sorted, kernel.tiles = tiles;
    kernel.run(shared, [&](u32 pair, u32 first, const float (&sums)[2 * MINE][4], u32 upper) {
        bf16x2 two[MINE];
#pragma unroll
        for (u32 j = 0; j < MINE; j++) {
            float both[2];
#pragma unroll
            for (u32 o = 0; o < 2; o++)
                both[o] = silu(sums[j][2 * upper + o] * UNSCALE) * (sums[MINE + j][2 * upper + o] * UNSCALE);
            two[j] = rounded_pair(both[0], both[1]);
        }
        put(inner + (u64)pair * inner_stride, first, inter, two[0], two[1]);
    });
}

// out[pair] = down · inner[pair].
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    moe_down(const u16 *inner, u32 inner_stride, const u32 *sorted, const u32 *tiles, const u8 *data,
             const u16 *scales, u32 cols, u32 down_rows, u16 *out, u32 out_stride, u32 hidden) {
    DYNAMIC_SHARED(u8, shared);
    Kernel kernel;
    kernel.bank = Bank{data, scales, cols, down_rows / 8, PART, (hidden + 7) / 8, 2 * PART};
    kernel.x = inner, kernel.x_stride = inner_stride, kernel.top_k = 1;
    kernel.sorted = sorted, kernel.tiles = tiles;
    kernel.run(shared, [&](u32 pair, u32 first, const float (&sums)[2 * MINE][4], u32 upper) {
#pragma unroll
        for (u32 part = 0; part < 2; part++) {
            bf16x2 two[MINE];
#pragma unroll
            for (u32 j = 0; j < MINE; j++) {
                const float(&sum)[4] = sums[part * MINE + j];
                two[j] = rounded_pair(sum[2 * upper] * UNSCALE, sum[2 * upper + 1] * UNSCALE);
            }
            put(out + (u64)pair * out_stride, part * PART * 8 + first, hidden, two[0], two[1]);
        }
    });
}
