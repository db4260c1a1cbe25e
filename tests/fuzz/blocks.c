// Arbitrary blocks: every tier decodes them to the bits of the scalar one, and takes their dot product.
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    struct input in = {data, size, 0};
    const enum tq_type type = (enum tq_type)(next(&in) % TQ_TYPE_COUNT);
    const size_t blocks = 1 + next(&in) % 40, n = blocks * TQ_BLOCK;
    void * row = filled(&in, blocks * tq_type_info(type)->block_bytes);
    void * activations = filled(&in, blocks * sizeof(tq_block_q8_0));
    float *first = malloc(n * sizeof(float)), *decoded = malloc(n * sizeof(float));
    for (int isa = next_tier(-1); isa >= 0; isa = next_tier(isa)) {
        tq_dequantize_row(type, row, isa == TQ_ISA_SCALAR ? first : decoded, (int64_t) n);
        if (isa != TQ_ISA_SCALAR) {
            require_equal(first, decoded, n * sizeof(float), "what is decoded", isa);
        }
        volatile float dot = tq_vec_dot(type, row, activations, (int64_t) n);
        (void) dot;
    }
    free(row);
    free(activations);
    free(first);
    free(decoded);
    return 0;
}
