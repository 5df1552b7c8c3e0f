// The gated delta rule in chunks of 64 tokens, for BF16 activations (Yang et al., Gated Delta
// Networks, 2024; the triangular system is the UT transform of Joffrain et al., 2006). With G the sum
// of log decays since a chunk began, S the state before it, and R what the state lacks of the values:
//
//   R = v - exp(G) ∘ k S
//   out = exp(G) ∘ q S + M R               M = P T    P_ij = exp(G_i - G_j) q_i·k_j  for j ≤ i
//   S = exp(G_last) S + X R                X = kᵀ diag(exp(G_last - G)) T
//   T = (I + L)⁻¹ diag(β)                  L_ij = β_i exp(G_i - G_j) k_i·k_j  for j < i
//
// No exponent is positive. `delta_chunks` makes M and X of all chunks at once, and `delta_states`
// walks along each sequence. T R, what each token adds, is never rounded: where keys are alike, most
// of it cancels in M and X, which are made to f32's precision and then rounded once. R is rounded, as
// values are that come from elsewhere, and S where it is multiplied. Lengths of q and k are factors of
// rows and columns, so that products have the numbers that are stored.
//
//   KEY_DIM       elements of a query or key
//   STAGES        chunks of `delta_states` in shared memory
//   SHARED_BYTES  of `delta_states`, for a check
#include <attend/ptx.cuh>

#define CHUNK 64
// Columns of a block of `delta_states`, 16 for each warp that computes.
#define SLICE 32
// Rows of matrices in shared memory, in bytes: 16 more than they have, so that eight rows lie in
// different banks.
#define KEY_STRIDE (KEY_DIM * 2 + 16)
#define PAIR_STRIDE (CHUNK * 2 + 16)
#define VALUE_STRIDE (SLICE * 2 + 16)
// Floats of a row of L and of its inverse.
#define INVERSE_STRIDE (CHUNK + 4)
// M and X, which has a row for each element of a key; for each token the factors of k S and of q S,
// and exp(G_last): of a chunk and head.
#define PAIR_ROWS (CHUNK + KEY_DIM)
#define FACTORS (3 * CHUNK * 4)
#define WORK_BYTES (PAIR_ROWS * CHUNK * 2 + FACTORS)

#define LOG2_E 1.4426950408889634f

__device__ inline float wide(u16 x) { return __uint_as_float((u32)x << 16); }
__device__ inline float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ inline float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Chunks are numbered so that nobody has to count those of all sequences before: a sequence's begin
// at this number, and end before the next sequence's begin.
__device__ inline u32 first_chunk(u32 seq, u32 first_row) { return first_row / CHUNK + seq; }

__device__ inline u32 chunks_of(u32 rows) { return (rows + CHUNK - 1) / CHUNK; }

// 16 rows by 16 columns at `at`, as the left factor of a product.
__device__ inline void left(u32 (&a)[4], u32 at, u32 stride) {
    u32 lane = threadIdx.x % 32;
    matrices(a, at + lane % 16 * stride + lane / 16 * 16);
}

// 8 rows by 32 columns at `at`, transposed: two right factors of 16 by 8.
__device__ inline void right(u32 (&b)[4], u32 at, u32 stride) {
    u32 lane = threadIdx.x % 32;
    matrices(b, at + lane % 8 * stride + lane / 8 * 16);
}

// Two tiles of results as the left factor of the next product.
__device__ inline void as_left(u32 (&a)[4], const float (&x)[4], const float (&y)[4]) {
    a[0] = pack(x[0], x[1]);
    a[1] = pack(x[2], x[3]);
    a[2] = pack(y[0], y[1]);
    a[3] = pack(y[2], y[3]);
}

// What rounding takes from a pair, rounded.
__device__ inline u32 rest(u32 pair, float x, float y) { return pack(x - low(pair), y - high(pair)); }

