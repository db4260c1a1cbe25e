// Operations on TQ types in ggml-metal, by csrc/metal. Part of ggml-metal.
#pragma once

#include "ggml-metal/ggml-metal-device.h"
#include "ggml-tq.h"

#ifdef __cplusplus
extern "C" {
#endif

// Whether the device computes an operation that reads or writes one of the types (ggml_tq_in): the kernels cover it,
// and this machine has compiled those that it needs.
bool ggml_metal_tq_supports(ggml_metal_device_t dev, const struct ggml_tensor * op);
// Encodes the operation and returns true, or false if none of the types is in it.
bool ggml_metal_tq_encode(ggml_metal_device_t dev, ggml_metal_encoder_t enc, const struct ggml_tensor * op);
// Bytes that an operation on the types needs behind its result.
size_t ggml_metal_tq_scratch(const struct ggml_tensor * op);

#ifdef __cplusplus
}
#endif
