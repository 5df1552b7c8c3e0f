// kernels/attend/ptx.cuh in plain C++. Copies arrive as late as they may: what is read before it is
// waited for is NaN.
#pragma once
#include <order.cuh>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DYNAMIC_SHARED(name) u8 *name = (u8 *)emulate::shared.data()

inline u32 shared_address(const void *at) {
    return (u32)((const char *)at - (const char *)emulate::shared.data());
}

// Where an instruction finds `bytes` of shared memory.
inline char *shared_at(u32 address, u32 bytes) {
    if (address % bytes || address + bytes > emulate::shared.size() * 4) {
        fprintf(stderr, "%u bytes at %u of shared memory\n", bytes, address);
        abort();
    }
    return (char *)emulate::shared.data() + address;
}

inline void copy_bytes(u32 to, const void *from, bool valid, u32 bytes) {
    if ((u64)from % bytes) {
        fprintf(stderr, "a copy of %u bytes from %p\n", bytes, from);
        abort();
    }
    emulate::Copy copy{shared_at(to, bytes), bytes, {}};
    if (valid) memcpy(copy.data, from, bytes);
    memset(copy.to, 0xff, bytes);
    emulate::copies[threadIdx.x].back().push_back(copy);
}
inline void copy_16(u32 to, const void *from, bool valid) { copy_bytes(to, from, valid, 16); }
inline void copy_4(u32 to, const void *from, bool valid) { copy_bytes(to, from, valid, 4); }
inline void copy_16_once(u32 to, const void *from, bool valid, u64) { copy_bytes(to, from, valid, 16); }
inline u64 read_once() { return 0; }
inline void copies_end() { emulate::copies[threadIdx.x].emplace_back(); }
template <u32 N> inline void copies_wait() {
    emulate::Copies &groups = emulate::copies[threadIdx.x];
    for (; groups.size() > N + 1; groups.pop_front())
        for (const emulate::Copy &copy : groups.front()) memcpy(copy.to, copy.data, copy.bytes);
}

inline void matrices(u32 (&to)[4], u32 from, bool transposed) {
    u32 me = threadIdx.x % 32, first = threadIdx.x - me, row = me / 4, column = me % 4 * 2;
    emulate::shown[threadIdx.x][0] = from;
    __syncwarp();
    for (u32 matrix = 0; matrix < 4; matrix++) {
        auto element = [&](u32 row, u32 column) -> u32 {
            u16 x;
            memcpy(&x, shared_at(emulate::shown[first + matrix * 8 + row][0], 16) + column * 2, 2);
            return x;
        };
        to[matrix] = transposed ? element(column, row) | element(column + 1, row) << 16
                                : element(row, column) | element(row, column + 1) << 16;
    }
    __syncwarp();
}
inline void matrices(u32 (&to)[4], u32 from) { matrices(to, from, false); }
inline void matrices_transposed(u32 (&to)[4], u32 from) { matrices(to, from, true); }

inline void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u32 me = threadIdx.x % 32, first = threadIdx.x - me;
    memcpy(emulate::shown[threadIdx.x], a, 16);
    emulate::shown[threadIdx.x][4] = b0;
    emulate::shown[threadIdx.x][5] = b1;
    __syncwarp();
    auto half = [](u32 word, u32 odd) { return __uint_as_float(odd ? word & 0xffff0000u : word << 16); };
    // As the table in PTX ISA, "matrix fragments for mma.m16n8k16", says, from the element's side.
    for (u32 i = 0; i < 4; i++) {
        u32 row = me / 4 + i / 2 * 8, column = me % 4 * 2 + i % 2;
        for (u32 k = 0; k < 16; k++) {
            u32 in_a = emulate::shown[first + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
            u32 in_b = emulate::shown[first + column * 4 + k % 8 / 2][4 + k / 8];
            c[i] += half(in_a, k % 2) * half(in_b, k % 2);
        }
    }
    __syncwarp();
}

inline float exp_2(float x) { return exp2f(x); }
inline u32 nearest(float x) {
    u32 bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline u32 pack(float low, float high) { return nearest(low) | nearest(high) << 16; }
inline u32 pack_f8(u32 two, float scale) {
    float unit = __uint_as_float((120 + 127u) << 23);
    float low = __uint_as_float((two & 0x7f) << 20 | (two & 0x80) << 24) * unit;
    float high = __uint_as_float((two & 0x7f00) << 12 | (two & 0x8000) << 16) * unit;
    return pack(low * scale, high * scale);
}
inline float2 fresh_2(const float *at) { return *(const float2 *)at; }
inline float4 fresh_4(const float *at) { return *(const float4 *)at; }
