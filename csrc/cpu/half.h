// IEEE half precision, for the scale of a q8_0 block, where the compiler may not know the type.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float tq_half_to_float(const unsigned char bytes[2]) {
    const unsigned h = bytes[0] | (unsigned) bytes[1] << 8;
    const int exponent = (int) (h >> 10 & 31);
    const float mantissa = (float) (h & 1023);
    const float magnitude = exponent == 31  ? (mantissa != 0.0f ? NAN : INFINITY)
                            : exponent == 0 ? ldexpf(mantissa, -24)
                                            : ldexpf(1024.0f + mantissa, exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}

// Rounds to nearest, ties to even; f is not negative and below 65520.
static inline uint16_t tq_half_from_float(float f) {
    if (f < 0x1p-14f) {
        return (uint16_t) rintf(f * 0x1p24f); // a subnormal half counts units of 2^-24
    }
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    bits += 0xFFF + (bits >> 13 & 1);
    return (uint16_t) ((bits >> 13) - (112 << 10));
}
