// Causal attention over KV pages, with a running softmax: one block per token row and up to
// HEADS query heads that share their keys. Latent attention is the same with two parts of a key,
// the first of which is the value too.
//
// Per tile of KEYS positions: keys to shared memory as f32, a score per head and position, weights
// relative to the largest score so far, values to the same shared memory, mixed into the sums.
#include <kv.cuh>

// Query heads of a block, and positions of a tile.
#define HEADS 8
#define KEYS 16

// Copies one head of positions first..first + count to rows of `to`.
__device__ inline void load_tile(const Store &s, u32 head, const u32 *pages, u32 page, u32 first,
                                 u32 count, float *to, u32 to_stride) {
    u32 bytes = s.dim * sizeof(kv), per = 16 / sizeof(kv);
    if (bytes % 16 == 0) {
        u32 pieces = s.dim / per;
        for (u32 i = threadIdx.x; i < count * pieces; i += blockDim.x) {
            u32 key = i / pieces, piece = i % pieces;
            u64 at = token_at(pages, page, first + key) * s.heads + head;
            uint4 words = ((const uint4 *)(s.data + at * s.dim))[piece];
            float scale = scale_at(s, at);
            const u32 four[4] = {words.x, words.y, words.z, words.w};
            float *out = to + key * to_stride + piece * per;
            for (u32 w = 0; w < 4; w++) {
#if KV_DTYPE == KV_F32
                out[w] = __uint_as_float(four[w]) * scale;
#elif KV_DTYPE == KV_BF16
                out[2 * w] = __uint_as_float(four[w] << 16) * scale;
                out[2 * w + 1] = __uint_as_float(four[w] & 0xffff0000u) * scale;
#else
                for (u32 b = 0; b < 4; b++)
                    out[4 * w + b] = f8_value((u8)(four[w] >> (8 * b))) * scale;
#endif
            }
        }
    } else {
        for (u32 i = threadIdx.x; i < count * s.dim; i += blockDim.x) {
            u32 key = i / s.dim, col = i % s.dim;
            u64 at = token_at(pages, page, first + key) * s.heads + head;
            float scale = scale_at(s, at);
            to[key * to_stride + col] = kv_value(s.data[at * s.dim + col]) * scale;
        }
    }
}

// Shared memory: queries [HEADS][key], keys or values [KEYS][key + 1 or value], sums [HEADS][value],
// scores [HEADS][KEYS], and per head the largest score, the sum of weights, and the last correction.
// `key_dim` counts both parts of a key. Odd strides keep the lanes of a warp in different banks.
__device__ inline void attend_heads(const act *q, u32 heads, const act *q_rope, const Store &k,
                                    const Store *rope, const Store *v, u32 kv_head, const u32 *pages,
                                    u32 page, u32 len, float scale, act *out, float *shared) {
    u32 key_dim = k.dim + (rope ? rope->dim : 0), value_dim = v ? v->dim : k.dim;
    u32 key_stride = key_dim | 1, tile_stride = max(key_stride, value_dim);
    float *queries = shared, *tile = queries + HEADS * key_stride;
    float *sums = tile + KEYS * tile_stride, *scores = sums + HEADS * value_dim;
    float *largest = scores + HEADS * KEYS, *total = largest + HEADS, *correction = total + HEADS;
    for (u32 i = threadIdx.x; i < heads * key_dim; i += blockDim.x) {
        u32 head = i / key_dim, col = i % key_dim;
        float x = col < k.dim ? value(q[head * k.dim + col])
                              : value(q_rope[head * (key_dim - k.dim) + col - k.dim]);
        queries[head * key_stride + col] = x;
    }
    for (u32 i = threadIdx.x; i < heads * value_dim; i += blockDim.x) sums[i] = 0.0f;
    if (threadIdx.x < heads) {
        largest[threadIdx.x] = -__uint_as_float(0x7f800000u);
        total[threadIdx.x] = 0.0f;
    }
    for (u32 first = 0; first < len; first += KEYS) {
        u32 count = min(len - first, (u32)KEYS);
        __syncthreads();
        load_tile(k, kv_head, pages, page, first, count, tile, key_stride);
        if (rope) load_tile(*rope, kv_head, pages, page, first, count, tile + k.dim, key_stride);
        __syncthreads();
        // A thread per head and position.
        for (u32 i = threadIdx.x; i < heads * KEYS; i += blockDim.x) {
            u32 head = i / KEYS, key = i % KEYS;
            float sum = 0.0f;
            for (u32 c = 0; key < count && c < key_dim; c++)
                sum += queries[head * key_stride + c] * tile[key * key_stride + c];
            scores[i] = scale * sum;
        }
        __syncthreads();
        // A thread per head: a few additions.
        if (threadIdx.x < heads) {
            u32 head = threadIdx.x;
            float most = largest[head], sum = 0.0f;
            for (u32 key = 0; key < count; key++) most = fmaxf(most, scores[head * KEYS + key]);
            for (u32 key = 0; key < count; key++) {
                float weight = expf(scores[head * KEYS + key] - most);
                scores[head * KEYS + key] = weight;
                sum += weight;
            }
            correction[head] = expf(largest[head] - most);
            total[head] = total[head] * correction[head] + sum;
            largest[head] = most;
        }
        // Latents stay where they are; other values take the keys' place once all scores are there.
        u32 value_stride = key_stride;
        if (v) {
            load_tile(*v, kv_head, pages, page, first, count, tile, value_dim);
            value_stride = value_dim;
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < heads * value_dim; i += blockDim.x) {
            u32 head = i / value_dim, col = i % value_dim;
            float sum = sums[i] * correction[head];
            for (u32 key = 0; key < count; key++)
                sum += scores[head * KEYS + key] * tile[key * value_stride + col];
            sums[i] = sum;
        }
    }
    // Each thread writes the sums that it has made; totals are a barrier old.
    for (u32 i = threadIdx.x; i < heads * value_dim; i += blockDim.x)
        out[i] = rounded<act>(sums[i] / total[i / value_dim]);
}

