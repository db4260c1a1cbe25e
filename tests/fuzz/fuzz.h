// What the targets for csrc/cpu share. An input is a few numbers and then values; where it ends, they begin again.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tq.h"
#include "tq_blocks.h"

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

struct input {
    const uint8_t * data;
    size_t size, at;
};

static inline uint8_t next(struct input * in) {
    return in->size ? in->data[in->at++ % in->size] : 0;
}

// Memory of exactly that size, so that an access outside of it is noticed.
static inline void * filled(struct input * in, size_t size) {
    uint8_t * p = malloc(size);
    for (size_t i = 0; i < size; i++) {
        p[i] = next(in);
    }
    return p;
}

// The next tier after isa that this machine runs, or -1; tq_force_isa has been called for it.
static inline int next_tier(int isa) {
    while (tq_isa_name(++isa)) {
        if (tq_force_isa((enum tq_isa) isa)) {
            return isa;
        }
    }
    return -1;
}

// Ends the process, as a sanitizer would, unless the bytes are equal.
static inline void require_equal(const void * a, const void * b, size_t size, const char * what, int isa) {
    if (memcmp(a, b, size) != 0) {
        fprintf(stderr, "%s: %s differs from scalar\n", tq_isa_name(isa), what);
        abort();
    }
}
