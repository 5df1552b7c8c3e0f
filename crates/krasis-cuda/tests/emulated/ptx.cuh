// kernels/ptx.cuh in plain C++.
#pragma once

#define DYNAMIC_SHARED(type, name) type *name = (type *)emulate::shared.data()

inline unsigned short bf16_bits(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline float f16_value(unsigned short bits) {
    unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float x = exponent == 31  ? (mantissa ? NAN : INFINITY)
              : exponent == 0 ? std::ldexp((float)mantissa, -24)
                              : std::ldexp((float)(1024 + mantissa), (int)exponent - 25);
    return sign ? -x : x;
}

inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    unsigned me = threadIdx.x % 32, first = threadIdx.x - me;
    memcpy(emulate::shown[threadIdx.x], a, 16);
    memcpy(emulate::shown[threadIdx.x] + 4, b, 8);
    __syncwarp();
    auto half = [](unsigned word, unsigned odd) {
        return __uint_as_float(odd ? word & 0xffff0000u : word << 16);
    };
    // As the table in PTX ISA, "matrix fragments for mma.m16n8k16", says, from the element's side.
    auto in_a = [&](unsigned row, unsigned k) {
        unsigned lane = row % 8 * 4 + k % 8 / 2;
        return half(emulate::shown[first + lane][row / 8 + k / 8 * 2], k % 2);
    };
    auto in_b = [&](unsigned k, unsigned col) {
        unsigned lane = col * 4 + k % 8 / 2;
        return half(emulate::shown[first + lane][4 + k / 8], k % 2);
    };
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = me / 4 + i / 2 * 8, col = me % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; k++) c[i] += in_a(row, k) * in_b(k, col);
    }
    __syncwarp();
}
