// Types and instructions of the attention kernels. The only file here with `asm` of its own: with these
// functions in plain C++ the kernels run on a CPU.
#pragma once
#include <order.cuh>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Dynamic shared memory of a block.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) u8 name[]

// An address in shared memory, as instructions want it.
__device__ inline u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

// Starts to copy 16 bytes to shared memory; where not `valid`, zeros instead.
__device__ inline void copy_16(u32 to, const void *from, bool valid) {
    u32 bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}
__device__ inline void copy_4(u32 to, const void *from, bool valid) {
    u32 bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}
// The same for what is read once: it leaves the second-level cache first.
__device__ inline void copy_16_once(u32 to, const void *from, bool valid, u64 policy) {
    u32 bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
                 "r"(bytes), "l"(policy)
                 : "memory");
}
__device__ inline u64 read_once() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
// Ends a group of copies.
__device__ inline void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the last N groups of this thread are under way.
template <u32 N> __device__ inline void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8 by 8 matrices of 16 bits; lane i says where row i % 8 of matrix i / 8 lies. In each, lane i
// gets columns 2 (i % 4) and the next of row i / 4.
__device__ inline void matrices(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}
// The same, each transposed.
__device__ inline void matrices_transposed(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

// c += a · b of a warp: a is 16 rows by 16, b is 16 by 8 columns, c is 16 by 8. With g = lane / 4
// and t = lane % 4, pairs of neighbours lie in one register, the lower one first:
//   a[0] = row g, 2t    a[1] = row g + 8, 2t    a[2] = row g, 2t + 8    a[3] = row g + 8, 2t + 8
//   b0 = rows 2t of column g                    b1 = rows 2t + 8 of column g
//   c[0], c[1] = row g, columns 2t, 2t + 1      c[2], c[3] = row g + 8
// Not volatile: the compiler may move it among the exponentials.
__device__ inline void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2^x; 0 for −∞.
__device__ inline float exp_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two floats as BF16, `low` in the lower half.
__device__ inline u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// Two F8E4M3 in the low half of a word, times `scale`, as BF16.
__device__ inline u32 pack_f8(u32 two, float scale) {
#if __CUDA_ARCH__ >= 890
    float low, high;
    asm("{\n.reg .b32 halves;\n.reg .b16 a, b;\n"
        "cvt.rn.f16x2.e4m3x2 halves, %2;\nmov.b32 {a, b}, halves;\n"
        "cvt.f32.f16 %0, a;\ncvt.f32.f16 %1, b;\n}"
        : "=f"(low), "=f"(high)
        : "h"((u16)two));
    return pack(low * scale, high * scale);
#else
    // Exponent and mantissa where f32 has them; the biases are 120 apart. NaN becomes 480.
    float unit = __uint_as_float((120 + 127u) << 23);
    float low = __uint_as_float((two & 0x7f) << 20 | (two & 0x80) << 24) * unit;
    float high = __uint_as_float((two & 0x7f00) << 12 | (two & 0x8000) << 16) * unit;
    return pack(low * scale, high * scale);
#endif
}

// What other blocks of this launch have written: not from the cache of this multiprocessor.
__device__ inline float2 fresh_2(const float *at) {
    float2 x;
    asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(at) : "memory");
    return x;
}
__device__ inline float4 fresh_4(const float *at) {
    float4 x;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "l"(at)
                 : "memory");
    return x;
}