// A thread has a whole row.
__device__ inline float inverse_length(const u8 *row) {
    float sum = 0.0f;
    for (u32 piece = 0; piece < KEY_DIM / 8; piece++) {
        uint4 x = ((const uint4 *)row)[piece];
        sum += low(x.x) * low(x.x) + high(x.x) * high(x.x) + low(x.y) * low(x.y) + high(x.y) * high(x.y);
        sum += low(x.z) * low(x.z) + high(x.z) * high(x.z) + low(x.w) * low(x.w) + high(x.w) * high(x.w);
    }
    return 1.0f / sqrtf(sum + 1e-6f);
}

// One lane's eight columns of a row of A · B, 16 rows by `inner` by 16 columns.
__device__ inline void product(float (&sum)[8], const float *a, const float *b, u32 inner) {
    u32 lane = threadIdx.x % 32;
    a += lane / 2 * INVERSE_STRIDE;
    b += lane % 2 * 8;
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum[i] = 0.0f;
#pragma unroll 8
    for (u32 k = 0; k < inner; k++) {
        float4 x = *(const float4 *)(b + k * INVERSE_STRIDE), y = *(const float4 *)(b + k * INVERSE_STRIDE + 4);
        sum[0] += a[k] * x.x, sum[1] += a[k] * x.y, sum[2] += a[k] * x.z, sum[3] += a[k] * x.w;
        sum[4] += a[k] * y.x, sum[5] += a[k] * y.y, sum[6] += a[k] * y.z, sum[7] += a[k] * y.w;
    }
}

__device__ inline void put_product(float *to, const float (&sum)[8], float sign) {
    u32 lane = threadIdx.x % 32;
    to += lane / 2 * INVERSE_STRIDE + lane % 2 * 8;
#pragma unroll
    for (u32 i = 0; i < 8; i++) to[i] = sign * sum[i];
}

