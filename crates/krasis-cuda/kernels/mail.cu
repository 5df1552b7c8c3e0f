// Small copies between the arena and pinned host memory, which the GPU reads and writes by itself: no
// copy engine, which may have hundreds of megabytes to do first, and no call of the driver to wait in.
#include <absent.cuh>
#include <types.cuh>

// to = from, which is host memory: 16 bytes a thread. `words` are of four bytes, and both ends lie at
// multiples of 16.
extern "C" __global__ void __launch_bounds__(256) from_host(u32 *to, const u32 *from, u32 words) {
    u32 first = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (first + 4 <= words) {
        *(uint4 *)(to + first) = *(const uint4 *)(from + first);
    } else {
        for (u32 i = first; i < words; i++) to[i] = from[i];
    }
}

// The same from the arena to host memory, of two ranges that come to lie one behind the other; `sign`
// says `number` once all of it is there. One block.
extern "C" __global__ void __launch_bounds__(1024)
    to_host(const u32 *first, u32 words, const u32 *second, u32 more, u32 *to, u32 *sign, u32 number) {
    wait_for_earlier();
    for (u32 i = threadIdx.x; i < words; i += blockDim.x) to[i] = first[i];
    for (u32 i = threadIdx.x; i < more; i += blockDim.x) to[words + i] = second[i];
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) *(volatile u32 *)sign = number;
}

// Rows of `out` whose place is absent, from host memory: what somebody else was asked for in `to_host`.
// Each waits for the sign that all are there. A block per row of `pieces` times 16 bytes.
extern "C" __global__ void __launch_bounds__(256)
    take_answers(uint4 *out, u32 stride, const uint4 *from, u32 pieces, const u32 *places, const u32 *sign) {
    let_later_start();
    wait_for_earlier();
    if (places[blockIdx.x] != ABSENT) return;
    if (threadIdx.x == 0)
        while (*(const volatile u32 *)sign == 0) {}
    __syncthreads();
    __threadfence_system();
    for (u32 i = threadIdx.x; i < pieces; i += blockDim.x)
        out[(u64)blockIdx.x * stride + i] = from[(u64)blockIdx.x * pieces + i];
}
