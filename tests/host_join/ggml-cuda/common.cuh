// In place of ggml-cuda's: as much of it as csrc/hooks asks for, over the kernels on the host (../../host_cuda).
#pragma once

#include <cstdlib>

#include "cuda/runtime.h"
#include "ggml-impl.h"
#include "ggml.h"

#define GGML_CUDA_CC_IS_NVIDIA(cc) ((cc) > 0)
#define CUDA_CHECK(x) ((void) (x))

struct ggml_cuda_device_info {
    struct {
        int cc, nsm;
        size_t smpbo;
    } devices[1];
};

inline const ggml_cuda_device_info & ggml_cuda_info() {
    static const ggml_cuda_device_info info = {{{900, 6, 227 * 1024}}};
    return info;
}

struct ggml_cuda_pool {};

template <class T> struct ggml_cuda_pool_alloc {
    explicit ggml_cuda_pool_alloc(ggml_cuda_pool &) {}

    ~ggml_cuda_pool_alloc() { std::free(memory); }

    T * alloc(size_t n) {
        memory = static_cast<T *>(std::aligned_alloc(256, (n * sizeof(T) + 255) / 256 * 256));
        return memory;
    }

    T * memory = nullptr;
};

struct ggml_backend_cuda_context {
    int device = 0;
    ggml_cuda_pool memory;

    cudaStream_t stream() { return nullptr; }

    ggml_cuda_pool & pool() { return memory; }
};
