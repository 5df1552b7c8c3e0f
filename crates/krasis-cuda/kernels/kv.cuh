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
