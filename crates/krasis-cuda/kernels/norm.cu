// RMS norms. One block per row, or per head of a row; squares are added in f32.
#include <types.cuh>

// residual += add; out = residual · rsqrt(mean(residual²) + eps) · w. `add` may be absent.
extern "C" __global__ void add_rms_norm(const act *add, u32 add_stride, act *residual,
                                        u32 residual_stride, const float *w, float eps, act *out,
                                        u32 out_stride, u32 cols) {
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

// Each head of `dim` columns in place.
extern "C" __global__ void head_norm(act *x, u32 stride, u32 dim, const float *w, float eps) {
    x += (u64)blockIdx.x * stride + blockIdx.y * dim;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < dim; i += blockDim.x) squares += value(x[i]) * value(x[i]);
    float scale = 1.0f / sqrtf(block_sum(squares) / dim + eps);
    for (u32 i = threadIdx.x; i < dim; i += blockDim.x)
        x[i] = rounded<act>(value(x[i]) * scale * w[i]);
}

// The same, times silu(gate).
extern "C" __global__ void gated_norm(act *x, u32 stride, const act *gate, u32 gate_stride, u32 dim,
                                      const float *w, float eps) {
    x += (u64)blockIdx.x * stride + blockIdx.y * dim;
    gate += (u64)blockIdx.x * gate_stride + blockIdx.y * dim;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < dim; i += blockDim.x) squares += value(x[i]) * value(x[i]);
    float scale = 1.0f / sqrtf(block_sum(squares) / dim + eps);
    for (u32 i = threadIdx.x; i < dim; i += blockDim.x)
        x[i] = rounded<act>(value(x[i]) * scale * w[i] * silu(value(gate[i])));
}
