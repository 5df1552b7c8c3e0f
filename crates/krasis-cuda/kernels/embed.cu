// out[row] = table[tokens[row]]. One block per row.
#include <weights.cuh>

extern "C" __global__ void embed(const u32 *tokens, const u8 *data, const bf16 *scales, u32 group,
                                 act *out, u32 stride, u32 cols) {
    let_later_start();
    wait_for_earlier();
    Weight table{data, scales, cols, group};
    act *row = out + (u64)blockIdx.x * stride;
    u32 units = (cols + 31) / 32 * 4;
    for (u32 unit = threadIdx.x; unit < units; unit += blockDim.x) {
        float x[8];
        load_unit(table, tokens[blockIdx.x], unit / 4, unit % 4, x);
        for (u32 p = 0; p < 8; p++) {
            u32 col = unit / 4 * 32 + unit_col(unit % 4, p);
            if (col < cols) row[col] = rounded<act>(x[p]);
        }
    }
}
