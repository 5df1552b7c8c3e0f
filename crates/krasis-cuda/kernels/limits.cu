// What memory and tensor cores do at most, for benches that state speeds as parts of it.
#include <types.cuh>

// Reads `pieces` of 16 bytes, eight in flight for each thread; `to` is written so that they are.
extern "C" __global__ void __launch_bounds__(512) read_all(const uint4 *from, u32 pieces, u32 *to) {
    u32 all = gridDim.x * blockDim.x, sum = 0;
    for (u64 at = blockIdx.x * blockDim.x + threadIdx.x; at < pieces; at += 8 * (u64)all) {
        uint4 x[8];
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = at + i * (u64)all < pieces ? from[at + i * (u64)all] : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (u32 i = 0; i < 8; i++) sum += x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
    }
    to[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Multiplies in registers, eight products of a warp that do not wait for each other; `to` is written so
// that they are made.
extern "C" __global__ void __launch_bounds__(256) multiply_all(u32 rounds, float *to) {
    float sums[8][4] = {};
    u32 a[4] = {threadIdx.x, 0x3f803f80u, threadIdx.x, 0x3f803f80u}, b[2] = {threadIdx.x, 0x3f803f80u};
    for (u32 round = 0; round < rounds; round++)
#pragma unroll
        for (u32 i = 0; i < 8; i++) mma_bf16(sums[i], a, b);
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
    to[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
