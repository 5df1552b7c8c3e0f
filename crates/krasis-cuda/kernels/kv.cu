// Stores each row's heads at its token's position. One warp per row and head, four to a block.
#include <kv.cuh>

extern "C" __global__ void kv_append(const act *x, u32 stride, kv *data, float *scales, u32 heads,
                                     u32 dim, u32 page, const u32 *row_seq, const u32 *positions,
                                     const u32 *pages, u32 pages_max, u32 rows) {
    u32 task = blockIdx.x * 4 + warp();
    if (task >= rows * heads) return;
    u32 row = task / heads, head = task % heads;
    x += (u64)row * stride + head * dim;
    u64 token = token_at(pages + (u64)row_seq[row] * pages_max, page, positions[row]);
    u64 at = token * heads + head;
    data += at * dim;
#if KV_DTYPE == KV_F8
    // NaN stays out of `largest` but reaches the store, as on the host.
    float largest = 0.0f;
    for (u32 i = lane(); i < dim; i += 32) largest = fmaxf(largest, fabsf(value(x[i])));
    largest = warp_max(largest);
    float scale = largest > 0.0f ? largest / 448.0f : 1.0f;
    if (lane() == 0) scales[at] = scale;
    for (u32 i = lane(); i < dim; i += 32) data[i] = f8_bits(value(x[i]) / scale);
#else
    for (u32 i = lane(); i < dim; i += 32) data[i] = rounded<kv>(value(x[i]));
#endif
}
