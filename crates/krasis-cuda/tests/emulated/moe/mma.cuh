// kernels/moe/mma.cuh in plain C++.
//
// Copies arrive at once in even blocks, and as late as they may in odd ones: a stage that is
// overwritten too early shows in the former, one that is read too early in the latter.
#pragma once
#include <deque>
#include <ptx.cuh>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u32 bf16x2;

inline char *at_shared(u32 at) {
    if (at + 16 > emulate::shared.size() * 4 + 8) {
        fprintf(stderr, "shared address %u of %zu bytes\n", at, emulate::shared.size() * 4);
        abort();
    }
    return (char *)emulate::shared.data() + at;
}
inline u32 shared_address(const void *at) { return (const char *)at - (const char *)emulate::shared.data(); }
inline u32 thread_number() { return threadIdx.x; }

struct Copy {
    u32 to;
    u8 bytes[16];
};
// Groups of copies of each thread; the last is open.
inline std::deque<std::vector<Copy>> groups[emulate::THREADS];

inline void copy_16(u32 to, const void *from, u32 bytes, bool wanted) {
    if (!wanted) return;
    if (to % 16 || (u64)from % 16) {
        fprintf(stderr, "a copy from %p to %u\n", from, to);
        abort();
    }
    Copy copy{to, {}};
    memcpy(copy.bytes, from, bytes);
    auto &mine = groups[threadIdx.x];
    if (mine.empty()) mine.emplace_back();
    mine.back().push_back(copy);
    // NaN until it arrives.
    memset(at_shared(to), 0xff, 16);
    if (blockIdx.x % 2 == 0) memcpy(at_shared(to), copy.bytes, 16);
}
inline void copies_together() { groups[threadIdx.x].emplace_back(); }
template <int PENDING> void copies_arrived() {
    auto &mine = groups[threadIdx.x];
    for (; mine.size() > PENDING + 1; mine.pop_front())
        for (auto &copy : mine.front()) memcpy(at_shared(copy.to), copy.bytes, 16);
}

// Warps expected and missing, and the phase.
struct Barrier {
    u16 warps, missing;
    u32 phase;
};
inline void expect(u32 barrier, u32 warps) { *(Barrier *)at_shared(barrier) = {(u16)warps, (u16)warps, 0}; }
inline void tell(u32 barrier) {
    __syncwarp();
    Barrier &b = *(Barrier *)at_shared(barrier);
    if (threadIdx.x % 32 == 0 && --b.missing == 0) b.missing = b.warps, b.phase ^= 1;
}
inline void await(u32 barrier, u32 phase) {
    while (((Barrier *)at_shared(barrier))->phase == phase) emulate::pause();
}

inline uint4 shared_16(u32 at) { return *(uint4 *)at_shared(at); }
inline uint2 shared_8(u32 at) { return *(uint2 *)at_shared(at); }
inline u16 shared_2(u32 at) { return *(u16 *)at_shared(at); }
inline void store_shared_8(u32 at, u32 first, u32 second) { *(uint2 *)at_shared(at) = {first, second}; }

inline void load_matrices(u32 (&a)[4], u32 at) {
    u32 me = threadIdx.x % 32, first = threadIdx.x - me;
    emulate::shown[threadIdx.x][0] = at;
    __syncwarp();
    for (u32 i = 0; i < 4; i++)
        memcpy(&a[i], at_shared(emulate::shown[first + 8 * i + me / 4][0]) + me % 4 * 4, 4);
    __syncwarp();
}

inline void multiply_add(float (&c)[4], const u32 (&a)[4], bf16x2 b0, bf16x2 b1) { mma_bf16(c, a, {b0, b1}); }

inline bf16x2 rounded_pair(float first, float second) { return bf16_bits(first) | (u32)bf16_bits(second) << 16; }

// Products of BF16 are exact in double.
inline bf16x2 fma_pair(bf16x2 x, bf16x2 y, bf16x2 z) {
    auto one = [](u32 x, u32 y, u32 z) {
        return (float)((double)__uint_as_float(x) * __uint_as_float(y) + __uint_as_float(z));
    };
    const u32 HIGH_HALF = 0xffff0000u;
    return rounded_pair(one(x << 16, y << 16, z << 16), one(x & HIGH_HALF, y & HIGH_HALF, z & HIGH_HALF));
}

inline float silu(float x) { return x / (1.0f + expf(-x)); }
