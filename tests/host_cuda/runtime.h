// In place of csrc/cuda/runtime.h: as much of CUDA as csrc/cuda needs, on the host. The threads of a block are fibers
// that take turns in a fixed order, and one block comes after the other. Shared memory holds NaN at first, and copies
// to it arrive as late as they may. Races that a fixed order hides, it hides.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __constant__
#define __forceinline__ inline
#define __shared__ static // one block at a time
#define __align__(n)
#define __launch_bounds__(...)

using std::max;
using std::min;
using half = _Float16;

struct alignas(4) half2 {
    half x, y;
};

struct alignas(8) float2 {
    float x, y;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

struct dim3 {
    unsigned x = 1, y = 1, z = 1;

    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// --- fibers ---

inline dim3 threadIdx, blockIdx, blockDim, gridDim;
inline char host_shared[256 * 1024];

struct host_barrier {
    unsigned waiting = 0, generation = 0;
};

struct host_fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool is_done = false;
};

inline std::vector<host_fiber> host_fibers;
inline ucontext_t host_scheduler;
inline host_barrier host_block, host_warps[32];
inline uint32_t host_lanes[32][32][4];
inline std::function<void()> host_kernel;

inline void host_wait(host_barrier & barrier, unsigned threads) {
    const unsigned generation = barrier.generation;
    if (++barrier.waiting == threads) {
        barrier.waiting = 0;
        barrier.generation++;
    }
    while (barrier.generation == generation) {
        swapcontext(&host_fibers[threadIdx.x].context, &host_scheduler);
    }
}

inline void host_enter() {
    host_kernel();
    host_fibers[threadIdx.x].is_done = true;
    swapcontext(&host_fibers[threadIdx.x].context, &host_scheduler);
}

inline void host_run_block(unsigned threads) {
    host_fibers.resize(std::max<size_t>(host_fibers.size(), threads));
    for (unsigned t = 0; t < threads; t++) {
        host_fiber & fiber = host_fibers[t];
        constexpr size_t size = 256 * 1024;
        if (!fiber.stack) {
            fiber.stack.reset(new char[size]);
        }
        fiber.is_done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = size;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, host_enter, 0);
    }
    for (unsigned left = threads; left > 0;) {
        for (unsigned t = 0; t < threads; t++) {
            if (!host_fibers[t].is_done) {
                threadIdx = dim3(t);
                swapcontext(&host_scheduler, &host_fibers[t].context);
                left -= host_fibers[t].is_done;
            }
        }
    }
}

inline void __syncwarp() {
    host_wait(host_warps[threadIdx.x / 32], 32);
}

inline void __syncthreads() {
    host_wait(host_block, blockDim.x);
}

// What the other lanes of the warp say, by lane.
template <class T> std::array<T, 32> host_exchange(const T & mine) {
    static_assert(sizeof(T) <= sizeof(host_lanes[0][0]));
    auto & lanes = host_lanes[threadIdx.x / 32];
    std::memcpy(lanes[threadIdx.x % 32], &mine, sizeof(T));
    __syncwarp();
    std::array<T, 32> all;
    for (int lane = 0; lane < 32; lane++) {
        std::memcpy(&all[lane], lanes[lane], sizeof(T));
    }
    __syncwarp();
    return all;
}

template <class T> T __shfl_sync(unsigned, T value, unsigned from) {
    return host_exchange(value)[from % 32];
}

template <class T> T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    return host_exchange(value)[threadIdx.x % 32 ^ mask];
}

inline unsigned __ballot_sync(unsigned, bool is_true) {
    const auto lanes = host_exchange((uint32_t) is_true);
    unsigned result = 0;
    for (int lane = 0; lane < 32; lane++) {
        result |= lanes[lane] << lane;
    }
    return result;
}

inline bool __any_sync(unsigned all, bool is_true) {
    return __ballot_sync(all, is_true) != 0;
}

// --- arithmetic ---

inline int __ffs(unsigned x) {
    return __builtin_ffs((int) x);
}

