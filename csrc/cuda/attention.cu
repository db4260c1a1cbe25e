// Which kernel computes an attention, and the merge of what a split cache left.
#include "attention.h"

#include "split.h"
#include "tq_blocks.h"

namespace tq_cuda {

namespace {

constexpr int merge_warps = 8;

// A block merges the splits of a query: every warp takes one split in eight.
__global__ void merge(const tq_cuda_attn a, int splits, const float * partial, const float2 * state) {
    __shared__ float sums[merge_warps][256];
    const int64_t place = blockIdx.x;
    const int head = (int) (place % a.heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    state += place * splits;
    partial += place * splits * a.v.dim;
    float most = -INFINITY;
    for (int i = lane; i < splits; i += 32) {
        most = fmaxf(most, state[i].x);
    }
    for (int step = 16; step > 0; step >>= 1) {
        most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, step));
    }
    float total = 0.0f;
    for (int i = lane; i < splits; i += 32) {
        const float2 s = state[i];
        total += s.x == -INFINITY ? 0.0f : s.y * exp2f(s.x - most);
    }
    for (int step = 16; step > 0; step >>= 1) {
        total += __shfl_xor_sync(0xFFFFFFFFu, total, step);
    }
    float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int i = warp; i < splits; i += merge_warps) {
        const float own = state[i].x, by = own == -INFINITY ? 0.0f : exp2f(own - most);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (lane + 32 * j < a.v.dim) {
                sum[j] += by * partial[(int64_t) i * a.v.dim + lane + 32 * j];
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        sums[warp][lane + 32 * j] = sum[j];
    }
    __syncthreads();
    const float scale = finish(most, total, a.sinks, head);
    for (int i = threadIdx.x; i < a.v.dim; i += blockDim.x) {
        float x = 0.0f;
#pragma unroll
        for (int j = 0; j < merge_warps; j++) {
            x += sums[j][i];
        }
        a.out[place * a.v.dim + i] = x * scale;
    }
}

bool is_size(int dim) {
    return dim == 64 || dim == 96 || dim == 128 || dim == 192 || dim == 256;
}

} // namespace

void merge_run(const tq_cuda_attn & a, int splits, const float * partial, const float2 * state, cudaStream_t stream) {
    merge<<<(unsigned) (a.streams * a.tokens * a.heads), merge_warps * 32, 0, stream>>>(a, splits, partial, state);
}

} // namespace tq_cuda

using namespace tq_cuda;

bool tq_cuda_attn_supports(const tq_cuda_attn & a, const tq_cuda_device & device) {
    const bool types = a.k.type >= 0 && a.v.type >= 0 && (a.k.type < TQ_TYPE_COUNT || a.v.type < TQ_TYPE_COUNT);
    return device.capability >= 75 && types && is_size(a.k.dim) && is_size(a.v.dim) && a.heads % a.kv_heads == 0 &&
           a.streams % a.kv_streams == 0;
}

size_t tq_cuda_attn_scratch(const tq_cuda_attn & a, const tq_cuda_device & device) {
    return prefill_takes(a, device) ? prefill_scratch(a, device) : decode_scratch(a, device);
}

void tq_cuda_attn_run(const tq_cuda_attn & a, const tq_cuda_device & device, void * scratch, cudaStream_t stream) {
    if (prefill_takes(a, device)) {
        prefill_run(a, device, scratch, stream);
    } else {
        decode_run(a, device, scratch, stream);
    }
}
