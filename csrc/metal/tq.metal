// The kernels of the TQ types for Apple GPUs: hooks/metal.cpp compiles this file, with what it includes, on the Mac.
// tests/host_metal compiles it as C++.
#include <metal_stdlib>

#if __METAL_VERSION__ >= 320
#    pragma METAL fp math_mode(safe)
#    pragma METAL fp contract(off) // sums of products say fma
#endif

using namespace metal;

#ifndef TQ_METAL_CONSTANT // the tests have their own
#    define TQ_METAL_CONSTANT(type, name, index) constant type name [[function_constant(index)]]
#    define TQ_METAL_SHARED [[threadgroup(0)]]
#    define TQ_METAL_GROUP [[threadgroup_position_in_grid]]
#    define TQ_METAL_SIMD_INDEX [[simdgroup_index_in_threadgroup]]
#    define TQ_METAL_LANE [[thread_index_in_simdgroup]]
#    define TQ_METAL_PLAIN(name)
#    define TQ_METAL_INSTANCE(name, ...) template [[host_name(name)]] kernel decltype(__VA_ARGS__) __VA_ARGS__;
#endif

#include "decode.h"
#include "prefill.h"