inline int __clz(int x) {
    return x ? __builtin_clz((unsigned) x) : 32;
}

inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
    return (unsigned) (((uint64_t) high << 32 | low) >> std::min(shift, 32u));
}

inline float __uint_as_float(unsigned u) {
    float f;
    std::memcpy(&f, &u, sizeof(f));
    return f;
}

inline unsigned __float_as_uint(float f) {
    unsigned u;
    std::memcpy(&u, &f, sizeof(u));
    return u;
}

inline float __int_as_float(int i) {
    return __uint_as_float((unsigned) i);
}

inline int __float_as_int(float f) {
    return (int) __float_as_uint(f);
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

inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

inline float2 make_float2(float x, float y) {
    return {x, y};
}

inline float __half2float(half h) {
    return (float) h;
}

inline half __float2half_rn(float f) {
    return (half) f;
}

inline half __ushort_as_half(unsigned short u) {
    half h;
    std::memcpy(&h, &u, sizeof(h));
    return h;
}

inline unsigned short __half_as_ushort(half h) {
    unsigned short u;
    std::memcpy(&u, &h, sizeof(u));
    return u;
}

inline half2 __floats2half2_rn(float x, float y) {
    return {(half) x, (half) y};
}

inline half2 __float2half2_rn(float x) {
    return {(half) x, (half) x};
}

inline float __low2float(half2 h) {
    return (float) h.x;
}

inline float __high2float(half2 h) {
    return (float) h.y;
}

inline half2 __hadd2(half2 a, half2 b) {
    return {(half) (a.x + b.x), (half) (a.y + b.y)};
}

inline half2 __hmul2(half2 a, half2 b) {
    return {(half) (a.x * b.x), (half) (a.y * b.y)};
}

// --- the runtime ---

using cudaStream_t = void *;
using cudaEvent_t = void *;

enum cudaError_t { cudaSuccess };

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };

struct cudaDeviceProp {
    int major, minor, multiProcessorCount;
    size_t sharedMemPerBlockOptin;
};

inline const char * cudaGetErrorString(cudaError_t) {
    return "";
}

inline cudaError_t cudaGetLastError() {
    return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int * device) {
    *device = 0;
    return cudaSuccess;
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp * properties, int) {
    *properties = {9, 0, 6, 227 * 1024}; // few multiprocessors: few blocks
    return cudaSuccess;
}

// As aligned as on a GPU.
template <class T> cudaError_t cudaMalloc(T ** p, size_t size) {
    *p = static_cast<T *>(std::aligned_alloc(256, (size + 255) / 256 * 256));
    return cudaSuccess;
}

inline cudaError_t cudaMemcpy(void * to, const void * from, size_t size, cudaMemcpyKind) {
    std::memcpy(to, from, size);
    return cudaSuccess;
}

inline cudaError_t cudaEventCreate(cudaEvent_t *) {
    return cudaSuccess;
}

inline cudaError_t cudaEventRecord(cudaEvent_t) {
    return cudaSuccess;
}

inline cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}

inline cudaError_t cudaEventElapsedTime(float * ms, cudaEvent_t, cudaEvent_t) {
    *ms = 0;
    return cudaSuccess;
}

namespace tq_cuda {

inline void wait_for_kernels_before() {}

inline void forget_cached_lines() {}

inline void let_next_kernel_load() {}

template <auto kernel, class... Arguments>
void launch(dim3 grid, int threads, size_t shared, cudaStream_t, const Arguments &... arguments) {
    if (shared > sizeof(host_shared)) {
        std::abort();
    }
    gridDim = grid;
    blockDim = dim3((unsigned) threads);
    host_kernel = [&] { kernel(arguments...); };
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                std::memset(host_shared, 0xFF, sizeof(host_shared)); // NaN: nothing may count on what it finds
                blockIdx = dim3(x, y, z);
                host_run_block((unsigned) threads);
            }
        }
    }
}

} // namespace tq_cuda
