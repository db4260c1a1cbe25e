// Public C interface of the TQ types. Thread safe; tq_force_isa and tq_reset_isa are for the whole process.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tq_blocks.h"

#ifdef __cplusplus
extern "C" {
#endif

// As ggml does it: MinGW's linker exports everything, but nothing else once something is exported by name.
#if defined(_WIN32) && !defined(__MINGW32__) && defined(TQ_BUILD)
#    define TQ_API __declspec(dllexport)
#elif defined(_WIN32) && !defined(__MINGW32__)
#    define TQ_API __declspec(dllimport)
#else
#    define TQ_API __attribute__((visibility("default")))
#endif

struct tq_type_info {
    const char * name;
    int id; // enum ggml_type
    int bits;
    size_t block_bytes;
};

enum tq_isa {
#define TQ_ISA(NAME, name, architecture, BASE) TQ_ISA_##NAME,
#include "cpu/isa.def"
#undef TQ_ISA
    TQ_ISA_COUNT,
};

enum tq_op {
#define TQ_OP(NAME, name) TQ_OP_##NAME,
#include "cpu/op.def"
#undef TQ_OP
    TQ_OP_COUNT,
};

// NULL when out of range.
TQ_API const struct tq_type_info * tq_type_info(int type);
// The dense number of a ggml type id, or -1.
TQ_API int tq_type_from_id(int id);

// n values, a multiple of 32; no alignment is assumed. Rows of n = 0 are allowed.
TQ_API void tq_quantize_row(enum tq_type type, const float * x, void * y, int64_t n);
TQ_API void tq_dequantize_row(enum tq_type type, const void * x, float * y, int64_t n);
// Dot product of a TQ row with a q8_0 row.
TQ_API float tq_vec_dot(enum tq_type type, const void * x, const void * y_q8_0, int64_t n);

// The q8_0 row that ggml makes of n finite values, a multiple of 32, below 127 * 65520 in magnitude.
TQ_API void tq_quantize_row_q8_0(const float * x, void * y, int64_t n);

TQ_API const char * tq_isa_name(int isa); // NULL when out of range
TQ_API const char * tq_op_name(int op);   // NULL when out of range
// Whether this build has the tier and this machine runs it.
TQ_API bool tq_isa_supported(enum tq_isa isa);
// The tier whose kernel works when `isa` is active: itself or one that it builds on; -1 where the build lacks the tier.
TQ_API int tq_kernel_isa(enum tq_isa isa, enum tq_op op, enum tq_type type);

// The tier in use: the best one, or the one that the environment variable LLAMA_TQ_ISA names.
TQ_API enum tq_isa tq_isa_active(void);
// Uses only this tier from now on, in the whole process; false, and no change, where it is not supported.
TQ_API bool tq_force_isa(enum tq_isa isa);
// Ends tq_force_isa.
TQ_API void tq_reset_isa(void);
// NULL, or why LLAMA_TQ_ISA cannot be followed. Programs refuse to start on it; the kernels then run the best tier.
TQ_API const char * tq_isa_error(void);

#ifdef __cplusplus
}
#endif
