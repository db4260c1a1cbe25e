// The CUDA runtime, and how kernels are launched.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>

#if CUDART_VERSION >= 12030
#    define TQ_CUDA_OVERLAP // a kernel may be loaded while the one before it in the stream still runs
#endif

namespace tq_cuda {

// Before a kernel reads what others wrote, or writes what others read.
__device__ __forceinline__ void wait_for_kernels_before() {
#if defined(TQ_CUDA_OVERLAP) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}

// What other multiprocessors wrote may lie in the first level cache as it was: after this it does not. A kernel that
// reads before it waits needs that.
__device__ __forceinline__ void forget_cached_lines() {
#if defined(TQ_CUDA_OVERLAP) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    __threadfence();
#endif
}

// From here on the next kernel may be loaded: it waits by itself for what this one writes.
__device__ __forceinline__ void let_next_kernel_load() {
#if defined(TQ_CUDA_OVERLAP) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// What must be known of a kernel on a device, and is asked once.
struct kernel_state {
    std::atomic<size_t> shared {48 * 1024}; // bytes of shared memory that it may have
    std::atomic<int> overlaps {-1};
};

constexpr int most_devices = 64;

// Every kernel launched so calls wait_for_kernels_before.
template <auto kernel, class... Arguments>
void launch(dim3 grid, int threads, size_t shared, cudaStream_t stream, const Arguments &... arguments) {
    static kernel_state states[most_devices];
    const void * function = reinterpret_cast<const void *>(kernel);
    int device = 0;
    cudaGetDevice(&device);
    kernel_state & state = states[device % most_devices];
    if (shared > state.shared) {
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) shared);
        state.shared = shared;
    }
#if defined(TQ_CUDA_OVERLAP)
    if (state.overlaps < 0) { // code for older GPUs, compiled again by the driver for a newer one, has no wait in it
        cudaFuncAttributes attributes;
        state.overlaps = cudaFuncGetAttributes(&attributes, function) == cudaSuccess && attributes.ptxVersion >= 90;
    }
    if (state.overlaps > 0) {
        cudaLaunchAttribute overlap = {};
        overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        overlap.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = grid;
        config.blockDim = dim3((unsigned) threads);
        config.dynamicSmemBytes = shared;
        config.stream = stream;
        config.attrs = &overlap;
        config.numAttrs = 1;
        cudaLaunchKernelEx(&config, kernel, arguments...);
        return;
    }
#endif
    kernel<<<grid, threads, shared, stream>>>(arguments...);
}

} // namespace tq_cuda
