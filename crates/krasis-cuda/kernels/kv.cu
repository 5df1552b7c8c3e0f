// The way into the cache: rows as they are, or heads with their norms and rotation in one launch.
#include <kv.cuh>

// Stores each row's heads at its token's position. One warp per row and head, four to a block.
extern "C" __global__ void kv_append(const act *x, u32 stride, kv *data, float *scales, u32 heads,
                                     u32 dim, u32 page, const u32 *row_seq, const u32 *positions,
                                     const u32 *pages, u32 pages_max, u32 rows) {
    let_later_start();
    wait_for_earlier();
    u32 task = blockIdx.x * 4 + warp();
    if (task >= rows * heads) return;
    u32 row = task / heads, head = task % heads;
    x += (u64)row * stride + head * dim;
    u64 token = token_at(pages + (u64)row_seq[row] * pages_max, page, positions[row]);
    put_head(Store{data, scales, heads, dim}, token * heads + head, [&](u32 i) { return value(x[i]); });
}

// Warps of a block, one per head; elements of a head that is turned, and of half of it.
#define WARPS 8
#define DIM_MAX 256
#define HALF_MAX 128
// Elements of a lane.
#define OWN (DIM_MAX / 32)

// What pairs of a token turn by, and a head of each warp.
struct Workplace {
    float sine[HALF_MAX], cosine[HALF_MAX];
    float head[WARPS][DIM_MAX];
};

__device__ inline void find_turns(Workplace &at, u32 position, const float *freqs, u32 half, float scale) {
    for (u32 i = threadIdx.x; i < half; i += blockDim.x) {
        float sine, cosine;
        sincosf((float)position * freqs[i], &sine, &cosine);
        at.sine[i] = sine * scale;
        at.cosine[i] = cosine * scale;
    }
    __syncthreads();
}

// Elements `lane`, `lane` + 32, … of a head, all asked for at once.
struct Own {
    float x[OWN];
};
template <class Element> __device__ inline Own own_of(const Element *x, u32 dim) {
    Own own;
#pragma unroll
    for (u32 j = 0; j < OWN; j++) own.x[j] = x && lane() + 32 * j < dim ? value(x[lane() + 32 * j]) : 0.0f;
    return own;
}

// 1 / rms by one warp, in the order of `head_norm`, whose blocks have up to 256 threads.
__device__ inline float norm_scale(const act *x, u32 dim, float eps) {
    u32 threads = min((dim + 31) / 32 * 32, 256u);
    float squares = 0.0f;
    for (u32 first = 0; first < threads; first += 32) {
        float part = 0.0f;
        for (u32 i = first + lane(); i < dim; i += threads) part += value(x[i]) * value(x[i]);
        squares += warp_sum(part);
    }
    return 1.0f / sqrtf(squares / dim + eps);
}
// The same of a head that is here.
__device__ inline float norm_scale(const Own &own, u32 dim, float eps) {
    float squares = 0.0f;
#pragma unroll
    for (u32 j = 0; j < OWN; j++)
        if (32 * j < dim) squares += warp_sum(own.x[j] * own.x[j]);
    return 1.0f / sqrtf(squares / dim + eps);
}

// A head with its norm, if it is `normed`, and turned; rounded wherever the small operations round.
__device__ inline float *turned_head(Workplace &at, const Own &own, u32 dim, bool normed, const Own &norm,
                                     float eps, u32 half) {
    float *head = at.head[warp()];
    float scale = normed ? norm_scale(own, dim, eps) : 1.0f;
#pragma unroll
    for (u32 j = 0; j < OWN; j++)
        if (lane() + 32 * j < dim)
            head[lane() + 32 * j] = normed ? value(rounded<act>(own.x[j] * scale * norm.x[j])) : own.x[j];
    __syncwarp();
    for (u32 i = lane(); i < half; i += 32) {
        float a = head[i], b = head[i + half];
        head[i] = value(rounded<act>(a * at.cosine[i] - b * at.sine[i]));
        head[i + half] = value(rounded<act>(b * at.cosine[i] + a * at.sine[i]));
    }
    __syncwarp();
    return head;
}