// inverse = (I + L)⁻¹ but for blocks above the diagonal, by the four warps of a block: 16 by 16 on
// the diagonal by substitution, a column in each lane's registers, then block after block away from it.
// Elements of L above the diagonal are zero.
__device__ inline void invert(const float *l, float *inverse) {
    u32 warp = threadIdx.x / 32, column = threadIdx.x % 16;
    const float *block = l + warp * 16 * (INVERSE_STRIDE + 1);
    float x[16];
#pragma unroll
    for (u32 i = 0; i < 16; i++) {
        x[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
        for (u32 j = 0; j < i; j++) x[i] -= block[i * INVERSE_STRIDE + j] * x[j];
    }
    if (threadIdx.x % 32 < 16) {
#pragma unroll
        for (u32 i = 0; i < 16; i++) inverse[(warp * 16 + i) * INVERSE_STRIDE + warp * 16 + column] = x[i];
    }
    __syncthreads();
    for (u32 away = 1; away < 4; away++) {
        u32 row = (warp + away) * 16, col = warp * 16;
        if (row < CHUNK) {
            float *to = inverse + row * INVERSE_STRIDE + col;
            float sum[8];
            product(sum, l + row * INVERSE_STRIDE + col, inverse + col * INVERSE_STRIDE + col, away * 16);
            put_product(to, sum, 1.0f);
            __syncwarp();
            product(sum, inverse + row * INVERSE_STRIDE + row, to, 16);
            __syncwarp();
            put_product(to, sum, -1.0f);
        }
        __syncthreads();
    }
}

// 16 rows by 8 columns of the inverse, rows times `by` if there is one, as a right factor in two parts.
__device__ inline void in_parts(u32 (&b)[2], u32 (&lost)[2], const float *inverse, const float *by) {
    u32 column = threadIdx.x % 32 / 4, row = threadIdx.x % 4 * 2;
#pragma unroll
    for (u32 half = 0; half < 2; half++, row += 8) {
        float x = inverse[row * INVERSE_STRIDE + column], y = inverse[(row + 1) * INVERSE_STRIDE + column];
        if (by) x *= by[row], y *= by[row + 1];
        b[half] = pack(x, y);
        lost[half] = rest(b[half], x, y);
    }
}

// Columns times β, to rows `row` and 8 more of the workspace's matrices.
__device__ inline void put_pairs(u8 *work, u32 row, const float (&x)[8][4], const float *beta) {
    u32 col = threadIdx.x % 4 * 2;
    row += threadIdx.x % 32 / 4;
#pragma unroll
    for (u32 n = 0; n < 8; n++, col += 8) {
        u32 *to = (u32 *)(work + (row * CHUNK + col) * 2);
        to[0] = pack(x[n][0] * beta[col], x[n][1] * beta[col + 1]);
        to[8 * CHUNK / 2] = pack(x[n][2] * beta[col], x[n][3] * beta[col + 1]);
    }
}

// M, X and factors of chunk `first` + x and value head y. Sequences of up to `few_rows` rows have none.
extern "C" __global__ void __launch_bounds__(128)
    delta_chunks(const u16 *qkv, u32 stride, const u16 *ba, u32 ba_stride, u32 key_heads, u32 value_heads,
                 const float *a_log, const float *dt_bias, const u32 *first_row, u32 count, u32 few_rows,
                 u32 first, u8 *work) {
    DYNAMIC_SHARED(shared);
    __shared__ float total[CHUNK], beta[CHUNK], q_scale[CHUNK], k_scale[CHUNK], until_last[CHUNK];
    // The last sequence that does not begin behind this chunk.
    u32 number = first + blockIdx.x, seq = 0;
    for (u32 behind = count; behind - seq > 1;) {
        u32 middle = (seq + behind) / 2;
        if (first_chunk(middle, first_row[middle]) <= number) {
            seq = middle;
        } else {
            behind = middle;
        }
    }
    u32 row = first_row[seq], rows = first_row[seq + 1] - row, start = (number - first_chunk(seq, row)) * CHUNK;
    if (rows <= few_rows || start >= rows) return;
    row += start;
    rows = min(rows - start, (u32)CHUNK);
    u32 head = blockIdx.y, key_head = head / (value_heads / key_heads), keys = key_heads * KEY_DIM;
    u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    u8 *k = shared, *q = shared + CHUNK * KEY_STRIDE;
    const u16 *x = qkv + (u64)row * stride + key_head * KEY_DIM;
    for (u32 i = thread; i < CHUNK * KEY_DIM / 8; i += 128) {
        u32 token = i / (KEY_DIM / 8), piece = i % (KEY_DIM / 8);
        const u16 *from = x + (u64)(token < rows ? token : 0) * stride + piece * 8;
        copy_16(shared_address(q) + token * KEY_STRIDE + piece * 16, from, token < rows);
        copy_16(shared_address(k) + token * KEY_STRIDE + piece * 16, from + keys, token < rows);
    }
    copies_end();
    if (warp == 0) {
        float before = 0.0f;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 token = half * 32 + lane;
            // Tokens behind the end change nothing: they forget nothing and add nothing.
            float sum = 0.0f, weight = 0.0f;
            if (token < rows) {
                const u16 *gates = ba + (u64)(row + token) * ba_stride;
                float a = wide(gates[value_heads + head]) + dt_bias[head];
                sum = -expf(a_log[head]) * (a > 20.0f ? a : log1pf(expf(a)));
                weight = 1.0f / (1.0f + expf(-wide(gates[head])));
            }
            for (u32 step = 1; step < 32; step *= 2) {
                float other = __shfl_sync(~0u, sum, (lane - step) % 32);
                if (lane >= step) sum += other;
            }
            sum += before;
            before = __shfl_sync(~0u, sum, 31);
            total[token] = sum;
            beta[token] = weight;
        }
    }
    copies_wait<0>();
    __syncthreads();
    if (thread < CHUNK) {
        q_scale[thread] = inverse_length(q + thread * KEY_STRIDE) / sqrtf((float)KEY_DIM);
    } else {
        k_scale[thread - CHUNK] = inverse_length(k + (thread - CHUNK) * KEY_STRIDE);
    }
    // Each warp has 16 rows, and the columns up to them.
    float qk[8][4] = {}, kk[8][4] = {};
#pragma unroll
    for (u32 at = 0; at < KEY_DIM; at += 32) {
        u32 of_q[2][4], of_k[2][4];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            left(of_q[i], shared_address(q) + warp * 16 * KEY_STRIDE + (at + i * 16) * 2, KEY_STRIDE);
            left(of_k[i], shared_address(k) + warp * 16 * KEY_STRIDE + (at + i * 16) * 2, KEY_STRIDE);
        }
#pragma unroll
        for (u32 n = 0; n < 8; n++) {
            if (n / 2 > warp) break;
            u32 b[4];
            right(b, shared_address(k) + n * 8 * KEY_STRIDE + at * 2, KEY_STRIDE);
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                multiply(qk[n], of_q[i], b[2 * i], b[2 * i + 1]);
                multiply(kk[n], of_k[i], b[2 * i], b[2 * i + 1]);
            }
        }
    }
    __syncthreads();
    // Queries are not needed any more.
    float *l = (float *)q, *inverse = l + CHUNK * INVERSE_STRIDE;
