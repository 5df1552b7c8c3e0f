// What C++ cannot say: copies into shared memory, matrix fragments, products on tensor cores.
// tests/emulated/moe has the same functions in plain C++.
#pragma once

// Dynamic shared memory of a block, from where stages lie at multiples of their swizzle.
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(1024) type name[]

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Two BF16 numbers, the first in the low half.
typedef u32 bf16x2;

__device__ __forceinline__ u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

// A thread's number in its block: asked for once, as it takes long.
__device__ __forceinline__ u32 thread_number() {
    u32 thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// If `wanted`, 16 bytes from global to shared memory, those beyond `bytes` as zeros. L1 is left out.
__device__ __forceinline__ void copy_16(u32 to, const void *from, u32 bytes, bool wanted) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2; }" ::
                     "r"(to), "l"(from), "r"(bytes), "r"((u32)wanted)
                 : "memory");
}

// Copies since the last call become one group.
__device__ __forceinline__ void copies_together() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `PENDING` groups of this thread are under way.
template <int PENDING> __device__ __forceinline__ void copies_arrived() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// A barrier in shared memory for `warps` warps, each of which tells, and awaits the others later.
__device__ __forceinline__ void expect(u32 barrier, u32 warps) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(warps) : "memory");
}

__device__ __forceinline__ void tell(u32 barrier) {
    __syncwarp();
    asm volatile("{ .reg .pred p; .reg .b64 state; .reg .u32 lane; mov.u32 lane, %%laneid; setp.eq.u32 p, lane, 0;\n"
                 "@p mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier)
                 : "memory");
}

// Phases are 0 and 1 in turn.
__device__ __forceinline__ void await(u32 barrier, u32 phase) {
    u32 complete;
    do {
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(complete)
                     : "r"(barrier), "r"(phase)
                     : "memory");
    } while (!complete);
}

__device__ __forceinline__ uint4 shared_16(u32 at) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(at)
                 : "memory");
    return x;
}

__device__ __forceinline__ uint2 shared_8(u32 at) {
    uint2 x;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at) : "memory");
    return x;
}

__device__ __forceinline__ u16 shared_2(u32 at) {
    u16 x;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(at) : "memory");
    return x;
}

__device__ __forceinline__ void store_shared_8(u32 at, u32 first, u32 second) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(first), "r"(second) : "memory");
}

// Four matrices of 8 by 8 BF16; lane i names row i % 8 of matrix i / 8, 16 bytes.
__device__ __forceinline__ void load_matrices(u32 (&a)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(at)
                 : "memory");
}

// c += a · b: a is 16 rows by 16, b 16 by 8 columns. With g = lane / 4 and t = lane % 4:
//   a[0] = row g, 2t    a[1] = row g + 8, 2t    a[2] = row g, 2t + 8    a[3] = row g + 8, 2t + 8
//   b0 = rows 2t, 2t + 1 of column g    b1 = rows 2t + 8, 2t + 9
//   c[0], c[1] = row g, columns 2t, 2t + 1    c[2], c[3] = row g + 8
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], bf16x2 b0, bf16x2 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// x · y + z of two pairs, rounded once; subnormal numbers count.
__device__ __forceinline__ bf16x2 fma_pair(bf16x2 x, bf16x2 y, bf16x2 z) {
    bf16x2 sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(x), "r"(y), "r"(z));
    return sum;
}

// Two numbers rounded to nearest, the first low.
__device__ __forceinline__ bf16x2 rounded_pair(float first, float second) {
    bf16x2 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// x · sigmoid(x).
__device__ __forceinline__ float silu(float x) {
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return x * inverse;
}
