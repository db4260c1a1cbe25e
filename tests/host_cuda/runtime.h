// In place of csrc/cuda/runtime.h, as much of CUDA as csrc/cuda/rows.cu needs, on the host: a thread of the machine for
// every thread of a block, one block after the other.
#pragma once

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __constant__
#define __forceinline__ inline
#define __shared__ static // one block at a time
#define __align__(n)
#define __launch_bounds__(...)

using cudaStream_t = void *;
using half = _Float16;

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct uint4 {
    uint32_t x, y, z, w;
};

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline std::unique_ptr<std::barrier<>> host_warps[32], host_block;
inline uint32_t host_lanes[32][32];

inline void __syncwarp() {
    host_warps[threadIdx.x / 32]->arrive_and_wait();
}

inline void __syncthreads() {
    host_block->arrive_and_wait();
}

template <class T> T __shfl_sync(unsigned, T value, unsigned from) {
    static_assert(sizeof(T) == sizeof(uint32_t));
    uint32_t (&lanes)[32] = host_lanes[threadIdx.x / 32];
    std::memcpy(&lanes[threadIdx.x % 32], &value, sizeof(value));
    __syncwarp();
    std::memcpy(&value, &lanes[from % 32], sizeof(value));
    __syncwarp();
    return value;
}

template <class T> T __shfl_xor_sync(unsigned all, T value, unsigned mask) {
    return __shfl_sync(all, value, threadIdx.x % 32 ^ mask);
}

inline unsigned __ballot_sync(unsigned all, bool is_true) {
    unsigned result = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        result |= (unsigned) __shfl_sync(all, (uint32_t) is_true, lane) << lane;
    }
    return result;
}

inline int __ffs(unsigned x) {
    return __builtin_ffs((int) x);
}

inline float __fadd_rn(float a, float b) {
    return a + b;
}

inline float __fmul_rn(float a, float b) {
    return a * b;
}

inline float __fsqrt_rn(float x) {
    return std::sqrt(x);
}

inline float __frcp_rn(float x) {
    return 1 / x;
}

inline float __half2float(half h) {
    return (float) h;
}

inline half __float2half_rn(float f) {
    return (half) f;
}

namespace tq_cuda {

inline void wait_for_kernels_before() {}

inline void let_next_kernel_load() {}

template <auto kernel, class... Arguments>
void launch(dim3 grid, int threads, size_t, cudaStream_t, const Arguments &... arguments) {
    gridDim = grid;
    blockDim = {(unsigned) threads};
    for (unsigned b = 0; b < grid.x * grid.y; b++) {
        for (int w = 0; w < threads / 32; w++) {
            host_warps[w] = std::make_unique<std::barrier<>>(32);
        }
        host_block = std::make_unique<std::barrier<>>(threads);
        std::vector<std::thread> all;
        for (int t = 0; t < threads; t++) {
            all.emplace_back([&, t] {
                blockIdx = {b % grid.x, b / grid.x};
                threadIdx = {(unsigned) t};
                kernel(arguments...);
            });
        }
        for (auto & thread : all) {
            thread.join();
        }
    }
}

} // namespace tq_cuda