#pragma unroll
    for (u32 n = 0; n < 8; n++) {
#pragma unroll
        for (u32 one = 0; one < 4; one++) {
            u32 i = warp * 16 + one / 2 * 8 + lane / 4, j = n * 8 + lane % 4 * 2 + one % 2;
            float decay = j <= i ? exp_2((total[i] - total[j]) * LOG2_E) * k_scale[j] : 0.0f;
            qk[n][one] *= q_scale[i] * decay;
            l[i * INVERSE_STRIDE + j] = j < i ? beta[i] * k_scale[i] * decay * kk[n][one] : 0.0f;
        }
    }
    u8 *to = work + ((u64)blockIdx.x * value_heads + head) * WORK_BYTES;
    if (thread < CHUNK) {
        float *factors = (float *)(to + PAIR_ROWS * CHUNK * 2), all = total[CHUNK - 1];
        float since = expf(total[thread]);
        factors[thread] = k_scale[thread] * since;
        factors[CHUNK + thread] = q_scale[thread] * since;
        factors[2 * CHUNK + thread] = expf(all);
        until_last[thread] = k_scale[thread] * expf(all - total[thread]);
    }
    __syncthreads();
    invert(l, inverse);
    // M: this warp's 16 rows of P, of which three products of parts are exact enough.
    float sum[8][4] = {};
#pragma unroll
    for (u32 i = 0; i < CHUNK / 16; i++) {
        if (i > warp) break;
        u32 p[4], p_rest[4];
        as_left(p, qk[2 * i], qk[2 * i + 1]);
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const float(&of)[4] = qk[2 * i + j / 2];
            p_rest[j] = rest(p[j], of[j % 2 * 2], of[j % 2 * 2 + 1]);
        }
