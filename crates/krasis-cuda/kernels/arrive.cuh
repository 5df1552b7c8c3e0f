// Blocks of a launch that leave the rest to the last of them.
#pragma once

// What `counter` was, to which it adds one: what this thread has seen before is seen by whoever comes later.
__device__ inline unsigned add_released(unsigned *counter) {
#ifdef __CUDA_ARCH__
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
#else
    return atomicAdd(counter, 1u);
#endif
}

// Whether this block is the last of `count` that come here. It sees what all of them have written
// before, if it reads past the cache of its multiprocessor. The counter is zero again then. `shared` is a
// number that nobody needs.
__device__ inline bool last_to_arrive(unsigned *counter, unsigned count, void *shared) {
    unsigned *last = (unsigned *)shared;
    __syncthreads();
    if (threadIdx.x == 0) {
        // For the whole block: what is released is cumulative, and the barrier has come before.
        *last = add_released(counter) == count - 1;
        if (*last) *counter = 0;
    }
    __syncthreads();
    return *last;
}
