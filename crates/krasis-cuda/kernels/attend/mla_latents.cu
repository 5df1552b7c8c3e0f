// The way to keys and values of prompts begins here: latents and rotated keys of a window, out of their
// pages and one behind the other in BF16, whatever they are kept in.
#include <attend/prompts.cuh>
#include <kv.cuh>

__device__ inline void bring(const kv *data, const float *scales, u64 token, u32 dim, bf16 *to) {
    float scale = scale_at(Store{(kv *)data, (float *)scales, 1, dim}, token);
    for (u32 i = lane(); i < dim; i += 32) to[i] = rounded<bf16>(kv_value(data[token * dim + i]) * scale);
}

// Grid [keys / 8], block [256]: a warp for each key of the line from `window_first` on.
extern "C" __global__ void __launch_bounds__(256)
    mla_latents(const kv *c_data, const float *c_scales, u32 latent, const kv *r_data, const float *r_scales,
                u32 rope, u32 page, const u32 *first_row, const u32 *positions, const u32 *pages,
                u32 pages_max, u32 prompts, u32 window_first, bf16 *latents, bf16 *ropes) {
    let_later_start();
    wait_for_earlier();
    u32 key = blockIdx.x * 8 + warp(), prompt, position;
    if (!find_key(Prompts{first_row, positions, prompts}, window_first + key, prompt, position)) return;
    u64 token = token_at(pages + (u64)prompt * pages_max, page, position);
    bring(c_data, c_scales, token, latent, latents + (u64)key * latent);
    bring(r_data, r_scales, token, rope, ropes + (u64)key * rope);
}
