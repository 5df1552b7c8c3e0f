// Eight neighbouring columns of a row, which a thread has in registers.
#pragma once
#include <types.cuh>

// Weights of a thread's columns; nobody writes them.
__device__ inline Eight weights_of(const float *w, u32 col, u32 cols) {
    Eight of = {};
    if (col >= cols) return of;
#pragma unroll
    for (u32 i = 0; i < 8; i++) of.x[i] = w[col + i];
    return of;
}

__device__ inline Eight rounded_eight(Eight x) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) x.x[i] = value(rounded<act>(x.x[i]));
    return x;
}

__device__ inline Eight sum_of(Eight x, const Eight &add) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) x.x[i] += add.x[i];
    return x;
}
