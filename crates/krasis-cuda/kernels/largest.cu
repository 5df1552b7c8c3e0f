// The largest of each row of logits, and the sum of all weights: pieces of a row first, each by a
// block, then what was found in them. A warp holds the best so far in order, two to a lane.
#include <types.cuh>

#define FOUND 64
// Columns of a block; warps of both kernels.
#define PIECE 2048
#define WARPS 8

// Numbers and their columns in one word that is larger for whoever comes first. 0 is nobody.
__device__ inline u64 key_of(const act *x, u32 col, u32 cols) {
    if (col >= cols) return 0;
    float number = value(x[col]) + 0.0f;
    u32 bits = number == number ? __float_as_uint(number) : 0xff800000u;
    return (u64)(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 32 | (u32)~col;
}
__device__ inline float number_of(u64 key) {
    u32 bits = (u32)(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// Places `lane` and `lane + 32` of a warp's list.
struct List {
    u64 low, high;
};

__device__ inline u64 exchange(u64 mine, u32 step, bool larger) {
    u64 other = __shfl_xor_sync(~0u, mine, step);
    return (mine > other) == larger ? mine : other;
}

// Bitonic merge (Batcher, 1968) of runs of `size`; where place & size is 0 they descend then.
__device__ inline void merge_runs(List &x, u32 size) {
    bool low_descends = size >= 32 || !(lane() & size);
    bool high_descends = size == 32 ? false : low_descends;
    u32 step = size / 2;
    if (step == 32) {
        if (x.high > x.low) {
            u64 low = x.low;
            x.low = x.high, x.high = low;
        }
        step = 16;
    }
    for (; step > 0; step /= 2) {
        bool first = !(lane() & step);
        x.low = exchange(x.low, step, first == low_descends);
        x.high = exchange(x.high, step, first == high_descends);
    }
}
__device__ inline void sort(List &x) {
    for (u32 size = 2; size <= FOUND; size *= 2) merge_runs(x, size);
}
// The best of two lists in order: of one and the other backwards, the larger of each place.
__device__ inline void join(List &x, const List &y) {
    u64 low = __shfl_sync(~0u, y.high, 31 - lane()), high = __shfl_sync(~0u, y.low, 31 - lane());
    x.low = max(x.low, low);
    x.high = max(x.high, high);
    merge_runs(x, FOUND);
}

// The best of all warps' lists, in `lists[0]` for every thread and in the first warp's `x`.
__device__ inline void join_warps(List &x, u64 (*lists)[FOUND]) {
    lists[warp()][lane()] = x.low;
    lists[warp()][lane() + 32] = x.high;
    __syncthreads();
    for (u32 left = WARPS / 2; left > 0; left /= 2) {
        if (warp() < left) {
            join(x, List{lists[warp() + left][lane()], lists[warp() + left][lane() + 32]});
            lists[warp()][lane()] = x.low;
            lists[warp()][lane() + 32] = x.high;
        }
        __syncthreads();
    }
}

// exp(scale · (x - top)), of what is no number and where there is no top nothing.
__device__ inline float weight_of(float x, float top, float scale) {
    const float lowest = -__uint_as_float(0x7f800000u);
    return x > lowest && scale != 0.0f ? expf(scale * (x - top)) : 0.0f;
}

// Grid [pieces, rows]. `keys` [rows, pieces, FOUND]; `sums` [rows, pieces, 2]: largest, and the sum of
// weights relative to it.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    largest_pieces(const act *x, u32 stride, u32 cols, const float *scales, u64 *keys, float *sums) {
    let_later_start();
    wait_for_earlier();
    __shared__ u64 lists[WARPS][FOUND];
    u32 row = blockIdx.y, first = blockIdx.x * PIECE;
    u64 piece = (u64)row * gridDim.x + blockIdx.x;
    x += (u64)row * stride;
    List best{0, 0};
    u32 own = first + warp() * (PIECE / WARPS);
    for (u32 col = own + lane(); col - lane() < own + PIECE / WARPS; col += FOUND) {
        List next{key_of(x, col, cols), key_of(x, col + 32, cols)};
        u64 least = __shfl_sync(~0u, best.high, 31);
        if (!__any_sync(~0u, next.low > least || next.high > least)) continue;
        sort(next);
        join(best, next);
    }
    join_warps(best, lists);
    float top = number_of(lists[0][0]), scale = scales[row], sum = 0.0f;
    for (u32 i = threadIdx.x; i < PIECE && first + i < cols; i += WARPS * 32)
        sum += weight_of(value(x[first + i]), top, scale);
    sum = block_sum(sum);
    if (warp() == 0) {
        keys[piece * FOUND + lane()] = best.low;
        keys[piece * FOUND + lane() + 32] = best.high;
    }
    if (threadIdx.x == 0) {
        sums[2 * piece] = top;
        sums[2 * piece + 1] = sum;
    }
}

// Grid [rows]. `out` is `found` numbers, their columns, and the sum.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    largest_merge(const u64 *keys, const float *sums, u32 pieces, const float *scales, u32 found,
                  float *out, u32 out_stride) {
    let_later_start();
    wait_for_earlier();
    __shared__ u64 lists[WARPS][FOUND];
    u32 row = blockIdx.x;
    keys += (u64)row * pieces * FOUND;
    sums += (u64)row * pieces * 2;
    out += (u64)row * out_stride;
    List best{0, 0};
    for (u32 piece = warp(); piece < pieces; piece += WARPS) {
        List next{keys[piece * FOUND + lane()], keys[piece * FOUND + lane() + 32]};
        u64 least = __shfl_sync(~0u, best.high, 31);
        if (!__any_sync(~0u, next.low > least)) continue;
        join(best, next);
    }
    join_warps(best, lists);
    float top = number_of(lists[0][0]), scale = scales[row], sum = 0.0f;
    for (u32 piece = threadIdx.x; piece < pieces; piece += WARPS * 32)
        sum += sums[2 * piece + 1] * weight_of(sums[2 * piece], top, scale);
    sum = block_sum(sum);
    for (u32 i = threadIdx.x; i < found; i += WARPS * 32) {
        out[i] = number_of(lists[0][i]);
        out[found + i] = (float)~(u32)lists[0][i];
    }
    if (threadIdx.x == 0) out[2 * found] = sum;
}
