// Launches in a row that overlap (programmatic dependent launch): a kernel may begin while the one
// before it in the stream ends. Both say nothing where launches wait for each other as ever, on GPUs
// before sm_90 and in emulation.
#pragma once

// What earlier kernels wrote is there, and what they read may be written. Every block calls it
// before it touches memory that other kernels write, if it touches any; weights are not such.
__device__ inline void wait_for_earlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may take what room there is, once all blocks have said so or are done.
__device__ inline void let_later_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