#pragma unroll
        for (u32 n = 0; n < 2 * i + 2; n++) {
            u32 b[2], lost[2];
            in_parts(b, lost, inverse + i * 16 * INVERSE_STRIDE + n * 8, nullptr);
            multiply(sum[n], p_rest, b[0], b[1]);
            multiply(sum[n], p, lost[0], lost[1]);
            multiply(sum[n], p, b[0], b[1]);
        }
    }
    put_pairs(to, warp * 16, sum, beta);
    // X: a warp's share of the elements of keys, which are exact in BF16.
    for (u32 row = warp * 16; row < KEY_DIM; row += 64) {
#pragma unroll
        for (u32 n = 0; n < 8; n++)
#pragma unroll
            for (u32 one = 0; one < 4; one++) sum[n][one] = 0.0f;
#pragma unroll
        for (u32 i = 0; i < CHUNK / 16; i++) {
            u32 a[4];
            matrices_transposed(a, shared_address(k) + (i * 16 + lane % 8 + lane / 16 * 8) * KEY_STRIDE +
                                       (row + lane / 8 % 2 * 8) * 2);
#pragma unroll
            for (u32 n = 0; n < 2 * i + 2; n++) {
                u32 b[2], lost[2];
                in_parts(b, lost, inverse + i * 16 * INVERSE_STRIDE + n * 8, until_last + i * 16);
                multiply(sum[n], a, lost[0], lost[1]);
                multiply(sum[n], a, b[0], b[1]);
            }
        }
        put_pairs(to, CHUNK + row, sum, beta);
    }
}

// A chunk in shared memory: where its parts begin, in bytes.
#define AT_KEYS (CHUNK * KEY_STRIDE)
#define AT_PAIRS (2 * CHUNK * KEY_STRIDE)
#define AT_VALUES (AT_PAIRS + PAIR_ROWS * PAIR_STRIDE)
#define AT_FACTORS (AT_VALUES + CHUNK * VALUE_STRIDE)
#define STAGE_BYTES (AT_FACTORS + FACTORS)
static_assert(SHARED_BYTES == STAGES * STAGE_BYTES, "what delta.rs says");

// Threads that copy, besides as many that compute.
#define COPIERS 64

// What a block of `delta_states` reads.
struct From {
    // Queries of the key head, and distances from there to keys and to values of the slice.
    const u16 *queries;
    u32 stride, keys, values;
    // The head's part of the workspace for the launch's first chunk, and bytes to that of the next.
    const u8 *work;
    u32 work_stride;
};

// Starts to copy chunk number `chunk` of the launch, `rows` rows from `row` on.
__device__ inline void copy_chunk(const From &from, u32 chunk, u32 row, u32 rows, u32 to, u32 thread) {
#pragma unroll 4
    for (u32 i = thread; i < CHUNK * KEY_DIM / 8; i += COPIERS) {
        u32 token = i / (KEY_DIM / 8), piece = i % (KEY_DIM / 8);
        const u16 *x = from.queries + (u64)(token < rows ? row + token : row) * from.stride + piece * 8;
        copy_16(to + token * KEY_STRIDE + piece * 16, x, token < rows);
        copy_16(to + AT_KEYS + token * KEY_STRIDE + piece * 16, x + from.keys, token < rows);
    }
    const u8 *work = from.work + (u64)chunk * from.work_stride;
#pragma unroll 4
    for (u32 i = thread; i < PAIR_ROWS * CHUNK / 8; i += COPIERS)
        copy_16(to + AT_PAIRS + i / 8 * PAIR_STRIDE + i % 8 * 16, work + i * 16, true);
#pragma unroll
    for (u32 i = thread; i < CHUNK * SLICE / 8; i += COPIERS) {
        u32 token = i / (SLICE / 8), piece = i % (SLICE / 8);
        const u16 *x = from.queries + (u64)(token < rows ? row + token : row) * from.stride + piece * 8;
        copy_16(to + AT_VALUES + token * VALUE_STRIDE + piece * 16, x + from.values, token < rows);
    }
    if (thread < FACTORS / 16)
        copy_16(to + AT_FACTORS + thread * 16, work + PAIR_ROWS * CHUNK * 2 + thread * 16, true);
    copies_end();
}

// sum += state · rowsᵀ: 16 columns of values by 64 tokens.
__device__ inline void recall(float (&sum)[8][4], const u32 (&state)[KEY_DIM / 16][4], u32 rows) {
#pragma unroll
    for (u32 at = 0; at < KEY_DIM / 32; at++) {
#pragma unroll
        for (u32 n = 0; n < 8; n++) {
            u32 b[4];
            right(b, rows + n * 8 * KEY_STRIDE + at * 64, KEY_STRIDE);
            multiply(sum[n], state[2 * at], b[0], b[1]);
            multiply(sum[n], state[2 * at + 1], b[2], b[3]);
        }
    }
}

