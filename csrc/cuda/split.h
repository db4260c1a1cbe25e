// What the two attention kernels share: the parts of a score that are not a product of halves, and merging.
#pragma once

#include "attention.h"

namespace tq_cuda {

constexpr float headroom = 12.0f; // weights are 2^12 times what they are, so that small ones are normal halves

// attention over few query columns, which encodes a.stores: decode.cu
bool decode_turns(const tq_cuda_attn & a, const tq_cuda_device & device);
size_t decode_scratch(const tq_cuda_attn & a, const tq_cuda_device & device);
void decode_run(const tq_cuda_attn & a, const tq_cuda_device & device, void * scratch, cudaStream_t stream);
// over many: prefill.cu
bool prefill_takes(const tq_cuda_attn & a, const tq_cuda_device & device);
size_t prefill_scratch(const tq_cuda_attn & a, const tq_cuda_device & device);
void prefill_run(const tq_cuda_attn & a, const tq_cuda_device & device, void * scratch, cudaStream_t stream);

// Partial sums [row, split, v.dim] with their maxima (in log2) and sums, to a.out, rotated back.
void merge_run(const tq_cuda_attn & a, int splits, const float * partial, const float2 * state, cudaStream_t stream);
// Rotates a.out back.
void rotate_back_run(const tq_cuda_attn & a, cudaStream_t stream);

// What sums of values are multiplied with: 1 / (sum of weights, the sink included). `most` is the maximum, in log2.
// Zero where a query sees nothing.
__device__ __forceinline__ float finish(float most, float total, const float * sinks, int head) {
    if (sinks) {
        const float sink = sinks[head] * 1.44269504f;
        if (most == -INFINITY) {
            return 0.0f;
        }
        total += exp2f(sink - most + headroom);
    }
    return total == 0.0f ? 0.0f : 1.0f / total;
}

// tanh, to float precision also near zero.
__device__ __forceinline__ float capped(float x) {
    const float magnitude = fabsf(x);
    if (magnitude < 0.25f) {
        const float y = x * x;
        return x * (1.0f + y * (-0.333333333f + y * (0.133333333f + y * (-0.0539682540f + y * 0.0218694885f))));
    }
    const float e = exp2f(-2.0f * 1.44269504f * magnitude);
    return copysignf((1.0f - e) / (1.0f + e), x);
}

// The power of two that brings a value of this size below 2, and its inverse.
__device__ __forceinline__ void powers(float top, float & down, float & up) {
    const unsigned exponent = max(min(__float_as_uint(top) >> 23, 253u), 1u);
    down = __uint_as_float((254 - exponent) << 23);
    up = __uint_as_float(exponent << 23);
}

__device__ __forceinline__ float largest(float x) { // of a warp
    for (int step = 16; step > 0; step >>= 1) {
        x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
    }
    return x;
}

// Value i of G: the query against the mean as RoPE pairs them, so that G . (rotation of the mean by some angle) is q .
// (the mean at that angle) for every angle.
__device__ __forceinline__ float paired(const float * q, const float * mean, int i, int n_rot, bool neox) {
    if (i >= n_rot) {
        return q[i] * mean[i];
    }
    const bool second = neox ? i >= n_rot / 2 : i & 1;
    const int other = neox ? (second ? i - n_rot / 2 : i + n_rot / 2) : i ^ 1;
    return second ? q[i] * mean[other] - q[other] * mean[i] : q[i] * mean[i] + q[other] * mean[other];
}

} // namespace tq_cuda
