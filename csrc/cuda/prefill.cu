#include "split.h"
namespace tq_cuda {
bool prefill_takes(const tq_cuda_attn &, const tq_cuda_device &) { return false; }
size_t prefill_scratch(const tq_cuda_attn &, const tq_cuda_device &) { return 0; }
void prefill_run(const tq_cuda_attn &, const tq_cuda_device &, void *, cudaStream_t) {}
}
