// Types, tiers, and the choice between them.
#include <stdatomic.h>
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
_Static_assert(sizeof(tq_block_q8_0) == 34, "size of tq_block_q8_0");

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
    const char * label;
    enum tq_isa base;
    const struct tq_kernels * kernels; // NULL on other architectures
    bool (*detect)(void);
} tiers[TQ_ISA_COUNT] = {
#define TQ_ISA(NAME, name, architecture, BASE) \
    {.label = #name,                           \
     .base = TQ_ISA_##BASE,                    \
     TQ_IF_##architecture(.kernels = &tq_kernels_##name, .detect = tq_detect_##name)},
#include "isa.def"
#undef TQ_ISA
};

static const char * const ops[TQ_OP_COUNT] = {
#define TQ_OP(NAME, name) #name,
#include "op.def"
#undef TQ_OP
};

const char * tq_isa_name(int isa) {
    return isa >= 0 && isa < TQ_ISA_COUNT ? tiers[isa].label : NULL;
}

const char * tq_op_name(int op) {
    return op >= 0 && op < TQ_OP_COUNT ? ops[op] : NULL;
}

bool tq_isa_supported(enum tq_isa isa) {
    return tiers[isa].kernels && tiers[isa].detect();
}

// The first tier from `isa` down its bases that has the operation. Scalar has all.
#define TQ_OP(NAME, name)                                                 \
    static enum tq_isa owner_##name(enum tq_isa isa, enum tq_type type) { \
        while (!tiers[isa].kernels->name[type]) {                         \
            isa = tiers[isa].base;                                        \
        }                                                                 \
        return isa;                                                       \
    }
#include "op.def"
#undef TQ_OP

int tq_kernel_isa(enum tq_isa isa, enum tq_op op, enum tq_type type) {
    static enum tq_isa (*const owner[TQ_OP_COUNT])(enum tq_isa, enum tq_type) = {
#define TQ_OP(NAME, name) owner_##name,
#include "op.def"
#undef TQ_OP
    };
    return tiers[isa].kernels ? (int) owner[op](isa, type) : -1;
}

// --- the tier in use ---

// The tier that LLAMA_TQ_ISA names, -1 where it is unset, TQ_ISA_COUNT where it names none that can be used.
static int isa_from_environment(void) {
    const char * name = getenv("LLAMA_TQ_ISA");
    if (!name || !*name) {
        return -1;
    }
    for (int isa = 0; isa < TQ_ISA_COUNT; isa++) {
        if (strcmp(name, tiers[isa].label) == 0 && tq_isa_supported(isa)) {
            return isa;
        }
    }
    return TQ_ISA_COUNT;
}

static enum tq_isa preferred_isa(void) {
    const int named = isa_from_environment();
    if (named >= 0 && named < TQ_ISA_COUNT) {
        return named;
    }
    enum tq_isa isa = TQ_ISA_COUNT - 1;
    while (!tq_isa_supported(isa)) {
        isa--;
    }
    return isa;
}

const char * tq_isa_error(void) {
    static _Thread_local char message[256];
    if (isa_from_environment() != TQ_ISA_COUNT) {
        return NULL;
    }
    int used = snprintf(message, sizeof(message), "LLAMA_TQ_ISA is '%.32s'; this machine runs", getenv("LLAMA_TQ_ISA"));
    for (int isa = 0; isa < TQ_ISA_COUNT; isa++) {
        if (tq_isa_supported(isa)) {
            used += snprintf(message + used, sizeof(message) - used, " %s", tiers[isa].label);
        }
    }
    return message;
}

static atomic_int active = -1; // not chosen yet

enum tq_isa tq_isa_active(void) {
    int isa = atomic_load_explicit(&active, memory_order_relaxed);
    if (isa < 0) {
        const int preferred = preferred_isa();
        isa = atomic_compare_exchange_strong(&active, &isa, preferred) ? preferred : isa;
    }
    return isa;
}

bool tq_force_isa(enum tq_isa isa) {
    if (!tq_isa_supported(isa)) {
        return false;
    }
    atomic_store(&active, isa);
    return true;
}

void tq_reset_isa(void) {
    atomic_store(&active, (int) preferred_isa());
}

// --- the operations ---

#define KERNEL(name, type) tiers[owner_##name(tq_isa_active(), type)].kernels->name[type]

void tq_quantize_row(enum tq_type type, const float * x, void * y, int64_t n) {
    KERNEL(quantize, type)(x, y, n);
}

void tq_dequantize_row(enum tq_type type, const void * x, float * y, int64_t n) {
    KERNEL(dequantize, type)(x, y, n);
}

float tq_vec_dot(enum tq_type type, const void * x, const void * y_q8_0, int64_t n) {
    return KERNEL(vec_dot, type)(x, y_q8_0, n);
}
