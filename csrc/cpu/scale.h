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

// The inverse, for the codes and signs that an encoder chose under exponent e and codebook c.
static inline void tq_encode_scales(unsigned char word[2], int e, int c, const int code[2],
                                    const unsigned negative[2]) {
    unsigned bits = (unsigned) (e << 10 | c << 15);
    for (int k = 0; k < 2; k++) {
        bits |= ((unsigned) (code[k] - 8 * e) | negative[k] << 4) << 5 * k;
    }
    word[0] = (unsigned char) bits;
    word[1] = (unsigned char) (bits >> 8);
}
