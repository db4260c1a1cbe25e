// The rotation of FORMAT.md, section 5, by a warp: what llama.cpp's graph does with a product of its own (ggml's
// mul_mat with a Hadamard matrix) costs a launch of a kernel for each of Q, K, V and the result, and kernels that read
// and write rows anyway do it on the way.
#pragma once

#include "runtime.h"

namespace tq_cuda {

// The orthonormal Walsh-Hadamard transform of runs of n values, a power of two from 32 to 32 * count; value 32 i + lane
// is x[i]. n = 0 leaves them as they are.
template <int count> __device__ __forceinline__ void rotate(float (&x)[count], int n, int lane) {
    if (n == 0) {
        return;
    }
    // 1 / sqrt(n): a power of two, times 1 / sqrt(2) where n is no square
    const int log2n = 31 - __clz(n);
    const float scale = __uint_as_float((log2n & 1 ? 0x3F3504F3u : 0x3F800000u) - ((unsigned) (log2n / 2) << 23));
#pragma unroll
    for (int i = 0; i < count; i++) {
        x[i] = __fmul_rn(x[i], scale);
    }
#pragma unroll 1 // where there is little to rotate, fetching the code takes longest
    for (int h = 1; h < 32; h *= 2) {
#pragma unroll
        for (int i = 0; i < count; i++) {
            const float other = __shfl_xor_sync(0xFFFFFFFFu, x[i], h);
            x[i] = lane & h ? other - x[i] : x[i] + other;
        }
    }
#pragma unroll
    for (int h = 1; h < count; h *= 2) {
        if (32 * h < n) {
#pragma unroll
            for (int i = 0; i < count; i++) {
                if (!(i & h)) {
                    const float a = x[i], b = x[i + h];
                    x[i] = a + b;
                    x[i + h] = a - b;
                }
            }
        }
    }
}

} // namespace tq_cuda
