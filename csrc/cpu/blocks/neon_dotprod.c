// NEON with the dot product instructions of ARMv8.2; only the dot products differ from neon.c.
#include <arm_neon.h>

static inline int32x4_t dot_quads(int8x16_t levels, int8x16_t q) {
    return vdotq_s32(vdupq_n_s32(0), levels, q);
}

#include "neon_dot.h"

const struct tq_kernels tq_kernels_neon_dotprod = {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) vec_dot_##name,
    .vec_dot =
        {
#include "../../types.def"
        },
#undef TQ_TYPE
};
