// What the encoders know of a type. Constants wherever they are used with a constant type, so that they leave no trace.
#pragma once

#include "../../tq_tables.h"
#include "../tq_kernels.h"
#include "tq_bins.h"

struct tq_spec {
    int bits;                         // of an index
    float start;                      // first scale tried, as a share of the largest magnitude
    int count;                        // scales tried
    const signed char * codebook[2];  // [1 << bits]
    const signed char (*bins[2])[16]; // [4][16], see tq_bins.h
};

static const struct tq_spec tq_specs[TQ_TYPE_COUNT] = {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    {bits,                                                 \
     start / 16384.0f,                                     \
     count,                                                \
     {tq_codebook_##name[0], tq_codebook_##name[1]},       \
     {tq_bins_##name[0][0], tq_bins_##name[1][0]}},
#include "../../types.def"
#undef TQ_TYPE
};

// Whether the distance to the nearest level can exceed 127. The first scale tried is up to an eighth below its anchor.
static inline bool tq_is_wide(const struct tq_spec * s) {
    const int reach = (int) (1.125f / s->start);
    int outermost = 127;
    for (int c = 0; c < 2; c++) {
        const int low = -s->codebook[c][0], high = s->codebook[c][(1 << s->bits) - 1];
        outermost = low < outermost ? low : outermost;
        outermost = high < outermost ? high : outermost;
    }
    return reach - outermost > 127;
}
