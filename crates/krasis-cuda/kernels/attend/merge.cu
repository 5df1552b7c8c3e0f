// Brings the splits of attention together. VALUE_DIM is the elements of a head's output.
#include <attend/tile.cuh>

// Grid [rows · heads / 4, rounded up], block [128]: a warp for each row and head.
extern "C" __global__ void __launch_bounds__(128)
    attend_merge(float *sums, float *totals, u32 splits, u32 rows, u32 heads, u16 *out, u32 out_stride) {
    u32 at = blockIdx.x * 4 + threadIdx.x / 32;
    if (at >= rows * heads) return;
    merge<VALUE_DIM>(Partial{sums, totals}, splits, rows * heads, at,
               out + (u64)(at / heads) * out_stride + at % heads * VALUE_DIM);
}
