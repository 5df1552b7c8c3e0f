// Brings the splits of attention together. VALUE_DIM is the elements of a head's output.
#include <attend/tile.cuh>

#define WARPS 16

// Grid [rows · heads, VALUE_DIM / 128 rounded up], block [512]: a block for 128 columns of a row's head.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    attend_merge(float *sums, float *totals, u32 splits, u32 rows, u32 heads, u16 *out, u32 out_stride) {
    __shared__ float4 parts[WARPS * 32];
    u32 at = blockIdx.x, column = blockIdx.y * 128;
    float total;
    let_later_start();
    wait_for_earlier();
    parts[threadIdx.x] = merge<VALUE_DIM, WARPS, 10>(Partial{sums, totals}, splits, rows * heads, at,
                                                    threadIdx.x / 32, column, total);
    __syncthreads();
    u32 col = column + threadIdx.x * 4;
    if (threadIdx.x >= 32 || col >= VALUE_DIM) return;
    float4 sum = parts[threadIdx.x];
#pragma unroll
    for (u32 w = 1; w < WARPS; w++) {
        float4 x = parts[w * 32 + threadIdx.x];
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    put_four(out + (u64)(at / heads) * out_stride + at % heads * VALUE_DIM + col, sum, 1.0f / total);
}
