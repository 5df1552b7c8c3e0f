// Routing: scores, the best groups, the best experts in order, their weights. One warp per token;
// lane `l` looks after experts l, l + 32, … so that up to 1024 fit a mask of 32 bits.
#include <types.cuh>

#define WARPS 4

// The best of all lanes: the largest value, among equals the lowest index. ~0 is no index.
__device__ inline void best_of_warp(float &value, u32 &index) {
    for (int step = 16; step > 0; step /= 2) {
        float other = __shfl_xor_sync(~0u, value, step);
        u32 at = __shfl_xor_sync(~0u, index, step);
        bool better = index == ~0u || other > value || (other == value && at < index);
        if (at != ~0u && better) value = other, index = at;
    }
}

// Dynamic shared memory: scores and choices [WARPS][2][experts]. `softmax`, `two_largest` and
// `renormalise` are 0 or 1; `groups` is 0 for no limit.
extern "C" __global__ void route(const act *logits, u32 stride, const float *bias, u32 experts,
                                 u32 softmax, u32 groups, u32 kept, u32 two_largest, u32 top_k,
                                 u32 renormalise, u32 *chosen, float *weights, u32 rows) {
    let_later_start();
    wait_for_earlier();
    DYNAMIC_SHARED(float, shared);
    u32 row = blockIdx.x * WARPS + warp();
    if (row >= rows) return;
    float *score = shared + warp() * 2 * experts, *choice = score + experts;
    logits += (u64)row * stride;
    float largest = -__uint_as_float(0x7f800000u), total = 0.0f;
    for (u32 e = lane(); e < experts; e += 32) largest = fmaxf(largest, value(logits[e]));
    largest = warp_max(largest);
    for (u32 e = lane(); e < experts; e += 32) {
        score[e] = softmax ? expf(value(logits[e]) - largest) : sigmoid(value(logits[e]));
        total += score[e];
    }
    total = warp_sum(total);
    for (u32 e = lane(); e < experts; e += 32) {
        if (softmax) score[e] /= total;
        choice[e] = score[e] + (bias ? bias[e] : 0.0f);
    }
    __syncwarp();
    if (groups) {
        // Lane `g` judges group `g`; groups are ranked by value, equals by index.
        u32 size = experts / groups, rank = 0;
        float first = -__uint_as_float(0x7f800000u), second = first;
        for (u32 i = 0; lane() < groups && i < size; i++) {
            float x = choice[lane() * size + i];
            if (x > first) second = first, first = x;
            else if (x > second) second = x;
        }
        float judged = two_largest && size > 1 ? first + second : first;
        for (u32 g = 0; g < groups; g++) {
            float other = __shfl_sync(~0u, judged, g);
            if (other > judged || (other == judged && g < lane())) rank++;
        }
        for (u32 i = 0; lane() < groups && rank >= kept && i < size; i++)
            choice[lane() * size + i] = -__uint_as_float(0x7f800000u);
        __syncwarp();
    }
    u32 taken = 0;
    float sum = 0.0f;
    for (u32 k = 0; k < top_k; k++) {
        float best = 0.0f;
        u32 index = ~0u;
        for (u32 e = lane(), i = 0; e < experts; e += 32, i++)
            if (!(taken >> i & 1) && (index == ~0u || choice[e] > best)) best = choice[e], index = e;
        best_of_warp(best, index);
        if (index % 32 == lane()) taken |= 1u << (index / 32);
        sum += score[index];
        if (lane() == 0) {
            chosen[(u64)row * top_k + k] = index;
            weights[(u64)row * top_k + k] = score[index];
        }
    }
    // Lane 0 reads what it has written itself.
    for (u32 k = 0; lane() == 0 && renormalise && k < top_k; k++)
        weights[(u64)row * top_k + k] /= sum + 1e-20f;
}
