// The activations of a dot product, as ggml's quantize_row_q8_0_ref defines them.
#include <float.h>

#include "../half.h"
#include "../tq_kernels.h"

void tq_quantize_row_q8_0(const float * x, void * y, int64_t n) {
    tq_block_q8_0 * block = y;
    for (int64_t i = 0; i < n; i += TQ_BLOCK, x += TQ_BLOCK, block++) {
        float amax = 0.0f;
        for (int j = 0; j < TQ_BLOCK; j++) {
            amax = fmaxf(amax, fabsf(x[j]));
        }
        const float d = amax / 127.0f;
        const float inverse = d >= FLT_MIN ? 1.0f / d : 0.0f; // ggml overflows below
        const uint16_t half = tq_half_from_float(d);
        block->d[0] = (uint8_t) half;
        block->d[1] = (uint8_t) (half >> 8);
        for (int j = 0; j < TQ_BLOCK; j++) {
            block->qs[j] = (int8_t) roundf(x[j] * inverse);
        }
    }
}
