// The gated delta rule along each sequence, recurrent. A block has 32 columns of one head's state
// S [k, v]: thread (part, column) keeps rows part, part + 8, … of its column in registers.
// Grid [columns / 32, value heads, sequences]; those of more than `rows_max` rows go in chunks.
#include <types.cuh>

#define PARTS 8
// Rows of a thread: keys have up to 256 elements.
#define OWN 32

// Sums over the parts of a column, in every thread of it.
__device__ inline float column_sum(float x, float (*shared)[33]) {
    __syncthreads();
    shared[threadIdx.x / 32][threadIdx.x % 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (u32 part = 0; part < PARTS; part++) sum += shared[part][threadIdx.x % 32];
    return sum;
}

extern "C" __global__ void __launch_bounds__(256)
    delta_rule(const act *qkv, u32 stride, const act *ba, u32 ba_stride, u32 key_heads,
               u32 value_heads, u32 dk, u32 dv, const float *a_log, const float *dt_bias, float *state,
               u32 each, const u32 *first_row, const u32 *positions, const u32 *places,
               u32 rows_max, act *out, u32 out_stride) {
    let_later_start();
    wait_for_earlier();
    __shared__ float q[PARTS * OWN], k[PARTS * OWN], shared[PARTS][33];
    u32 head = blockIdx.y, seq = blockIdx.z, part = threadIdx.x / 32;
    u32 col = blockIdx.x * 32 + threadIdx.x % 32, i = threadIdx.x;
    u32 key_head = head / (value_heads / key_heads), keys = key_heads * dk;
    float *s = state + (u64)places[seq] * each + (u64)head * dk * dv + col;
    u32 row = first_row[seq], end = first_row[seq + 1];
    if (end - row > rows_max) return;
    bool fresh = positions[row] == 0;
    float own[OWN];
#pragma unroll
    for (u32 t = 0; t < OWN; t++) {
        u32 at = part + PARTS * t;
        own[t] = !fresh && at < dk && col < dv ? s[(u64)at * dv] : 0.0f;
    }
    for (; row < end; row++) {
        const act *x = qkv + (u64)row * stride;
        float raw_q = i < dk ? value(x[key_head * dk + i]) : 0.0f;
        float raw_k = i < dk ? value(x[keys + key_head * dk + i]) : 0.0f;
        float q_scale = 1.0f / sqrtf(block_sum(raw_q * raw_q) + 1e-6f) / sqrtf((float)dk);
        float k_scale = 1.0f / sqrtf(block_sum(raw_k * raw_k) + 1e-6f);
        // The last reads of `q` and `k` lie before the barriers of block_sum.
        q[i] = raw_q * q_scale;
        k[i] = raw_k * k_scale;
        float v = col < dv ? value(x[2 * keys + head * dv + col]) : 0.0f;
        const act *gates = ba + (u64)row * ba_stride;
        float a = value(gates[value_heads + head]) + dt_bias[head];
        float softplus = a > 20.0f ? a : log1pf(expf(a));
        float decay = expf(-expf(a_log[head]) * softplus), beta = sigmoid(value(gates[head]));
        __syncthreads();
        float remembered = 0.0f;
#pragma unroll
        for (u32 t = 0; t < OWN; t++) {
            own[t] *= decay;
            remembered += k[part + PARTS * t] * own[t];
        }
        float delta = beta * (v - column_sum(remembered, shared));
        float mixed = 0.0f;
#pragma unroll
        for (u32 t = 0; t < OWN; t++) {
            own[t] += k[part + PARTS * t] * delta;
            mixed += q[part + PARTS * t] * own[t];
        }
        mixed = column_sum(mixed, shared);
        if (part == 0 && col < dv)
            out[(u64)row * out_stride + head * dv + col] = rounded<act>(mixed);
    }
#pragma unroll
    for (u32 t = 0; t < OWN; t++) {
        u32 at = part + PARTS * t;
        if (at < dk && col < dv) s[(u64)at * dv] = own[t];
    }
}
