// As much of CUDA as csrc/cuda/rows.cu needs, on the host: a thread of the machine for every thread of a block, one
// block after the other. test_cuda.py turns kernel<<<...>>>(...) into TQ_LAUNCH.
#pragma once

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __constant__
#define __forceinline__ inline
#define __shared__ static // one block at a time
#define __align__(n)

struct dim3 {
    unsigned x, y, z;
};

using cudaStream_t = void *;

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

inline float __fadd_rn(float a, float b) {
    return a + b;
}

#define TQ_LAUNCH(kernel, grid, block, shared, stream, ...)            \
    do {                                                               \
        gridDim = {grid, 1, 1};                                        \
        blockDim = {(unsigned) (block), 1, 1};                         \
        for (unsigned b = 0; b < gridDim.x; b++) {                     \
            for (unsigned w = 0; w < blockDim.x / 32; w++) {           \
                host_warps[w] = std::make_unique<std::barrier<>>(32);  \
            }                                                          \
            host_block = std::make_unique<std::barrier<>>(blockDim.x); \
            std::vector<std::thread> threads;                          \
            for (unsigned t = 0; t < blockDim.x; t++) {                \
                threads.emplace_back([=] {                             \
                    blockIdx = {b, 0, 0};                              \
                    threadIdx = {t, 0, 0};                             \
                    kernel(__VA_ARGS__);                               \
                });                                                    \
            }                                                          \
            for (auto & thread : threads) {                            \
                thread.join();                                         \
            }                                                          \
        }                                                              \
    } while (0)