// Before they wait, blocks read what no kernel writes: weights, and the lists of a step, which are
// copied to the device before its first kernel. Reads that need each other take a microsecond each.

// Queries in place, keys and values to their stores. Grid [rows, heads of all three / WARPS].
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    gqa_heads(act *q, const act *k, const act *v, u32 stride, u32 heads, u32 kv_heads, u32 dim,
              const float *q_norm, const float *k_norm, float eps, const float *freqs, u32 half,
              float scale, kv *k_data, float *k_scales, kv *v_data, float *v_scales, u32 page,
              const u32 *row_seq, const u32 *positions, const u32 *pages, u32 pages_max) {
    let_later_start();
    __shared__ Workplace at;
    u32 row = blockIdx.x, head = blockIdx.y * WARPS + warp(), position = positions[row];
    u64 token = token_at(pages + (u64)row_seq[row] * pages_max, page, position);
    const float *norm = head < heads ? q_norm : k_norm;
    Own weights = own_of(norm, dim);
    find_turns(at, position, freqs, half, scale);
    wait_for_earlier();
    if (head < heads) {
        q += (u64)row * stride + head * dim;
        const float *x = turned_head(at, own_of(q, dim), dim, norm, weights, eps, half);
        for (u32 i = lane(); i < dim; i += 32) q[i] = rounded<act>(x[i]);
        return;
    }
    head -= heads;
    if (head >= 2 * kv_heads) return;
    if (head < kv_heads) {
        k += (u64)row * stride + head * dim;
        const float *x = turned_head(at, own_of(k, dim), dim, norm, weights, eps, half);
        put_head(Store{k_data, k_scales, kv_heads, dim}, token * kv_heads + head, [&](u32 i) { return x[i]; });
    } else {
        head -= kv_heads;
        v += (u64)row * stride + head * dim;
        put_head(Store{v_data, v_scales, kv_heads, dim}, token * kv_heads + head,
                 [&](u32 i) { return value(v[i]); });
    }
}

// Rotated queries in place, latents and rotated keys to their stores. Grid [rows, (heads + 2) / WARPS];
// latents take longest and come first.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    mla_heads(act *q, u32 q_stride, u32 heads, const act *latent, const act *k, u32 stride, u32 latent_dim,
              u32 dim, const float *norm, float eps, const float *freqs, u32 half, float scale,
              kv *latent_data, float *latent_scales, kv *k_data, float *k_scales, u32 page,
              const u32 *row_seq, const u32 *positions, const u32 *pages, u32 pages_max) {
    let_later_start();
    __shared__ Workplace at;
    u32 row = blockIdx.x, task = blockIdx.y * WARPS + warp(), position = positions[row];
    u64 token = token_at(pages + (u64)row_seq[row] * pages_max, page, position);
    find_turns(at, position, freqs, half, scale);
    wait_for_earlier();
    if (task >= heads + 2) return;
    if (task >= 2) {
        q += (u64)row * q_stride + (task - 2) * dim;
        const float *x = turned_head(at, own_of(q, dim), dim, false, Own{}, eps, half);
        for (u32 i = lane(); i < dim; i += 32) q[i] = rounded<act>(x[i]);
        return;
    }
    if (task == 1) {
        k += (u64)row * stride;
        const float *x = turned_head(at, own_of(k, dim), dim, false, Own{}, eps, half);
        put_head(Store{k_data, k_scales, 1, dim}, token, [&](u32 i) { return x[i]; });
    } else {
        latent += (u64)row * stride;
        float shrink = norm_scale(latent, latent_dim, eps);
        put_head(Store{latent_data, latent_scales, 1, latent_dim}, token,
                 [&](u32 i) { return value(rounded<act>(value(latent[i]) * shrink * norm[i])); });
    }
}
