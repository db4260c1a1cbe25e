// What a tier provides: one table of functions, indexed by type. A missing one is the base tier's (isa.def).
#pragma once

#include "../tq.h"
#include "../tq_blocks.h"

#define TQ_INLINE static inline __attribute__((always_inline))

typedef void (*tq_quantize_fn)(const float * x, void * y, int64_t n);
typedef void (*tq_dequantize_fn)(const void * x, float * y, int64_t n);
typedef float (*tq_vec_dot_fn)(const void * x, const void * y_q8_0, int64_t n);

struct tq_kernels {
#define TQ_OP(NAME, name) tq_##name##_fn name[TQ_TYPE_COUNT];
#include "op.def"
#undef TQ_OP
};

// Tables exist for the tiers of this architecture only; TQ_IF_<architecture>(x) is x there and nothing elsewhere.
#define TQ_IF_any(...) __VA_ARGS__
#if defined(__x86_64__)
#    define TQ_IF_x86_64(...) __VA_ARGS__
#else
#    define TQ_IF_x86_64(...)
#endif
#if defined(__aarch64__)
#    define TQ_IF_aarch64(...) __VA_ARGS__
#else
#    define TQ_IF_aarch64(...)
#endif

// Whether the CPU and the operating system run a tier.
#define TQ_ISA(NAME, name, architecture, BASE) \
    TQ_IF_##architecture(extern const struct tq_kernels tq_kernels_##name; bool tq_detect_##name(void);)
#include "isa.def"
#undef TQ_ISA
