// Element types without toolkit headers, and what several kernels compute with them.
//
// ACT is the type of activations: bf16, or float for runs that must be exact. Sums are f32 always.
#pragma once
#include <order.cuh>
#include <ptx.cuh>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
    u16 bits;
};

__device__ inline float value(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ inline float value(float x) { return x; }

template <class T> __device__ inline T rounded(float x);
template <> __device__ inline bf16 rounded<bf16>(float x) { return bf16{bf16_bits(x)}; }
template <> __device__ inline float rounded<float>(float x) { return x; }

#ifndef ACT
#define ACT bf16
#endif
typedef ACT act;

// F8E4M3 of krasis-core, bit for bit.
__device__ inline float f8_value(u8 bits) {
    if ((bits & 0x7f) == 0x7f) return __uint_as_float(0x7fc00000u);
    // Exponent and mantissa where f32 has them; the biases are 120 apart.
    float magnitude = __uint_as_float((u32)(bits & 0x7f) << 20) * __uint_as_float((120 + 127u) << 23);
    return bits & 0x80 ? -magnitude : magnitude;
}

__device__ inline u8 f8_bits(float x) {
    if (x != x) return 0x7f;
    u8 sign = (__float_as_uint(x) >> 24) & 0x80;
    float magnitude = fminf(fabsf(x), 448.0f);
    int exponent = max((int)(__float_as_uint(magnitude) >> 23) - 127, -6);
    u32 steps = (u32)rintf(magnitude * __uint_as_float((u32)(3 - exponent + 127) << 23));
    return sign | (u8)((u32)(exponent + 6) * 8 + steps);
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float silu(float x) { return x * sigmoid(x); }

__device__ inline u32 lane() { return threadIdx.x % 32; }
__device__ inline u32 warp() { return threadIdx.x / 32; }

__device__ inline float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

// The sum over a block of whole warps, in every thread. Callers use the same 32 floats again only
// through this function, whose first barrier ends the last use.
__device__ inline float block_sum(float x) {
    __shared__ float parts[32];
    x = warp_sum(x);
    __syncthreads();
    if (lane() == 0) parts[warp()] = x;
    __syncthreads();
    float sum = 0.0f;
    for (u32 i = 0; i < blockDim.x / 32; i++) sum += parts[i];
    return sum;
}

// Eight neighbours that begin at a multiple of 16 bytes, in one access or two.
struct Eight {
    float x[8];
};
// The same as they lie in memory.
struct Stored {
    uint4 words[sizeof(act) / 2];
};
__device__ inline Stored load_stored(const act *from) {
    Stored to;
#pragma unroll
    for (u32 i = 0; i < sizeof(act) / 2; i++) to.words[i] = ((const uint4 *)from)[i];
    return to;
}
__device__ inline Eight eight_of(const Stored &from) {
    Eight to;
#pragma unroll
    for (u32 i = 0; i < sizeof(act) / 2; i++) {
        u32 words[4] = {from.words[i].x, from.words[i].y, from.words[i].z, from.words[i].w};
#pragma unroll
        for (u32 j = 0; j < 4; j++)
            if constexpr (sizeof(act) == 2) {
                to.x[2 * j] = __uint_as_float(words[j] << 16);
                to.x[2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
            } else {
                to.x[4 * i + j] = __uint_as_float(words[j]);
            }
    }
    return to;
}
__device__ inline Eight load_eight(const act *from) { return eight_of(load_stored(from)); }
__device__ inline void store_eight(act *to, const Eight &from) {
    __align__(16) act all[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) all[i] = rounded<act>(from.x[i]);
#pragma unroll
    for (u32 i = 0; i < sizeof(all) / 16; i++) ((uint4 *)to)[i] = ((const uint4 *)all)[i];
}
