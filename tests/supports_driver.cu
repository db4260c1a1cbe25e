// What tq_cuda_attn_supports says: capability, types and sizes of K and V, and 0 or 1. For test_cuda_supports.py.
#include <cstdio>

#include "cuda/attention.h"

int main() {
    const int sizes[] = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512};
    tq_cuda_attn a = {};
    a.streams = a.kv_streams = a.tokens = a.heads = a.kv_heads = 1;
    for (const int capability : {0, 50, 61, 70, 72, 75, 80, 86, 90, 120}) { // 0: another vendor's
        const tq_cuda_device device = {capability, 80, 96 * 1024};
        for (a.k.type = -1; a.k.type <= TQ_CUDA_F16; a.k.type++) {
            for (a.v.type = -1; a.v.type <= TQ_CUDA_F16; a.v.type++) {
                for (const int k : sizes) {
                    for (const int v : sizes) {
                        a.k.dim = k;
                        a.v.dim = v;
                        printf("%d %d %d %d %d %d\n", capability, a.k.type, a.v.type, k, v,
                               tq_cuda_attn_supports(a, device));
                    }
                }
            }
        }
    }
}
