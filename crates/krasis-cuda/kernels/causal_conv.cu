// Depthwise causal convolution along each sequence, then SiLU. A thread per channel walks the rows
// of its sequence with the last inputs in registers: grid [channels / 128, sequences].
#include <weights.cuh>

#define KERNEL_MAX 8

extern "C" __global__ void causal_conv(const act *x, u32 stride, const u8 *data, const bf16 *scales,
                                       u32 kernel, u32 group, float *state, u32 each,
                                       const u32 *first_row, const u32 *positions, const u32 *places,
                                       act *out, u32 out_stride, u32 channels) {
    u32 channel = blockIdx.x * blockDim.x + threadIdx.x, seq = blockIdx.y;
    if (channel >= channels) return;
    Weight w{data, scales, kernel, group};
    // The newest input and tap come last, whatever the kernel's size; unused taps are zero.
    float taps[KERNEL_MAX], past[KERNEL_MAX];
    float unit[8];
    load_unit(w, channel, 0, 0, unit);
    state += (u64)places[seq] * each + channel;
    u32 row = first_row[seq], end = first_row[seq + 1], unused = KERNEL_MAX - kernel;
    bool fresh = positions[row] == 0;
#pragma unroll
    for (u32 i = 0; i < KERNEL_MAX; i++) {
        taps[i] = 0.0f;
        past[i] = 0.0f;
#pragma unroll
        for (u32 j = 0; j < KERNEL_MAX; j++)
            if (i == j + unused) taps[i] = unit[j];
        // `past` is one behind: its last place is the present.
        if (i >= unused && i < KERNEL_MAX - 1 && !fresh)
            past[i] = state[(u64)(i - unused) * channels];
    }
    for (; row < end; row++) {
        past[KERNEL_MAX - 1] = value(x[(u64)row * stride + channel]);
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < KERNEL_MAX; i++) sum += taps[i] * past[i];
        out[(u64)row * out_stride + channel] = rounded<act>(silu(sum));
#pragma unroll
        for (u32 i = 0; i + 1 < KERNEL_MAX; i++) past[i] = past[i + 1];
    }
    // After the shift the newest input lies one before the last place.
#pragma unroll
    for (u32 i = 0; i < KERNEL_MAX - 1; i++)
        if (i >= unused) state[(u64)(i - unused) * channels] = past[i];
}