// sum += lacking · pairsᵀ for `TILES` times 8 rows of pairs. Where a row is a token of M, there is
// nothing above the diagonal.
template <u32 TILES, bool TRIANGLE>
__device__ inline void mix(float (&sum)[TILES][4], const u32 (&lacking)[CHUNK / 16][4], u32 pairs) {
#pragma unroll
    for (u32 at = 0; at < CHUNK / 32; at++) {
#pragma unroll
        for (u32 n = TRIANGLE ? at * 4 : 0; n < TILES; n++) {
            u32 b[4];
            right(b, pairs + n * 8 * PAIR_STRIDE + at * 64, PAIR_STRIDE);
            multiply(sum[n], lacking[2 * at], b[0], b[1]);
            if (!TRIANGLE || n >= at * 4 + 2) multiply(sum[n], lacking[2 * at + 1], b[2], b[3]);
        }
    }
}

// Walks along a chunk with 16 columns of the state, which lie as Sᵀ, a row for each column, in the
// order of results: the warp needs nobody else. `out` is where row and columns begin.
__device__ inline void walk(float (&state)[KEY_DIM / 8][4], u8 *stage, u32 rows, u16 *out, u32 out_stride) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, at = shared_address(stage);
    const float *factors = (const float *)(stage + AT_FACTORS) + lane % 4 * 2;
    u32 rounded[KEY_DIM / 16][4];
#pragma unroll
    for (u32 i = 0; i < KEY_DIM / 16; i++) as_left(rounded[i], state[2 * i], state[2 * i + 1]);
    float lacks[8][4] = {}, mixed[8][4] = {};
    u32 lacking[CHUNK / 16][4];
    recall(lacks, rounded, at + AT_KEYS);
    recall(mixed, rounded, at);
#pragma unroll
    for (u32 i = 0; i < CHUNK / 16; i++) {
        // Values of 16 tokens and this warp's columns, transposed as results are. Registers 1 and 2 are
        // those of the second eight tokens and of the second eight columns.
        u32 v[4];
        matrices_transposed(v, at + AT_VALUES + (i * 16 + lane % 16) * VALUE_STRIDE + warp * 32 + lane / 16 * 16);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 n = 2 * i + half;
            float2 of_k = *(const float2 *)(factors + n * 8), of_q = *(const float2 *)(factors + CHUNK + n * 8);
            lacks[n][0] = low(v[half]) - of_k.x * lacks[n][0], mixed[n][0] *= of_q.x;
            lacks[n][1] = high(v[half]) - of_k.y * lacks[n][1], mixed[n][1] *= of_q.y;
            lacks[n][2] = low(v[half + 2]) - of_k.x * lacks[n][2], mixed[n][2] *= of_q.x;
            lacks[n][3] = high(v[half + 2]) - of_k.y * lacks[n][3], mixed[n][3] *= of_q.y;
        }
        as_left(lacking[i], lacks[2 * i], lacks[2 * i + 1]);
    }
    float fade = factors[2 * CHUNK];
#pragma unroll
    for (u32 n = 0; n < KEY_DIM / 8; n++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) state[n][i] *= fade;
    mix<KEY_DIM / 8, false>(state, lacking, at + AT_PAIRS + CHUNK * PAIR_STRIDE);
    mix<8, true>(mixed, lacking, at + AT_PAIRS);
    // Results take the place of the values, which this warp alone has read.
    __syncwarp();
    u8 *place = stage + AT_VALUES + warp * 32;
