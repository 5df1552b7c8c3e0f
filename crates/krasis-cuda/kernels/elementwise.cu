// Operations that treat each number, or each row, alone. One block row of threads per token.
#include <absent.cuh>
#include <types.cuh>

// x = x · sigmoid(gate)
extern "C" __global__ void sigmoid_gate(act *x, u32 stride, const act *gate, u32 gate_stride,
                                        u32 cols) {
    let_later_start();
    wait_for_earlier();
    u32 col = blockIdx.y * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    act *at = x + (u64)blockIdx.x * stride + col;
    *at = rounded<act>(value(*at) * sigmoid(value(gate[(u64)blockIdx.x * gate_stride + col])));
}

// out = silu(gate) · up of columns [gate | up]
extern "C" __global__ void silu_mul(const act *gate_up, u32 stride, act *out, u32 out_stride,
                                    u32 cols) {
    let_later_start();
    wait_for_earlier();
    u32 col = blockIdx.y * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    const act *row = gate_up + (u64)blockIdx.x * stride;
    out[(u64)blockIdx.x * out_stride + col] =
        rounded<act>(silu(value(row[col])) * value(row[cols + col]));
}

// out[i] = x[rows[i]]
extern "C" __global__ void gather(const act *x, u32 stride, const u32 *rows, act *out,
                                  u32 out_stride, u32 cols) {
    let_later_start();
    wait_for_earlier();
    u32 col = blockIdx.y * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    out[(u64)blockIdx.x * out_stride + col] = x[(u64)rows[blockIdx.x] * stride + col];
}

// out[i] = from[i] where places[i] is not absent
extern "C" __global__ void take_rows(act *out, u32 stride, const act *from, u32 from_stride,
                                     const u32 *places, u32 cols) {
    let_later_start();
    wait_for_earlier();
    u32 col = blockIdx.y * blockDim.x + threadIdx.x;
    if (col >= cols || places[blockIdx.x] == ABSENT) return;
    out[(u64)blockIdx.x * stride + col] = from[(u64)blockIdx.x * from_stride + col];
}

// Rotates the pairs (i, i + half) of each head of `dim` columns by position · freqs[i].
extern "C" __global__ void rope(act *x, u32 stride, u32 heads, u32 dim, const float *freqs, u32 half,
                                float scale, const u32 *positions) {
    let_later_start();
    wait_for_earlier();
    u32 i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= half) return;
    float sine, cosine;
    // Angles reach 10⁵, so the accurate functions are called for.
    sincosf((float)positions[blockIdx.x] * freqs[i], &sine, &cosine);
    sine *= scale;
    cosine *= scale;
    // All heads of a token turn alike.
    for (u32 head = 0; head < heads; head++) {
        act *at = x + (u64)blockIdx.x * stride + head * dim + i;
        float a = value(at[0]), b = value(at[half]);
        at[0] = rounded<act>(a * cosine - b * sine);
        at[half] = rounded<act>(b * cosine + a * sine);
    }
}
