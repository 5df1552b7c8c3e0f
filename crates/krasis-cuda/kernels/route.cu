// Routing: scores, the best groups, the best experts in order, their weights. One warp per token;
// lane `l` looks after experts l, l + 32, … up to 1024 in all.
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

// One token by one warp, whose lanes have up to PER experts each in registers; `logit(e)` is what the router
// says of expert `e`, and `score` has room for two numbers of each. Choices, of which there are up to 32, are
// kept by a lane each. All reads are on their way together.
template <u32 PER, class Logit>
__device__ inline void choose_of(const Routing &how, Logit logit, float *score, u32 *chosen, float *weights) {
    const float lowest = -__uint_as_float(0x7f800000u);
    u32 experts = how.experts;
    float *choice = score + experts, own[PER], bias[PER], largest = lowest, total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PER; i++) {
        u32 e = i * 32 + lane();
        own[i] = e < experts ? logit(e) : lowest;
        bias[i] = e < experts && how.bias ? how.bias[e] : 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < PER; i++) largest = fmaxf(largest, own[i]);
    largest = warp_max(largest);
#pragma unroll
    for (u32 i = 0; i < PER; i++) {
        own[i] = how.softmax ? expf(own[i] - largest) : sigmoid(own[i]);
        if (i * 32 + lane() < experts) total += own[i];
    }
    float by = 1.0f / warp_sum(total);
    u32 rank[PER];
#pragma unroll
    for (u32 i = 0; i < PER; i++) {
        u32 e = i * 32 + lane();
        if (how.softmax) own[i] *= by;
        rank[i] = e < experts ? rank_of(own[i] + bias[i]) : 0;
        if (e < experts) score[e] = own[i];
        if (e < experts && how.groups) choice[e] = own[i] + bias[i];
    }
    __syncwarp();
    if (how.groups) {
        // Lane `g` judges group `g`; groups are ranked by value, equals by index.
        u32 size = experts / how.groups, place = 0;
        float first = lowest, second = first;
        for (u32 i = 0; lane() < how.groups && i < size; i++) {
            float x = choice[lane() * size + i];
            if (x > first) second = first, first = x;
            else if (x > second) second = x;
        }
        float judged = how.two_largest && size > 1 ? first + second : first;
        for (u32 g = 0; g < how.groups; g++) {
            float other = __shfl_sync(~0u, judged, g);
            if (other > judged || (other == judged && g < lane())) place++;
        }
        for (u32 i = 0; lane() < how.groups && place >= how.kept && i < size; i++)
            choice[lane() * size + i] = lowest;
        __syncwarp();
#pragma unroll
        for (u32 i = 0; i < PER; i++)
            if (i * 32 + lane() < experts) rank[i] = rank_of(choice[i * 32 + lane()]);
    }
    u32 own_index = 0;
    for (u32 k = 0; k < how.top_k; k++) {
        // The largest of all lanes, among equals the lowest index; who is taken ranks below all.
        u32 best = 0, index = ~0u;
#pragma unroll
        for (u32 i = 0; i < PER; i++)
            if (rank[i] > best) best = rank[i], index = i * 32 + lane();
        u32 most = __reduce_max_sync(~0u, best);
        index = __reduce_min_sync(~0u, best == most ? index : ~0u);
#pragma unroll
        for (u32 i = 0; i < PER; i++)
            if (index == i * 32 + lane()) rank[i] = 0;
        if (lane() == k) own_index = index;
    }
    float own_score = lane() < how.top_k ? score[own_index] : 0.0f, sum = 0.0f;
    for (u32 k = 0; k < how.top_k; k++) sum += __shfl_sync(~0u, own_score, k);
    if (lane() >= how.top_k) return;
    chosen[lane()] = own_index;
    weights[lane()] = how.renormalise ? own_score / (sum + 1e-20f) : own_score;
}

