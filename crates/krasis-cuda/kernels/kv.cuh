// KV pages: [token, head, dim] of KV_DTYPE, tokens in pages, FP8 with a scale per token and head.
#pragma once
#include <types.cuh>

#define KV_F32 0
#define KV_BF16 1
#define KV_F8 2

#if KV_DTYPE == KV_F32
typedef float kv;
__device__ inline float kv_value(kv x) { return x; }
#elif KV_DTYPE == KV_BF16
typedef bf16 kv;
__device__ inline float kv_value(kv x) { return value(x); }
#else
typedef u8 kv;
__device__ inline float kv_value(kv x) { return f8_value(x); }
#endif

// A layer's keys or values.
struct Store {
    kv *data;
    float *scales;
    u32 heads;
    u32 dim;
};

// The scale of one head of one token: 1 where there are none.
__device__ inline float scale_at(const Store &s, u64 at) {
#if KV_DTYPE == KV_F8
    return s.scales[at];
#else
    return 1.0f;
#endif
}

// Where the token at `position` lies, given its sequence's page list.
__device__ inline u64 token_at(const u32 *pages, u32 page, u32 position) {
    return (u64)pages[position / page] * page + position % page;
}

// Writes one head of one token, by one warp; `x(i)` is its element `i`.
template <class Elements> __device__ inline void put_head(const Store &s, u64 at, Elements x) {
    kv *data = s.data + at * s.dim;
#if KV_DTYPE == KV_F8
    // NaN stays out of `largest` but reaches the store, as on the host.
    float largest = 0.0f;
    for (u32 i = lane(); i < s.dim; i += 32) largest = fmaxf(largest, fabsf(x(i)));
    largest = warp_max(largest);
    float scale = largest > 0.0f ? largest / 448.0f : 1.0f;
    if (lane() == 0) s.scales[at] = scale;
    for (u32 i = lane(); i < s.dim; i += 32) data[i] = f8_bits(x(i) / scale);
#else
    for (u32 i = lane(); i < s.dim; i += 32) data[i] = rounded<kv>(x(i));
#endif
}
