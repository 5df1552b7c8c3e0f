// A GPU of one core: the threads of a block are fibers that take turns at barriers and shuffles.
//
// Between two barriers the threads of even blocks run in ascending order and those of odd blocks in
// descending order, so that a missing barrier shows in one of them. Dynamic shared memory starts as
// NaN. Static shared memory keeps what the block before has left.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
    unsigned x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct alignas(8) float2 {
    float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class A, class B> std::common_type_t<A, B> min(A a, B b) {
    std::common_type_t<A, B> x = a, y = b;
    return x < y ? x : y;
}
template <class A, class B> std::common_type_t<A, B> max(A a, B b) {
    std::common_type_t<A, B> x = a, y = b;
    return x > y ? x : y;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

// Saves the callee's registers and the stack in *from, and goes on where `to` was left.
extern "C" void emulate_switch(void **from, void *to);
asm(".text\n"
    ".type emulate_switch, @function\n"
    "emulate_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

namespace emulate {
// Those that wait for each other: a block or a warp.
struct Group {
    unsigned live, arrived;
    unsigned long generation;
};
struct Fiber {
    void *stack;
    dim3 thread;
    bool done;
};
// A copy to shared memory that is under way: the target holds NaN until it is waited for.
struct Copy {
    char *to;
    size_t bytes;
    char data[16];
};
// A thread's groups of copies, the oldest first; the last one is not ended yet.
using Copies = std::deque<std::vector<Copy>>;
constexpr size_t STACK = 64 << 10;
constexpr unsigned THREADS = 1024;
inline char *stacks = (char *)aligned_alloc(64, STACK * THREADS);
inline Fiber fibers[THREADS];
inline Fiber *current;
inline void *scheduler;
inline Group block, warps[THREADS / 32];
inline unsigned long turns;
inline dim3 blockIdx_, blockDim_, gridDim_;
inline std::vector<float> shared;
inline void (*body)(void **);
inline void **arguments;
// What the lanes of a warp show each other.
inline unsigned shown[THREADS][12];

inline Copies copies[THREADS];

inline void pause() {
    if (++turns > 200'000'000ul) {
        fprintf(stderr, "the threads of a block wait for each other forever\n");
        abort();
    }
    emulate_switch(&current->stack, scheduler);
}
inline void wait(Group &group) {
    unsigned long generation = group.generation;
    if (++group.arrived == group.live) {
        group.arrived = 0;
        group.generation++;
        turns = 0;
    }
    while (group.generation == generation) pause();
}
inline void leave(Group &group) {
    group.live--;
    if (group.live && group.arrived == group.live) {
        group.arrived = 0;
        group.generation++;
    }
}
inline Group &my_warp() { return warps[current->thread.x / 32]; }
inline void run_fiber() {
    body(arguments);
    current->done = true;
    leave(my_warp());
    leave(block);
    pause();
}
inline void run_block(unsigned threads, bool backwards) {
    block = {threads, 0, 0};
    for (unsigned t = 0; t < threads; t++) {
        if (t % 32 == 0) warps[t / 32] = {min(threads - t, 32u), 0, 0};
        // The six registers that a switch restores, and where it returns to; the stack is then
        // where it is after a call, eight bytes from a multiple of 16.
        void **top = (void **)(stacks + STACK * (t + 1)) - 1;
        *--top = (void *)run_fiber;
        top -= 6;
        fibers[t] = {top, {t, 0, 0}, false};
        copies[t].assign(1, {});
    }
    for (unsigned left = threads; left;) {
        left = 0;
        for (unsigned i = 0; i < threads; i++) {
            current = &fibers[backwards ? threads - 1 - i : i];
            if (current->done) continue;
            emulate_switch(&scheduler, current->stack);
            left += !current->done;
        }
    }
}
inline void run_grid(dim3 grid, unsigned threads, unsigned shared_bytes) {
    gridDim_ = grid;
    blockDim_ = {threads, 1, 1};
    if (threads > THREADS || threads % 32) abort();
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx_ = {x, y, z};
                shared.assign(shared_bytes / 4 + 1, NAN);
                turns = 0;
                run_block(threads, (x + y + z) % 2);
            }
}
template <class... A, size_t... I>
void call(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
    kernel(*(A *)args[I]...);
}
template <class... A> void call(void (*kernel)(A...), void **args) {
    call(kernel, args, std::index_sequence_for<A...>());
}
} // namespace emulate

#define threadIdx (emulate::current->thread)
#define blockIdx emulate::blockIdx_
#define blockDim emulate::blockDim_
#define gridDim emulate::gridDim_

inline void __syncthreads() { emulate::wait(emulate::block); }
inline void __syncwarp() { emulate::wait(emulate::my_warp()); }

template <class T> T __shfl_sync(unsigned, T x, unsigned lane) {
    unsigned first = threadIdx.x / 32 * 32;
    memcpy(emulate::shown[threadIdx.x], &x, sizeof x);
    __syncwarp();
    T got;
    memcpy(&got, emulate::shown[first + lane], sizeof got);
    __syncwarp();
    return got;
}
template <class T> T __shfl_xor_sync(unsigned mask, T x, unsigned step) {
    return __shfl_sync(mask, x, threadIdx.x % 32 ^ step);
}
inline unsigned __ballot_sync(unsigned, int x) {
    unsigned first = threadIdx.x / 32 * 32, all = 0;
    emulate::shown[threadIdx.x][0] = x != 0;
    __syncwarp();
    for (unsigned i = 0; i < 32; i++) all |= emulate::shown[first + i][0] << i;
    __syncwarp();
    return all;
}
inline int __any_sync(unsigned mask, int x) { return __ballot_sync(mask, x) != 0; }
inline unsigned __reduce_max_sync(unsigned mask, unsigned x) {
    for (unsigned step = 1; step < 32; step *= 2) x = max(x, __shfl_xor_sync(mask, x, step));
    return x;
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned x) {
    for (unsigned step = 1; step < 32; step *= 2) x = min(x, __shfl_xor_sync(mask, x, step));
    return x;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline void __threadfence() {}
inline void __threadfence_system() {}
inline unsigned atomicAdd(unsigned *at, unsigned add) {
    unsigned before = *at;
    *at += add;
    return before;
}

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    unsigned long bytes = (unsigned long)high << 32 | low;
    unsigned got = 0;
    for (unsigned i = 0; i < 4; i++) got |= (unsigned)(bytes >> (selector >> (4 * i) & 7) * 8 & 255) << (8 * i);
    return got;
}

// What the test calls: emulated_NAME(grid, threads, shared bytes, arguments).
#define ENTRY(name)                                                                                \
    extern "C" void emulated_##name(const unsigned *grid, unsigned threads, unsigned shared,       \
                                    void **args) {                                                 \
        emulate::body = [](void **args) { emulate::call(name, args); };                            \
        emulate::arguments = args;                                                                 \
        emulate::run_grid({grid[0], grid[1], grid[2]}, threads, shared);                           \
    }
