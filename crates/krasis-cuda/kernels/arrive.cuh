// Blocks of a launch that leave the rest to the last of them.
#pragma once

// Whether this block is the last of `count` that come here. It sees what all of them have written
// before, if it reads past the cache of its multiprocessor. The counter is zero again then. `shared` is a
// number that nobody needs.
__device__ inline bool last_to_arrive(unsigned *counter, unsigned count, void *shared) {
    unsigned *last = (unsigned *)shared;
    __syncthreads();
    if (threadIdx.x == 0) {
        // For the whole block: fences are cumulative, and the barrier has come before.
        __threadfence();
        *last = atomicAdd(counter, 1u) == count - 1;
        if (*last) *counter = 0;
        __threadfence();
    }
    __syncthreads();
    return *last;
}
