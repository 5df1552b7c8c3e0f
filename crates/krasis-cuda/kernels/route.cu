// Routing: scores, the best groups, the best experts in order, their weights. One warp per token;
// lane `l` looks after experts l, l + 32, … so that up to 1024 fit a mask of 32 bits.
#include <arrive.cuh>
#include <eights.cuh>

#define WARPS 4

// A number in a word that is larger for larger ones: 0 is below all.
__device__ inline u32 rank_of(float x) {
    u32 bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// How experts are chosen, see Routing; flags are 0 or 1, and `groups` is 0 for no limit.
struct Routing {
    const float *bias;
    u32 experts, softmax, groups, kept, two_largest, top_k, renormalise;
};

// One token by one warp; `logit(e)` is what the router says of expert `e`, and `score` has room for two
// numbers of each. Choices, of which there are up to 32, are kept by a lane each.
template <class Logit>
__device__ inline void choose(const Routing &how, Logit logit, float *score, u32 *chosen, float *weights) {
    const float lowest = -__uint_as_float(0x7f800000u);
    u32 experts = how.experts;
    float *choice = score + experts, largest = lowest, total = 0.0f;
    for (u32 e = lane(); e < experts; e += 32) {
        score[e] = logit(e);
        largest = fmaxf(largest, score[e]);
    }
    largest = warp_max(largest);
    for (u32 e = lane(); e < experts; e += 32) {
        score[e] = how.softmax ? expf(score[e] - largest) : sigmoid(score[e]);
        total += score[e];
    }
    total = warp_sum(total);
    for (u32 e = lane(); e < experts; e += 32) {
        if (how.softmax) score[e] /= total;
        choice[e] = score[e] + (how.bias ? how.bias[e] : 0.0f);
    }
    __syncwarp();
    if (how.groups) {
        // Lane `g` judges group `g`; groups are ranked by value, equals by index.
        u32 size = experts / how.groups, rank = 0;
        float first = lowest, second = first;
        for (u32 i = 0; lane() < how.groups && i < size; i++) {
            float x = choice[lane() * size + i];
            if (x > first) second = first, first = x;
            else if (x > second) second = x;
        }
        float judged = how.two_largest && size > 1 ? first + second : first;
        for (u32 g = 0; g < how.groups; g++) {
            float other = __shfl_sync(~0u, judged, g);
            if (other > judged || (other == judged && g < lane())) rank++;
        }
        for (u32 i = 0; lane() < how.groups && rank >= how.kept && i < size; i++)
            choice[lane() * size + i] = lowest;
        __syncwarp();
    }
    u32 taken = 0, own_index = 0;
    float sum = 0.0f, own_score = 0.0f;
    for (u32 k = 0; k < how.top_k; k++) {
        u32 best = 0, index = ~0u;
        for (u32 e = lane(), i = 0; e < experts; e += 32, i++) {
            u32 rank = taken >> i & 1 ? 0 : rank_of(choice[e]);
            if (!(taken >> i & 1) && (index == ~0u || rank > best)) best = rank, index = e;
        }
        // The largest of all lanes, among equals the lowest index.
        u32 most = __reduce_max_sync(~0u, best);
        index = __reduce_min_sync(~0u, best == most ? index : ~0u);
        if (index % 32 == lane()) taken |= 1u << (index / 32);
        sum += score[index];
        if (lane() == k) own_index = index, own_score = score[index];
    }
    if (lane() >= how.top_k) return;
    chosen[lane()] = own_index;
    weights[lane()] = how.renormalise ? own_score / (sum + 1e-20f) : own_score;
}

// Dynamic shared memory: scores and choices [WARPS][2][experts].
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    route(const act *logits, u32 stride, const float *bias, u32 experts, u32 softmax, u32 groups, u32 kept,
          u32 two_largest, u32 top_k, u32 renormalise, u32 *chosen, float *weights, u32 rows) {
    DYNAMIC_SHARED(float, shared);
    let_later_start();
    wait_for_earlier();
    u32 row = blockIdx.x * WARPS + warp();
    if (row >= rows) return;
    logits += (u64)row * stride;
    Routing how{bias, experts, softmax, groups, kept, two_largest, top_k, renormalise};
    choose(how, [&](u32 e) { return value(logits[e]); }, shared + warp() * 2 * experts,
           chosen + (u64)row * top_k, weights + (u64)row * top_k);
}

// Past the cache of this multiprocessor.
__device__ inline bf16 read_past(const volatile bf16 *at) { return bf16{at->bits}; }
__device__ inline float read_past(const volatile float *at) { return *at; }

// Experts of a block of `router`; eights of a row that a lane has under way, and columns of a warp's.
#define TOGETHER 8
#define EIGHTS 8
#define COLS (EIGHTS * 32 * 8)

__device__ inline u32 word_of(const uint4 &x, u32 i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }

// What a block of router multiplies and chooses; `w` is BF16 in rows, and rows begin at 16 bytes.
struct Router {
    const bf16 *w;
    u32 cols;
    act *logits;
    u32 stride;
    Routing how;
    u32 *chosen;
    float *weights;
    u32 rows, *arrivals;
};

// Logits of WARPS rows by a warp for each expert, and the choice by the last block to arrive: grid
// [experts / TOGETHER, rows / WARPS]. Weights are on their way before the rows are there, which is so
// behind `before`; then `input(row, column)` has eight of their columns. The last block does `last` too.
template <class Before, class Input, class Last>
__device__ inline void route_rows(const Router &of, float *shared, Before before, Input input, Last last) {
    u32 experts = of.how.experts, cols = of.cols;
    u32 expert = blockIdx.x * TOGETHER + warp(), first = blockIdx.y * WARPS, count = min(of.rows - first, (u32)WARPS);
    const bf16 *own = of.w + (u64)min(expert, experts - 1) * cols;
    uint4 parts[EIGHTS];
    auto load = [&](u32 start) {
#pragma unroll
        for (u32 i = 0; i < EIGHTS; i++) {
            u32 col = start + (i * 32 + lane()) * 8;
            parts[i] = col < cols ? *(const uint4 *)(own + col) : make_uint4(0, 0, 0, 0);
        }
    };
    load(0);
    before();
    float sums[WARPS] = {};
    for (u32 start = 0; start < cols; start += COLS) {
        if (start > 0) load(start);
#pragma unroll
        for (u32 r = 0; r < WARPS; r++) {
            if (r >= count) break;
            Eight inputs[EIGHTS];
#pragma unroll
            for (u32 i = 0; i < EIGHTS; i++) {
                u32 col = start + (i * 32 + lane()) * 8;
                inputs[i] = col < cols ? input(r, col) : Eight{};
            }
#pragma unroll
            for (u32 i = 0; i < EIGHTS; i++)
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    u32 pair = word_of(parts[i], j);
                    sums[r] += __uint_as_float(pair << 16) * inputs[i].x[2 * j];
                    sums[r] += __uint_as_float(pair & 0xffff0000u) * inputs[i].x[2 * j + 1];
                }
        }
    }
#pragma unroll
    for (u32 r = 0; r < WARPS; r++) {
        float sum = warp_sum(sums[r]);
        if (r < count && expert < experts && lane() == 0)
            of.logits[(u64)(first + r) * of.stride + expert] = rounded<act>(sum);
    }
    if (!last_to_arrive(of.arrivals + blockIdx.y, gridDim.x, shared)) return;
    __syncthreads();
    last();
    if (warp() >= count) return;
    u32 row = first + warp();
    const volatile act *fresh = of.logits + (u64)row * of.stride;
    choose(of.how, [&](u32 e) { return value(read_past(fresh + e)); }, shared + warp() * 2 * experts,
           of.chosen + (u64)row * of.how.top_k, of.weights + (u64)row * of.how.top_k);
}

