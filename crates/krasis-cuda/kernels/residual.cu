// What joins the residual stream, and the norm that follows. One block per row; squares are added in
// f32. Rows that begin at 16 bytes are read by a thread for each eight columns, and all that a thread
// needs is on its way at once: a read takes most of a microsecond, and few rows are nothing but that.
#include <eights.cuh>

// Threads of a block, and so an eighth of the columns that a row in eights may have: more would leave a
// thread too few registers.
#define EIGHTS_MAX 896
// Pairs of a token that are on their way together: all of most models.
#define TOGETHER (16 / sizeof(act))

// residual += add; out = residual · rsqrt(mean(residual²) + eps) · w. `add` may be absent.
extern "C" __global__ void add_rms_norm(const act *add, u32 add_stride, act *residual,
                                        u32 residual_stride, const float *w, float eps, act *out,
                                        u32 out_stride, u32 cols) {
    let_later_start();
    wait_for_earlier();
    u64 row = blockIdx.x;
    residual += row * residual_stride;
    out += row * out_stride;
    float squares = 0.0f;
    for (u32 col = threadIdx.x; col < cols; col += blockDim.x) {
        float x = value(residual[col]);
        if (add) {
            residual[col] = rounded<act>(x + value(add[row * add_stride + col]));
            x = value(residual[col]);
        }
        squares += x * x;
    }
    float scale = 1.0f / sqrtf(block_sum(squares) / cols + eps);
    // Every thread reads what it has written itself.
    for (u32 col = threadIdx.x; col < cols; col += blockDim.x)
        out[col] = rounded<act>(value(residual[col]) * scale * w[col]);
}

// The norm of a row of which this thread has columns from `col` on, zeros beyond the last.
__device__ inline void norm_eight(Eight x, const Eight &w, float eps, act *out, u32 col, u32 cols) {
    float squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 8; i++) squares += x.x[i] * x.x[i];
    float scale = 1.0f / sqrtf(block_sum(squares) / cols + eps);
#pragma unroll
    for (u32 i = 0; i < 8; i++) x.x[i] = x.x[i] * scale * w.x[i];
    if (col < cols) store_eight(out + col, x);
}

// The same in eights.
extern "C" __global__ void __launch_bounds__(EIGHTS_MAX)
    add_rms_norm_eights(const act *add, u32 add_stride, act *residual, u32 residual_stride, const float *w,
                        float eps, act *out, u32 out_stride, u32 cols) {
    let_later_start();
    u32 col = threadIdx.x * 8;
    Eight weights = weights_of(w, col, cols), x = {};
    wait_for_earlier();
    u64 row = blockIdx.x;
    residual += row * residual_stride + col;
    if (col < cols) {
        x = load_eight(residual);
        if (add) {
            x = rounded_eight(sum_of(x, load_eight(add + row * add_stride + col)));
            store_eight(residual, x);
        }
    }
    norm_eight(x, weights, eps, out + row * out_stride, col, cols);
}

// out = scale · Σ_k weight[k] · pair[k] + shared · sigmoid(gate); `shared` and `gate` may be absent.
extern "C" __global__ void combine(const act *pairs, u32 pair_stride, const float *weights,
                                   u32 top_k, float scale, const act *shared, u32 shared_stride,
                                   const act *gate, u32 gate_stride, act *out, u32 out_stride,
                                   u32 cols) {
    let_later_start();
    wait_for_earlier();
    u32 col = blockIdx.y * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    u64 row = blockIdx.x;
    float sum = 0.0f;
    for (u32 k = 0; k < top_k; k++)
        sum += scale * weights[row * top_k + k] * value(pairs[(row * top_k + k) * pair_stride + col]);
    if (shared) {
        float share = gate ? sigmoid(value(gate[row * gate_stride])) : 1.0f;
        sum += share * value(shared[row * shared_stride + col]);
    }
    out[row * out_stride + col] = rounded<act>(sum);
}

// `combine`, and what it makes to `add_rms_norm_eights`.
extern "C" __global__ void __launch_bounds__(EIGHTS_MAX)
    combine_rms_norm(const act *pairs, u32 pair_stride, const float *weights, u32 top_k, float scale,
                     const act *shared, u32 shared_stride, const act *gate, u32 gate_stride,
                     act *residual, u32 residual_stride, const float *w, float eps, act *out,
                     u32 out_stride, u32 cols) {
    let_later_start();
    u32 col = threadIdx.x * 8;
    bool there = col < cols;
    Eight own = weights_of(w, col, cols);
    wait_for_earlier();
    // Threads beyond the last column read the first ones.
    u32 from = there ? col : 0;
    u64 row = blockIdx.x;
    residual += row * residual_stride + from;
    pairs += row * top_k * pair_stride + from;
    Stored before = load_stored(residual);
    float weight = lane() < top_k ? weights[row * top_k + lane()] : 0.0f;
    Eight sum = {};
    for (u32 first = 0; first < top_k; first += TOGETHER) {
        Stored pair[TOGETHER];
#pragma unroll
        for (u32 i = 0; i < TOGETHER; i++)
            if (first + i < top_k) pair[i] = load_stored(pairs + (u64)(first + i) * pair_stride);
#pragma unroll
        for (u32 i = 0; i < TOGETHER; i++)
            if (first + i < top_k) {
                float by = scale * __shfl_sync(~0u, weight, first + i);
                Eight of = eight_of(pair[i]);
#pragma unroll
                for (u32 j = 0; j < 8; j++) sum.x[j] += by * of.x[j];
            }
    }
    if (shared) {
        float share = gate ? sigmoid(value(gate[row * gate_stride])) : 1.0f;
        Eight add = load_eight(shared + row * shared_stride + from);
#pragma unroll
        for (u32 j = 0; j < 8; j++) sum.x[j] += share * add.x[j];
    }
    Eight x = rounded_eight(sum_of(eight_of(before), rounded_eight(sum)));
    if (there) store_eight(residual, x);
    else x = Eight{};
    norm_eight(x, own, eps, out + row * out_stride, col, cols);
}
