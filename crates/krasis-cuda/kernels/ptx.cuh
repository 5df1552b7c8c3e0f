// What C++ cannot say: the instructions of the GPU, but for those of order.cuh and moe/mma.cuh;
// tests/emulated has the same functions in plain C++, so that kernels can be run and compared
// without a GPU.
#pragma once

// Dynamic shared memory of a block.
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

// Nearest BF16, ties to even.
__device__ inline unsigned short bf16_bits(float x) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

__device__ inline float f16_value(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

// c += a · b of a warp: a is 16 rows by 16, b is 16 by 8 columns, c is 16 by 8. With g = lane / 4
// and t = lane % 4, pairs of neighbours lie in one register, the lower one first:
//   a[0] = row g, 2t    a[1] = row g + 8, 2t    a[2] = row g, 2t + 8    a[3] = row g + 8, 2t + 8
//   b[0] = rows 2t of column g                  b[1] = rows 2t + 8 of column g
//   c[0], c[1] = row g, columns 2t, 2t + 1      c[2], c[3] = row g + 8
__device__ inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
