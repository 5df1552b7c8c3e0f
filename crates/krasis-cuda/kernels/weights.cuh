// Weights in every format, as units of eight columns.
//
// FORMAT says how numbers are stored (krasis-core quant.rs and lines.rs). Columns come in slabs of
// 32, four units each. In rows, unit `q` is the columns 8q to 8q + 7 of its slab. In lines it is
// what lane `q` finds in a word of either plane: 2q + 8·(p % 4) + p / 4 for p in 0..8.
#pragma once
#include <types.cuh>

#define FORMAT_F32 0
#define FORMAT_F16 1
#define FORMAT_BF16 2
#define FORMAT_INT8 3
#define FORMAT_INT4 4
#define FORMAT_LINES4 5
#define FORMAT_LINES8 6

#define IN_LINES (FORMAT == FORMAT_LINES4 || FORMAT == FORMAT_LINES8)
// Whether BF16 holds every number exactly.
#define FITS_BF16 (FORMAT == FORMAT_BF16)

// A weight's rows; `group` is 1 for floats.
struct Weight {
    const u8 *data;
    const bf16 *scales;
    u32 cols;
    u32 group;
};

// Column of number `p` of a unit, within the slab.
__device__ inline u32 unit_col(u32 q, u32 p) {
#if IN_LINES
    return 2 * q + 8 * (p % 4) + p / 4;
#else
    return 8 * q + p;
#endif
}

#if !IN_LINES
// Bytes before column `col` of a row, which is even for INT4.
__device__ inline u64 col_bytes(u32 col) {
#if FORMAT == FORMAT_F32
    return (u64)col * 4;
#elif FORMAT == FORMAT_F16 || FORMAT == FORMAT_BF16
    return (u64)col * 2;
#elif FORMAT == FORMAT_INT8
    return col;
#else
    return col / 2;
#endif
}

__device__ inline float one(const u8 *row, u32 col) {
#if FORMAT == FORMAT_F32
    return ((const float *)row)[col];
#elif FORMAT == FORMAT_F16
    return f16_value(((const u16 *)row)[col]);
#elif FORMAT == FORMAT_BF16
    return value(((const bf16 *)row)[col]);
#elif FORMAT == FORMAT_INT8
    return (float)(signed char)row[col];
#else
    return (float)((row[col / 2] >> (col % 2 * 4)) & 15) - 8.0f;
#endif
}

// Eight numbers from the aligned bytes at `at`, scales aside.
__device__ inline void eight(const u8 *at, float (&out)[8]) {
#if FORMAT == FORMAT_F32
    for (u32 half = 0; half < 2; half++) {
        float4 x = ((const float4 *)at)[half];
        out[4 * half] = x.x, out[4 * half + 1] = x.y;
        out[4 * half + 2] = x.z, out[4 * half + 3] = x.w;
    }
#elif FORMAT == FORMAT_F16 || FORMAT == FORMAT_BF16
    uint4 x = *(const uint4 *)at;
    u32 words[4] = {x.x, x.y, x.z, x.w};
    for (u32 i = 0; i < 4; i++) {
#if FORMAT == FORMAT_F16
        out[2 * i] = f16_value((u16)words[i]);
        out[2 * i + 1] = f16_value((u16)(words[i] >> 16));
#else
        out[2 * i] = __uint_as_float(words[i] << 16);
        out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
#endif
    }
#elif FORMAT == FORMAT_INT8
    uint2 x = *(const uint2 *)at;
    for (u32 i = 0; i < 8; i++)
        out[i] = (float)(signed char)((i < 4 ? x.x : x.y) >> (i % 4 * 8));
#else
    u32 x = *(const u32 *)at;
    for (u32 i = 0; i < 8; i++) out[i] = (float)((x >> (4 * i)) & 15) - 8.0f;
#endif
}
#endif

// Unit `q` of slab `slab` of a row; zeros beyond the last column.
__device__ inline void load_unit(const Weight &w, u64 row, u32 slab, u32 q, float (&out)[8]) {
#if IN_LINES
    u32 lines = (w.cols + 127) / 128, line = slab / 4;
    u64 block = row / 8 * lines + line;
    u32 at = 16 * q + slab % 4 * 4;
#if FORMAT == FORMAT_LINES4
    u32 word = *(const u32 *)(w.data + (block * 8 + row % 8) * 64 + at);
    for (u32 p = 0; p < 8; p++) out[p] = (float)((word >> (4 * p)) & 15) - 8.0f;
#else
    const u8 *bytes = w.data + (block * 8 + row % 8) * 128 + at;
    u32 planes[2] = {*(const u32 *)bytes, *(const u32 *)(bytes + 64)};
    for (u32 p = 0; p < 8; p++) out[p] = (float)((planes[p % 2] >> (p / 2 * 8)) & 255) - 128.0f;
#endif
    u32 scales = 128 / w.group;
    float scale = value(w.scales[(block * scales + slab % 4 * 32 / w.group) * 8 + row % 8]);
    for (u32 p = 0; p < 8; p++) out[p] *= scale;
#else
    u32 col = 32 * slab + 8 * q;
    const u8 *data = w.data + row * col_bytes(w.cols + (FORMAT == FORMAT_INT4 ? w.cols % 2 : 0));
    if (w.cols % 8 == 0 && col + 8 <= w.cols) {
        // Rows and slots are aligned then, and so are units.
        eight(data + col_bytes(col), out);
    } else {
        for (u32 p = 0; p < 8; p++) out[p] = col + p < w.cols ? one(data, col + p) : 0.0f;
    }
#if FORMAT == FORMAT_INT8 || FORMAT == FORMAT_INT4
    if (col >= w.cols) return;
    const bf16 *scales = w.scales + row * ((w.cols + w.group - 1) / w.group);
    if (w.group % 8 == 0) {
        float scale = value(scales[col / w.group]);
        for (u32 p = 0; p < 8; p++) out[p] *= scale;
    } else {
        for (u32 p = 0; p < 8 && col + p < w.cols; p++)
            out[p] *= value(scales[(col + p) / w.group]);
    }
#endif
#endif
}

// What meets a unit: the same columns of an activation row; zeros beyond the last. `aligned` is
// nonzero if rows start at multiples of 16 bytes.
__device__ inline void load_act(const act *x, u32 cols, u32 slab, u32 q, u32 aligned, float (&out)[8]) {
#if !IN_LINES
    if (aligned && 32 * slab + 8 * q + 8 <= cols) {
        if (sizeof(act) == 2) {
            uint4 words = *(const uint4 *)(x + 32 * slab + 8 * q);
            u32 four[4] = {words.x, words.y, words.z, words.w};
            for (u32 i = 0; i < 4; i++) {
                out[2 * i] = __uint_as_float(four[i] << 16);
                out[2 * i + 1] = __uint_as_float(four[i] & 0xffff0000u);
            }
        } else {
            for (u32 half = 0; half < 2; half++) {
                float4 four = ((const float4 *)(x + 32 * slab + 8 * q))[half];
                out[4 * half] = four.x, out[4 * half + 1] = four.y;
                out[4 * half + 2] = four.z, out[4 * half + 3] = four.w;
            }
        }
        return;
    }
#endif
    for (u32 p = 0; p < 8; p++) {
        u32 col = 32 * slab + unit_col(q, p);
        out[p] = col < cols ? value(x[col]) : 0.0f;
    }
}
