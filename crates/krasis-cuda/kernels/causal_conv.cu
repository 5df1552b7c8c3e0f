// Depthwise causal convolution along each sequence, then SiLU. A thread has one channel of up to 64
// rows of a sequence, and reads those before them: grid [channels / 128, tiles of all sequences]. A
// sequence's first tile reads its state and, as nobody else does, writes it, too.
#include <weights.cuh>

#define KERNEL_MAX 8
#define TILE 64
// Rows whose inputs are on their way together.
#define TOGETHER 8

extern "C" __global__ void __launch_bounds__(128)
    causal_conv(const act *x, u32 stride, const u8 *data, const bf16 *scales, u32 kernel, u32 group, float *state,
                u32 each, const u32 *first_row, const u32 *positions, const u32 *places, u32 count, act *out,
                u32 out_stride, u32 channels) {
    let_later_start();
    wait_for_earlier();
    u32 channel = blockIdx.x * blockDim.x + threadIdx.x, seq = 0;
    // Sequence s has tiles from first_row[s] / TILE + s on; this is in the last one that begins here.
    for (u32 behind = count; behind - seq > 1;) {
        u32 middle = (seq + behind) / 2;
        if (first_row[middle] / TILE + middle <= blockIdx.y) {
            seq = middle;
        } else {
            behind = middle;
        }
    }
    u32 first = first_row[seq], end = first_row[seq + 1], unused = KERNEL_MAX - kernel;
    u32 row = first + (blockIdx.y - first / TILE - seq) * TILE;
    if (channel >= channels || row >= end) return;
    x += channel, out += channel, state += (u64)places[seq] * each + channel;
    Weight w{data, scales, kernel, group};
    // The newest input and tap come last, whatever the kernel's size; unused taps are zero.
    float taps[KERNEL_MAX], inputs[KERNEL_MAX - 1 + TOGETHER], newest[KERNEL_MAX - 1];
    float unit[8];
    load_unit(w, channel, 0, 0, unit);
    bool fresh = positions[first] == 0;
    // What came `back` rows before row `at` of the sequence: of this step, or before.
    auto earlier = [&](u32 at, u32 back) {
        if (back >= kernel) return 0.0f;
        if (at >= first + back) return value(x[(u64)(at - back) * stride]);
        return fresh ? 0.0f : state[(u64)(at - first + kernel - 1 - back) * channels];
    };
#pragma unroll
    for (u32 i = 0; i < KERNEL_MAX; i++) {
        taps[i] = 0.0f;
#pragma unroll
        for (u32 j = 0; j < KERNEL_MAX; j++)
            if (i == j + unused) taps[i] = unit[j];
    }
#pragma unroll
    for (u32 i = 0; i < KERNEL_MAX - 1; i++) inputs[i] = earlier(row, KERNEL_MAX - 1 - i);
    if (row == first) {
#pragma unroll
        for (u32 i = 0; i < KERNEL_MAX - 1; i++) newest[i] = earlier(end, KERNEL_MAX - 1 - i);
#pragma unroll
        for (u32 i = 0; i < KERNEL_MAX - 1; i++)
            if (i >= unused) state[(u64)(i - unused) * channels] = newest[i];
    }
    for (end = min(end, row + TILE); row < end; row += TOGETHER) {
#pragma unroll
        for (u32 i = 0; i < TOGETHER; i++)
            inputs[KERNEL_MAX - 1 + i] = row + i < end ? value(x[(u64)(row + i) * stride]) : 0.0f;
#pragma unroll
        for (u32 i = 0; i < TOGETHER; i++) {
            float sum = 0.0f;
#pragma unroll
            for (u32 j = 0; j < KERNEL_MAX; j++) sum += taps[j] * inputs[i + j];
            if (row + i < end) out[(u64)(row + i) * out_stride] = rounded<act>(silu(sum));
        }
#pragma unroll
        for (u32 i = 0; i < KERNEL_MAX - 1; i++) inputs[i] = inputs[i + TOGETHER];
    }
}
