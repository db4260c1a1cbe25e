// RoPE by a warp, for the kernels that rotate what it turns: in a graph of its own it costs one more kernel each for Q,
// for K and for the centres of keys, and where the cache is not large, that is most of a token's time.
#pragma once

#include "rows.h"

namespace tq_cuda {

// A head of `n` values in shared memory, turned as a token at that position; `from` may be `to`. A lane takes whole
// pairs, and the same few instructions again and again: what runs once takes as long as its code is.
static __device__ __forceinline__ void turn(const tq_cuda_rope & r, int position, const float * from, float * to, int n,
                                            int lane) {
    const int pairs = r.dims / 2;
#pragma unroll 1
    for (int f = lane; f < n / 2; f += 32) {
        const bool turns = f < pairs, apart = turns && r.neox;
        const int i = apart ? f : 2 * f, j = apart ? f + pairs : 2 * f + 1;
        float x = from[i], y = from[j];
        if (turns) {
            const float plain = (float) position * powf(r.base, (float) f) / (r.factors ? r.factors[f] : 1.0f);
            float angle = r.scale * plain;
            if (r.mix != 0.0f) {
                const float past = ((float) f - r.low) / fmaxf(0.001f, r.high - r.low);
                const float by = (1.0f - fminf(1.0f, fmaxf(0.0f, past))) * r.mix;
                angle = angle * (1.0f - by) + plain * by;
            }
            const float c = cosf(angle) * r.stretch, s = sinf(angle) * r.stretch, before = x;
            x = before * c - y * s;
            y = before * s + y * c;
        }
        to[i] = x;
        to[j] = y;
    }
}

} // namespace tq_cuda