// Grid [rows, kv heads, blocks of HEADS of the `group` query heads of a kv head].
extern "C" __global__ void __launch_bounds__(256)
    attend(const act *q, u32 q_stride, kv *k_data, float *k_scales, u32 k_dim, kv *v_data,
           float *v_scales, u32 v_dim, u32 kv_heads, u32 group, u32 page, const u32 *row_seq,
           const u32 *positions, const u32 *pages, u32 pages_max, float scale, act *out,
           u32 out_stride) {
    let_later_start();
    wait_for_earlier();
    DYNAMIC_SHARED(float, shared);
    u32 row = blockIdx.x, kv_head = blockIdx.y, first = blockIdx.z * HEADS;
    u32 head = kv_head * group + first;
    Store k{k_data, k_scales, kv_heads, k_dim}, v{v_data, v_scales, kv_heads, v_dim};
    attend_heads(q + (u64)row * q_stride + head * k_dim, min(group - first, (u32)HEADS), nullptr, k,
                 nullptr, &v, kv_head, pages + (u64)row_seq[row] * pages_max, page,
                 positions[row] + 1, scale, out + (u64)row * out_stride + head * v_dim, shared);
}

// Grid [rows, 1, blocks of HEADS of the `heads` query heads].
extern "C" __global__ void __launch_bounds__(256)
    mla_attend(const act *q, u32 q_stride, const act *q_rope, u32 q_rope_stride, kv *c_data,
               float *c_scales, u32 c_dim, kv *r_data, float *r_scales, u32 r_dim, u32 heads, u32 page,
               const u32 *row_seq, const u32 *positions, const u32 *pages, u32 pages_max, float scale,
               act *out, u32 out_stride) {
    let_later_start();
    wait_for_earlier();
    DYNAMIC_SHARED(float, shared);
    u32 row = blockIdx.x, head = blockIdx.z * HEADS;
    Store c{c_data, c_scales, 1, c_dim}, r{r_data, r_scales, 1, r_dim};
    attend_heads(q + (u64)row * q_stride + head * c_dim, min(heads - head, (u32)HEADS),
                 q_rope + (u64)row * q_rope_stride + head * r_dim, c, &r, nullptr, 0,
                 pages + (u64)row_seq[row] * pages_max, page, positions[row] + 1, scale,
                 out + (u64)row * out_stride + head * c_dim, shared);
}