// The same for up to 1024 experts.
template <class Logit>
__device__ inline void choose(const Routing &how, Logit logit, float *score, u32 *chosen, float *weights) {
    if (how.experts <= 128) choose_of<4>(how, logit, score, chosen, weights);
    else if (how.experts <= 512) choose_of<16>(how, logit, score, chosen, weights);
    else choose_of<32>(how, logit, score, chosen, weights);
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

// `choose` from what other blocks may have written just now, as one piece of code.
__device__ __noinline__ void choose_fresh(Routing how, const volatile act *logits, float *score, u32 *chosen,
                                          float *weights) {
    choose(how, [&](u32 e) { return value(read_past(logits + e)); }, score, chosen, weights);
}

// Experts of a block of `router`; eights of a row that a lane has under way, columns of a warp's, and
// eights that meet the weights at a time. Registers are for two blocks, so that one begins, and has its
// weights on their way, beside blocks of the kernel before.
#define TOGETHER 8
#define EIGHTS 8
#define COLS (EIGHTS * 32 * 8)
#define MEETING 2
#define ROUTERS 2

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
// behind `before`; then `input(row, column)` has eight of their columns. Warps of the last block that choose
// for no row do `last(which of them, how many)`.
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
    // All others wait for the block that chooses, and instructions come from as far as data. So every block goes
    // through them before there are rows to wait for, with any numbers that are there, and a result for nobody.
    __shared__ u32 nowhere[WARPS][2][32];
    if (warp() < count)
        choose_fresh(of.how, (const act *)of.w, shared + warp() * 2 * experts, nowhere[warp()][0],
                     (float *)nowhere[warp()][1]);
    before();
    float sums[WARPS] = {};
    for (u32 start = 0; start < cols; start += COLS) {
        if (start > 0) load(start);
#pragma unroll
        for (u32 r = 0; r < WARPS; r++) {
            if (r >= count) break;
#pragma unroll
            for (u32 first_eight = 0; first_eight < EIGHTS; first_eight += MEETING) {
                Eight inputs[MEETING];
#pragma unroll
                for (u32 i = 0; i < MEETING; i++) {
                    u32 col = start + ((first_eight + i) * 32 + lane()) * 8;
                    inputs[i] = col < cols ? input(r, col) : Eight{};
                }
#pragma unroll
                for (u32 i = 0; i < MEETING; i++)
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        u32 pair = word_of(parts[first_eight + i], j);
                        sums[r] += __uint_as_float(pair << 16) * inputs[i].x[2 * j];
                        sums[r] += __uint_as_float(pair & 0xffff0000u) * inputs[i].x[2 * j + 1];
                    }
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
    if (warp() >= count) return last(warp() - count, TOGETHER - count);
    u32 row = first + warp();
    const volatile act *fresh = of.logits + (u64)row * of.stride;
    choose_fresh(of.how, fresh, shared + warp() * 2 * experts, of.chosen + (u64)row * of.how.top_k,
                 of.weights + (u64)row * of.how.top_k);
}

// Dynamic shared memory as of `route`.
extern "C" __global__ void __launch_bounds__(TOGETHER * 32, ROUTERS)
    router(const act *x, u32 x_stride, const bf16 *w, u32 cols, act *logits, u32 stride, const float *bias,
           u32 experts, u32 softmax, u32 groups, u32 kept, u32 two_largest, u32 top_k, u32 renormalise,
           u32 *chosen, float *weights, u32 rows, u32 *arrivals) {
    DYNAMIC_SHARED(float, shared);
    let_later_start();
    Routing how{bias, experts, softmax, groups, kept, two_largest, top_k, renormalise};
    x += (u64)blockIdx.y * WARPS * x_stride;
    route_rows(
        Router{w, cols, logits, stride, how, chosen, weights, rows, arrivals}, shared, [] { wait_for_earlier(); },
        [&](u32 r, u32 col) { return load_eight(x + (u64)r * x_stride + col); }, [](u32, u32) {});
}

__device__ inline Eight joined(const act *residual, const act *add) {
    return rounded_eight(sum_of(load_eight(residual), load_eight(add)));
}

// `add_rms_norm_eights`, and `router` of what it makes: every block norms its rows by itself, in the same
// order of additions, and the last one to arrive writes them, when nobody reads the residual any more.
// Dynamic shared memory as of `route`, then the squares of 256 columns each [WARPS][cols / 256], then the
// rows [WARPS][cols].
extern "C" __global__ void __launch_bounds__(TOGETHER * 32, ROUTERS)
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
        // A warp's first piece, which for few rows is all of it.
        u32 own_piece = warp() % pieces;
        Eight first_own = weights_of(norm, own_piece * 256 + lane() * 8, cols);
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
            Eight x = load_eight(normed + r * cols + col);
            Eight own = i % pieces == own_piece ? first_own : weights_of(norm, col, cols);
#pragma unroll
            for (u32 j = 0; j < 8; j++) x.x[j] = x.x[j] * scale * own.x[j];
            store_eight(normed + r * cols + col, x);
        }
        __syncthreads();
    };
    auto write_rows = [&](u32 which, u32 warps) {
        for (u32 i = which; i < count * pieces; i += warps) {
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
