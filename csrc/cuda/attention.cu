// Which kernel computes an attention, and the merge of what a split cache left.
#include "attention.h"

#include "rotate.cuh"
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
    wait_for_kernels_before();
    let_next_kernel_load();
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
    // The rotation of 64 values by warps of 32: the last step adds or subtracts what another warp has.
    const float scale = finish(most, total, a.sinks, head);
    const auto value = [&](int i) {
        float x = 0.0f;
#pragma unroll
        for (int j = 0; j < merge_warps; j++) {
            x += by[j] * sums[j][i];
        }
        return x * scale;
    };
    const int i = threadIdx.x;
    if (32 * warp < a.v.dim) {
        if (a.v_rotation <= 32) {
            float x[1] = {value(i)};
            rotate(x, a.v_rotation, lane);
            a.out[place * a.v.dim + i] = x[0];
        } else {
            float x[2] = {value(i & ~32), value(i | 32)};
            rotate(x, 64, lane);
            a.out[place * a.v.dim + i] = i & 32 ? x[1] : x[0];
        }
    }
}

// Results that no other kernel rotates back: a warp for each run of 32 or 64 values.
template <int count> __global__ void rotate_runs(float * out, int64_t runs) {
    wait_for_kernels_before();
    let_next_kernel_load();
    const int lane = threadIdx.x % 32;
    const int64_t run = (int64_t) blockIdx.x * merge_warps + threadIdx.x / 32;
    if (run < runs) {
        float x[count];
#pragma unroll
        for (int i = 0; i < count; i++) {
            x[i] = out[32 * (count * run + i) + lane];
        }
        rotate(x, 32 * count, lane);
#pragma unroll
        for (int i = 0; i < count; i++) {
            out[32 * (count * run + i) + lane] = x[i];
        }
    }
}

static bool is_rotation(int n, int dim, int most) {
    return n == 0 || (n >= 32 && n <= most && (n & (n - 1)) == 0 && dim % n == 0);
}

static bool is_size(int dim) {
    return dim == 64 || dim == 96 || dim == 128 || dim == 192 || dim == 256;
}

} // namespace

void merge_run(const tq_cuda_attn & a, int splits, const float * partial, const float2 * state, cudaStream_t stream) {
    launch<merge>(dim3((unsigned) (a.streams * a.tokens * a.heads)), merge_warps * 32, 0, stream, a, splits, partial,
                  state);
}

void rotate_back_run(const tq_cuda_attn & a, cudaStream_t stream) {
    if (a.v_rotation) {
        const int64_t runs = (int64_t) a.streams * a.tokens * a.heads * a.v.dim / a.v_rotation;
        const dim3 grid((unsigned) ((runs + merge_warps - 1) / merge_warps));
        if (a.v_rotation == 32) {
            launch<rotate_runs<1>>(grid, merge_warps * 32, 0, stream, a.out, runs);
        } else {
            launch<rotate_runs<2>>(grid, merge_warps * 32, 0, stream, a.out, runs);
        }
    }
}

} // namespace tq_cuda

using namespace tq_cuda;

bool tq_cuda_supports(const tq_cuda_device & device) {
    return device.capability >= 75;
}

bool tq_cuda_attn_supports(const tq_cuda_attn & a, const tq_cuda_device & device) {
    const bool types = a.k.type >= 0 && a.v.type >= 0 && (a.k.type < TQ_TYPE_COUNT || a.v.type < TQ_TYPE_COUNT);
    return tq_cuda_supports(device) && types && is_size(a.k.dim) && is_size(a.v.dim) && a.heads % a.kv_heads == 0 &&
           a.streams % a.kv_streams == 0 && is_rotation(a.k_rotation, a.k.dim, 256) &&
           is_rotation(a.v_rotation, a.v.dim, 64);
}

bool tq_cuda_attn_turns(const tq_cuda_attn & a, const tq_cuda_device & device) {
    return tq_cuda_attn_supports(a, device) && !prefill_takes(a, device) && decode_turns(a, device);
}

size_t tq_cuda_attn_scratch(const tq_cuda_attn & a, const tq_cuda_device & device) {
    return prefill_takes(a, device) ? prefill_scratch(a, device) : decode_scratch(a, device);
}

void tq_cuda_attn_run(const tq_cuda_attn & a, const tq_cuda_device & device, void * scratch, cudaStream_t stream) {
    if (prefill_takes(a, device)) {
        tq_cuda_encode(a.stores, a.store_count, stream);
        prefill_run(a, device, scratch, stream);
    } else {
        decode_run(a, device, scratch, stream);
    }
}