#pragma unroll
    for (u32 n = 0; n < 8; n++) {
        u32 first = pack(mixed[n][0], mixed[n][2]), second = pack(mixed[n][1], mixed[n][3]);
        u16 *to = (u16 *)(place + (n * 8 + lane % 4 * 2) * VALUE_STRIDE) + lane / 4;
        to[0] = (u16)first;
        to[8] = (u16)(first >> 16);
        to[VALUE_STRIDE / 2] = (u16)second;
        to[VALUE_STRIDE / 2 + 8] = (u16)(second >> 16);
    }
    __syncwarp();
#pragma unroll
    for (u32 i = lane; i < CHUNK * 2; i += 32)
        if (i / 2 < rows)
            *(uint4 *)(out + (u64)(i / 2) * out_stride + i % 2 * 8) =
                *(const uint4 *)(place + i / 2 * VALUE_STRIDE + i % 2 * 16);
}

// Chunks `first` to `first` + `chunks` of sequence z, along value head y with 32 of its columns. Two
// warps compute, the other two copy what comes next: a chunk's 61 KiB come from the second-level
// cache, which all slices of a head and heads of a key share, and take about as long as its products.
extern "C" __global__ void __launch_bounds__(128)
    delta_states(const u16 *qkv, u32 stride, u32 key_heads, u32 value_heads, u32 value_dim, float *states,
                 u32 each, const u32 *first_row, const u32 *positions, const u32 *places, u32 few_rows,
                 u32 first, u32 chunks, const u8 *work, u16 *out, u32 out_stride) {
    DYNAMIC_SHARED(shared);
    u32 head = blockIdx.y, seq = blockIdx.z, row = first_row[seq], rows = first_row[seq + 1] - row;
    if (rows <= few_rows) return;
    // Numbers of chunks of this sequence and launch.
    u32 own = first_chunk(seq, row), chunk = max(first, own), end = min(first + chunks, own + chunks_of(rows));
    if (chunk >= end) return;
    u32 key_head = head / (value_heads / key_heads), slice = head * value_dim + blockIdx.x * SLICE;
    bool copies = threadIdx.x >= COPIERS;
    u32 thread = threadIdx.x % COPIERS, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const From from = {qkv + key_head * KEY_DIM,
                       stride,
                       key_heads * KEY_DIM,
                       (2 * key_heads - key_head) * KEY_DIM + slice,
                       work + (u64)head * WORK_BYTES,
                       value_heads * WORK_BYTES};
    float state[KEY_DIM / 8][4] = {};
    // This lane's column and row of the first tile.
    float *place = states + (u64)places[seq] * each + (u64)head * KEY_DIM * value_dim + blockIdx.x * SLICE;
    place += (u64)(lane % 4 * 2) * value_dim + warp * 16 + lane / 4;
    if (!copies && (chunk > own || positions[row] != 0)) {
#pragma unroll
        for (u32 n = 0; n < KEY_DIM / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) state[n][i] = place[(u64)(n * 8 + i % 2) * value_dim + i / 2 * 8];
    }
    auto start = [&](u32 chunk) {
        u32 before = (chunk - own) * CHUNK;
        copy_chunk(from, chunk - first, row + before, min(rows - before, (u32)CHUNK),
                   shared_address(shared) + chunk % STAGES * STAGE_BYTES, thread);
    };
    if (copies) start(chunk);
    for (; chunk < end; chunk++) {
        if (copies) copies_wait<0>();
        __syncthreads();
        if (!copies) {
            u32 before = (chunk - own) * CHUNK;
            u16 *to = out + (u64)(row + before) * out_stride + slice + warp * 16;
            walk(state, shared + chunk % STAGES * STAGE_BYTES, min(rows - before, (u32)CHUNK), to, out_stride);
        }
        if (STAGES == 1) __syncthreads();
        if (copies && chunk + 1 < end) start(chunk + 1);
    }
    if (!copies) {
#pragma unroll
        for (u32 n = 0; n < KEY_DIM / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) place[(u64)(n * 8 + i % 2) * value_dim + i / 2 * 8] = state[n][i];
    }
}
