// Types, tiers, and the choice between them.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tq_kernels.h"

static const struct tq_type_info types[TQ_TYPE_COUNT] = {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) {#name, id, bits, bytes},
#include "../types.def"
#undef TQ_TYPE
};

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    _Static_assert(sizeof(tq_block_##name) == bytes, "size of tq_block_" #name);
#include "../types.def"
#undef TQ_TYPE

const struct tq_type_info * tq_type_info(int type) {
    return type >= 0 && type < TQ_TYPE_COUNT ? &types[type] : NULL;
}

int tq_type_from_id(int id) {
    for (int type = 0; type < TQ_TYPE_COUNT; type++) {
        if (types[type].id == id) {
            return type;
        }
    }
    return -1;
}

static const struct {
    const char * name;
    const struct tq_kernels * kernels;
} tiers[TQ_ISA_COUNT] = {
#define TQ_ISA(NAME, name) {#name, &tq_kernels_##name},
#include "isa.def"
#undef TQ_ISA
};

const char * tq_isa_name(int isa) {
    return isa >= 0 && isa < TQ_ISA_COUNT ? tiers[isa].name : NULL;
}

bool tq_isa_supported(enum tq_isa isa) {
    return isa == TQ_ISA_SCALAR;
}

static enum tq_isa active = TQ_ISA_SCALAR;

enum tq_isa tq_isa_active(void) {
    return active;
}

bool tq_force_isa(enum tq_isa isa) {
    if (!tq_isa_supported(isa)) {
        return false;
    }
    active = isa;
    return true;
}

void tq_reset_isa(void) {
    active = TQ_ISA_SCALAR;
}

void tq_quantize_row(enum tq_type type, const float * x, void * y, int64_t n) {
    tiers[active].kernels->quantize[type](x, y, n);
}

void tq_dequantize_row(enum tq_type type, const void * x, float * y, int64_t n) {
    tiers[active].kernels->dequantize[type](x, y, n);
}

float tq_vec_dot(enum tq_type type, const void * x, const void * y_q8_0, int64_t n) {
    return tiers[active].kernels->vec_dot[type](x, y_q8_0, n);
}
