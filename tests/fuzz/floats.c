// Arbitrary floats: every tier encodes them to the bytes of the scalar one, and decodes those.
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    struct input in = {data, size, 0};
    const enum tq_type type = (enum tq_type)(next(&in) % TQ_TYPE_COUNT);
    const size_t blocks = 1 + next(&in) % 9, n = blocks * TQ_BLOCK;
    const size_t bytes = blocks * tq_type_info(type)->block_bytes;
    float *x = filled(&in, n * sizeof(float)), *decoded = malloc(n * sizeof(float));
    void *first = malloc(bytes), *encoded = malloc(bytes);
    for (int isa = next_tier(-1); isa >= 0; isa = next_tier(isa)) {
        tq_quantize_row(type, x, isa == TQ_ISA_SCALAR ? first : encoded, (int64_t) n);
        if (isa != TQ_ISA_SCALAR) {
            require_equal(first, encoded, bytes, "what is encoded", isa);
        }
        tq_dequantize_row(type, first, decoded, (int64_t) n);
    }
    free(x);
    free(decoded);
    free(first);
    free(encoded);
    return 0;
}
