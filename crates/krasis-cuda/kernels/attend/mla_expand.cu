// Keys and values of all heads from latents, which is what absorbing spares where rows are few: two
// products of LATENT inputs by 128 outputs for each token and head, of the weights that queries and mixes
// are otherwise multiplied with.
//
// A block has 128 tokens of one head: four of its warps make keys, four make values, 64 tokens by 64
// columns each. STAGES steps of 32 inputs are in shared memory. 8,192 tokens of 16 heads of
// DeepSeek-V2-Lite: 34 GFLOP, 0.05 ms at what `mma.sync` reaches on an H200; their attention takes a
// millisecond.
//
//   LATENT   inputs, a multiple of 32
#include <attend/ptx.cuh>

constexpr u32 THREADS = 256, TOKENS = 128, COLUMNS = 128, STEP = 32, STAGES = 3;
// Bytes of rows in shared memory: 16 more than they have, so that eight rows lie in different banks.
constexpr u32 STRIDE = STEP * 2 + 16, KEY_STRIDE = COLUMNS * 2 + 16;
constexpr u32 KEYS_AT = TOKENS * STRIDE, VALUES_AT = KEYS_AT + STEP * KEY_STRIDE;
constexpr u32 STAGE = VALUES_AT + COLUMNS * STRIDE;
static_assert(LATENT % STEP == 0 && STAGES * STAGE == SHARED_BYTES, "what it is launched with");

// Rows of PIECES · 16 bytes, `from_stride` elements apart, to rows of `to_stride` bytes.
template <u32 ROWS, u32 PIECES>
__device__ inline void copy_block(const u16 *from, u32 from_stride, u32 to, u32 to_stride) {
#pragma unroll
    for (u32 i = 0; i < ROWS * PIECES / THREADS; i++) {
        u32 row = (i * THREADS + threadIdx.x) / PIECES, piece = threadIdx.x % PIECES;
        copy_16(to + row * to_stride + piece * 16, from + (u64)row * from_stride + piece * 8, true);
    }
}

// Grid [heads, tokens / 128], SHARED_BYTES bytes. `keys_weight` is [heads · LATENT, 128], `values_weight`
// [heads · 128, LATENT], both results [heads, window, 128].
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mla_expand(const u16 *latents, const u16 *keys_weight, const u16 *values_weight, u32 window, u16 *keys,
               u16 *values) {
    DYNAMIC_SHARED(shared);
    let_later_start();
    wait_for_earlier();
    const u32 base = shared_address(shared);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.x, first = blockIdx.y * TOKENS;
    latents += (u64)first * LATENT;
    keys_weight += (u64)head * LATENT * COLUMNS;
    values_weight += (u64)head * COLUMNS * LATENT;
    auto copy = [&](u32 step) {
        if (step < LATENT / STEP) {
            u32 to = base + step % STAGES * STAGE;
            copy_block<TOKENS, STEP / 8>(latents + step * STEP, LATENT, to, STRIDE);
            copy_block<STEP, COLUMNS / 8>(keys_weight + step * STEP * COLUMNS, COLUMNS, to + KEYS_AT, KEY_STRIDE);
            copy_block<COLUMNS, STEP / 8>(values_weight + step * STEP, LATENT, to + VALUES_AT, STRIDE);
        }
        copies_end();
    };
    bool makes_keys = warp < 4;
    u32 token = warp % 4 / 2 * 64, column = warp % 2 * 64;
    u32 left = (token + lane % 16) * STRIDE + lane / 16 * 16;
    u32 right = makes_keys ? KEYS_AT + lane % 16 * KEY_STRIDE + column * 2 + lane / 16 * 16
                           : VALUES_AT + (column + lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 16;
    float sums[4][8][4] = {};
    for (u32 step = 0; step < STAGES - 1; step++) copy(step);
    for (u32 step = 0; step < LATENT / STEP; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        copy(step + STAGES - 1);
        u32 at = base + step % STAGES * STAGE;
#pragma unroll
        for (u32 k = 0; k < STEP / 16; k++) {
            u32 a[4][4];
#pragma unroll
            for (u32 m = 0; m < 4; m++) matrices(a[m], at + left + m * 16 * STRIDE + k * 32);
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                u32 b[4];
                if (makes_keys)
                    matrices_transposed(b, at + right + k * 16 * KEY_STRIDE + n * 32);
                else
                    matrices(b, at + right + n * 16 * STRIDE + k * 32);
#pragma unroll
                for (u32 m = 0; m < 4; m++) {
                    multiply(sums[m][2 * n], a[m], b[0], b[1]);
                    multiply(sums[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
    u16 *out = (makes_keys ? keys : values) + ((u64)head * window + first + token + lane / 4) * COLUMNS;
    out += column + lane % 4 * 2;
#pragma unroll
    for (u32 m = 0; m < 4; m++)
#pragma unroll
        for (u32 n = 0; n < 8; n++)
#pragma unroll
            for (u32 half = 0; half < 2; half++)
                *(u32 *)(out + (m * 16 + half * 8) * COLUMNS + n * 8) =
                    pack(sums[m][n][half * 2], sums[m][n][half * 2 + 1]);
}
