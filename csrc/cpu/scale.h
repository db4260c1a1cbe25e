// The scale word of FORMAT.md, section 2, for every tier.
#pragma once

#include <string.h>

#include "../tq_blocks.h"

static inline float tq_scale_of(int code) {
    const unsigned bits = (unsigned) (code + TQ_CODE_BIAS) << 20;
    float scale;
    memcpy(&scale, &bits, sizeof(scale));
    return scale;
}

// A field is (sign, h, m), so that its low four bits are 8h + m and add to the code 8e.
static inline float tq_field_scale(unsigned word, unsigned field) {
    const unsigned e = word >> 10 & 31;
    const unsigned bits = ((8 * e + (field & 15) + TQ_CODE_BIAS) << 20 | (field & 16) << 27) & (e == 0 ? 0u : ~0u);
    float scale;
    memcpy(&scale, &bits, sizeof(scale));
    return scale;
}

static inline void tq_decode_scales(const unsigned char word[2], float scale[2]) {
    const unsigned w = word[0] | (unsigned) word[1] << 8;
    scale[0] = tq_field_scale(w, w);
    scale[1] = tq_field_scale(w, w >> 5);
}
