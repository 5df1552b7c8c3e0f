// Keys of a step's prompts, the sequences of which it has many rows, in one line: those of each prompt
// begin at a multiple of TOGETHER. A window of so many of them is expanded at a time.
#pragma once

#define TOGETHER 128

// The prompts of a step, which are its last sequences.
struct Prompts {
    const unsigned *first_row;
    const unsigned *positions;
    unsigned count;
};

__device__ inline unsigned keys_of(const Prompts &prompts, unsigned prompt) {
    return prompts.positions[prompts.first_row[prompt + 1] - 1] + 1;
}

// Keys in the line before those of a prompt, by a warp.
__device__ inline unsigned keys_before(const Prompts &prompts, unsigned prompt) {
    unsigned sum = 0;
    for (unsigned i = threadIdx.x % 32; i < prompt; i += 32)
        sum += (keys_of(prompts, i) + TOGETHER - 1) / TOGETHER * TOGETHER;
    for (unsigned step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
}

// Whose key `key` of the line is, and which position it is at; false where a prompt has ended and the next
// one has not begun. By a warp.
__device__ inline bool find_key(const Prompts &prompts, unsigned key, unsigned &prompt, unsigned &position) {
    unsigned lane = threadIdx.x % 32, before = 0;
    for (unsigned first = 0; first < prompts.count; first += 32) {
        unsigned keys = first + lane < prompts.count ? keys_of(prompts, first + lane) : 0;
        unsigned room = (keys + TOGETHER - 1) / TOGETHER * TOGETHER, sum = room;
        for (unsigned step = 1; step < 32; step *= 2) {
            unsigned other = __shfl_sync(~0u, sum, (lane - step) % 32);
            if (lane >= step) sum += other;
        }
        unsigned here = __ballot_sync(~0u, key < before + sum);
        if (here) {
            unsigned from = __ffs(here) - 1;
            prompt = first + from;
            position = key - (before + __shfl_sync(~0u, sum - room, from));
            return position < __shfl_sync(~0u, keys, from);
        }
        before += __shfl_sync(~0u, sum, 31);
    }
    return false;
}
