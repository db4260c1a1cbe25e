// Which kernel computes an attention, and the merge of what a split cache left.
#include "attention.h"

#include "split.h"
#include "tq_blocks.h"

namespace tq_cuda {

namespace {

constexpr int merge_warps = 8;

// A block merges the splits of a query: every warp takes one split in eight, a lane four values of it (and 128 further
// on). Sums are read before the maximum over all splits is known, because waiting for memory is all that takes time
// here.
__global__ void merge(const tq_cuda_attn a, int splits, const float * partial, const float2 * state) {
    __shared__ __align__(16) float sums[merge_warps][256];
    __shared__ float tops[merge_warps], totals[merge_warps];
    const int64_t place = blockIdx.x;
    const int head = (int) (place % a.heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    state += place * splits;
    partial += place * splits * a.v.dim;
    float top = -INFINITY, total = 0.0f;
    float4 sum[2] = {};
#pragma unroll 4
    for (int i = warp; i < splits; i += merge_warps) {
        const float2 s = state[i];
        float4 x[2] = {};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            if (4 * lane + 128 * j < a.v.dim) {
                x[j] = *reinterpret_cast<const float4 *>(partial + (int64_t) i * a.v.dim + 4 * lane + 128 * j);
            }
        }
        const float most = fmaxf(top, s.x);
        const float before = top == -INFINITY ? 0.0f : exp2f(top - most),
                    by = s.x == -INFINITY ? 0.0f : exp2f(s.x - most);
        top = most;
        total = total * before + s.y * by;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            sum[j].x = sum[j].x * before + x[j].x * by;
            sum[j].y = sum[j].y * before + x[j].y * by;
            sum[j].z = sum[j].z * before + x[j].z * by;
            sum[j].w = sum[j].w * before + x[j].w * by;
        }
    }
#pragma unroll
    for (int j = 0; j < 2; j++) {
        *reinterpret_cast<float4 *>(&sums[warp][4 * lane + 128 * j]) = sum[j];
    }
    if (lane == 0) {
        tops[warp] = top;
        totals[warp] = total;
    }
    __syncthreads();
    float most = -INFINITY, by[merge_warps];
    total = 0.0f;
#pragma unroll
    for (int j = 0; j < merge_warps; j++) {
        most = fmaxf(most, tops[j]);
    }
#pragma unroll
    for (int j = 0; j < merge_warps; j++) {
        by[j] = tops[j] == -INFINITY ? 0.0f : exp2f(tops[j] - most);
        total += by[j] * totals[j];
    }
    const float scale = finish(most, total, a.sinks, head);
    for (int i = threadIdx.x; i < a.v.dim; i += blockDim.x) {
        float x = 0.0f;
#pragma unroll
        for (int j = 0; j < merge_warps; j++) {
            x += by[j] * sums[j][i];
        }
        a.out[place * a.v.dim + i] = x * scale;
    }
}

static bool is_size(int dim) {
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