// Dynamic shared memory as of `route`.
extern "C" __global__ void __launch_bounds__(TOGETHER * 32)
    router(const act *x, u32 x_stride, const bf16 *w, u32 cols, act *logits, u32 stride, const float *bias,
           u32 experts, u32 softmax, u32 groups, u32 kept, u32 two_largest, u32 top_k, u32 renormalise,
           u32 *chosen, float *weights, u32 rows, u32 *arrivals) {
    DYNAMIC_SHARED(float, shared);
    let_later_start();
    Routing how{bias, experts, softmax, groups, kept, two_largest, top_k, renormalise};
    x += (u64)blockIdx.y * WARPS * x_stride;
    route_rows(
        Router{w, cols, logits, stride, how, chosen, weights, rows, arrivals}, shared, [] { wait_for_earlier(); },
        [&](u32 r, u32 col) { return load_eight(x + (u64)r * x_stride + col); }, [] {});
}

__device__ inline Eight joined(const act *residual, const act *add) {
    return rounded_eight(sum_of(load_eight(residual), load_eight(add)));
}

// `add_rms_norm_eights`, and `router` of what it makes: every block norms its rows by itself, in the same
// order of additions, and the last one to arrive writes them, when nobody reads the residual any more.
// Dynamic shared memory as of `route`, then the squares of 256 columns each [WARPS][cols / 256], then the
// rows [WARPS][cols].
extern "C" __global__ void __launch_bounds__(TOGETHER * 32)
    norm_router(const act *add, u32 add_stride, act *residual, u32 residual_stride, const float *norm, float eps,
                act *out, u32 out_stride, const bf16 *w, u32 cols, act *logits, u32 stride, const float *bias,
                u32 experts, u32 softmax, u32 groups, u32 kept, u32 two_largest, u32 top_k, u32 renormalise,
                u32 *chosen, float *weights, u32 rows, u32 *arrivals) {
    DYNAMIC_SHARED(float, shared);
    let_later_start();
    u32 first = blockIdx.y * WARPS, count = min(rows - first, (u32)WARPS), pieces = (cols + 255) / 256;
    float *squares = shared + WARPS * 2 * experts;
    act *normed = (act *)(squares + (WARPS * pieces + 3) / 4 * 4);
    add += (u64)first * add_stride;
    residual += (u64)first * residual_stride;
    out += (u64)first * out_stride;
    auto make_rows = [&] {
        wait_for_earlier();
        for (u32 i = warp(); i < count * pieces; i += TOGETHER) {
            u32 r = i / pieces, col = i % pieces * 256 + lane() * 8;
            Eight x = {};
            if (col < cols) x = joined(residual + r * residual_stride + col, add + r * add_stride + col);
            float sum = 0.0f;
#pragma unroll
            for (u32 j = 0; j < 8; j++) sum += x.x[j] * x.x[j];
            sum = warp_sum(sum);
            if (lane() == 0) squares[i] = sum;
            if (col < cols) store_eight(normed + r * cols + col, x);
        }
        __syncthreads();
        for (u32 i = warp(); i < count * pieces; i += TOGETHER) {
            u32 r = i / pieces, col = i % pieces * 256 + lane() * 8;
            if (col >= cols) continue;
            float total = 0.0f;
            for (u32 piece = 0; piece < pieces; piece++) total += squares[r * pieces + piece];
            float scale = 1.0f / sqrtf(total / cols + eps);
            Eight x = load_eight(normed + r * cols + col), own = weights_of(norm, col, cols);
#pragma unroll
            for (u32 j = 0; j < 8; j++) x.x[j] = x.x[j] * scale * own.x[j];
            store_eight(normed + r * cols + col, x);
        }
        __syncthreads();
    };
    auto write_rows = [&] {
        for (u32 i = warp(); i < count * pieces; i += TOGETHER) {
            u32 r = i / pieces, col = i % pieces * 256 + lane() * 8;
            if (col >= cols) continue;
            act *to = residual + r * residual_stride + col;
            store_eight(to, joined(to, add + r * add_stride + col));
            store_eight(out + r * out_stride + col, load_eight(normed + r * cols + col));
        }
    };
    Routing how{bias, experts, softmax, groups, kept, two_largest, top_k, renormalise};
    route_rows(
        Router{w, cols, logits, stride, how, chosen, weights, rows, arrivals}, shared, make_rows,
        [&](u32 r, u32 col) { return load_eight(normed + r * cols + col); }, write_rows);
}
