// RMS norms. One block per row, or per head of a row; squares are added in f32.
#include <types.cuh>

// Each head of `dim` columns in place.
extern "C" __global__ void head_norm(act *x, u32 stride, u32 dim, const float *w, float eps) {
    let_later_start();
    wait_for_earlier();
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
    let_later_start();
    wait_for_earlier();
    x += (u64)blockIdx.x * stride + blockIdx.y * dim;
    gate += (u64)blockIdx.x * gate_stride + blockIdx.y * dim;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < dim; i += blockDim.x) squares += value(x[i]) * value(x[i]);
    float scale = 1.0f / sqrtf(block_sum(squares) / dim + eps);
    for (u32 i = threadIdx.x; i < dim; i += blockDim.x)
        x[i] = rounded<act>(value(x[i]) * scale * w[i] * silu(value(gate[i])));
}
