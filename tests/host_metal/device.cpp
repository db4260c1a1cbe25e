// In place of ggml-metal-device.m and ggml-metal-context.m, which need a Mac: what they tell the rest of ggml-metal,
// with kernels run by emulator.h. The rest is upstream's, so a graph goes through the patched backend and
// hooks/metal.cpp.
//
// Between two barriers, what is dispatched runs in the reverse order, as it may on a GPU.
#include <mutex>

#include "emulator.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "ggml-metal-common.h"
#include "ggml-metal-context.h"
#include "ggml-metal-device.h"
#include "ggml-metal-fusion.h"
#include "ggml-metal-impl.h"
#include "ggml-metal-ops.h"
#include "hooks/metal.h"

struct ggml_metal_device {
    ggml_metal_device_props props;
    ggml_metal_fusion_info * finfo;
};

struct ggml_metal_library {
    ggml_metal_device_t dev;
    ggml_metal_pipelines_t pipelines;
};

struct ggml_metal_cv {
    std::map<int, int> values;
};

struct ggml_metal_pipeline {
    std::string kernel;
    std::map<int, int> constants;
};

struct ggml_metal_encoder {
    host_metal::launch next;
    ggml_metal_pipeline * pipeline = nullptr;
    std::vector<std::function<void()>> pending;

    void finish() {
        for (auto p = pending.rbegin(); p != pending.rend(); p++) {
            (*p)();
        }
        pending.clear();
    }
};

struct ggml_metal_buffer {
    std::vector<char> bytes;
    char * base;
    size_t size;
};

struct ggml_metal {
    ggml_metal_device_t dev;
};

extern "C" {

#include "supports.inc" // ggml_metal_device_supports_op as it is in ggml-metal-device.m

// --- function constants, pipelines, library ---

ggml_metal_cv_t ggml_metal_cv_init(void) {
    return new ggml_metal_cv;
}

void ggml_metal_cv_free(ggml_metal_cv_t cv) {
    delete cv;
}

void ggml_metal_cv_set_int16(ggml_metal_cv_t cv, int16_t value, int32_t idx) {
    cv->values[idx] = value;
}

void ggml_metal_cv_set_int32(ggml_metal_cv_t cv, int32_t value, int32_t idx) {
    cv->values[idx] = value;
}

void ggml_metal_cv_set_bool(ggml_metal_cv_t cv, bool value, int32_t idx) {
    cv->values[idx] = value;
}

void ggml_metal_pipeline_free(ggml_metal_pipeline_t pipeline) {
    delete pipeline;
}

int ggml_metal_pipeline_max_theads_per_threadgroup(struct ggml_metal_pipeline_with_params) {
    const char * limit = getenv("HOST_METAL_THREADS");
    return limit ? atoi(limit) : 1024;
}

ggml_metal_library_t ggml_metal_library_init_from_source(ggml_metal_device_t dev, const char * source, bool) {
    if (getenv("HOST_METAL_NO_COMPILER")) {
        return nullptr;
    }
    for (const auto & kernel : host_metal::kernels().kernels) { // that its names are those of the source
        if (!strstr(source, kernel.first.c_str())) {
            host_metal::fail("the source has no kernel " + kernel.first);
        }
    }
    return new ggml_metal_library {dev, ggml_metal_pipelines_init()};
}

ggml_metal_device_t ggml_metal_library_get_device(ggml_metal_library_t lib) {
    return lib->dev;
}

struct ggml_metal_pipeline_with_params ggml_metal_library_get_pipeline(ggml_metal_library_t lib, const char * name) {
    return {ggml_metal_pipelines_get(lib->pipelines, name), 0, 0, 0, 0, false, false};
}

struct ggml_metal_pipeline_with_params ggml_metal_library_compile_pipeline(ggml_metal_library_t lib, const char * base,
                                                                           const char * name, ggml_metal_cv_t cv) {
    if (!host_metal::kernels().kernels.count(base)) {
        return {};
    }
    ggml_metal_pipelines_add(lib->pipelines, name,
                             new ggml_metal_pipeline {base, cv ? cv->values : decltype(cv->values) {}});
    return ggml_metal_library_get_pipeline(lib, name);
}

// --- encoder ---

ggml_metal_encoder_t ggml_metal_encoder_init(ggml_metal_cmd_buf_t, bool) {
    return new ggml_metal_encoder;
}

void ggml_metal_encoder_free(ggml_metal_encoder_t encoder) {
    delete encoder;
}

void ggml_metal_encoder_debug_group_push(ggml_metal_encoder_t, const char *) {}

void ggml_metal_encoder_debug_group_pop(ggml_metal_encoder_t) {}

void ggml_metal_encoder_set_pipeline(ggml_metal_encoder_t encoder, struct ggml_metal_pipeline_with_params pipeline) {
    encoder->next = {};
    encoder->pipeline = pipeline.pipeline;
}

void ggml_metal_encoder_set_bytes(ggml_metal_encoder_t encoder, void * data, size_t size, int idx) {
    if (idx != 0 || size > 4096) {
        host_metal::fail("arguments are buffer 0, of at most 4096 bytes");
    }
    encoder->next.bytes.assign((char *) data, (char *) data + size);
}

void ggml_metal_encoder_set_buffer(ggml_metal_encoder_t encoder, struct ggml_metal_buffer_id buffer, int idx) {
    encoder->next.buffers[idx] = (char *) buffer.metal + buffer.offs;
}

void ggml_metal_encoder_set_threadgroup_memory_size(ggml_metal_encoder_t encoder, size_t size, int) {
    if (size % 16 != 0) {
        host_metal::fail("threadgroup memory comes in sixteens of bytes");
    }
    encoder->next.shared = size;
}

void ggml_metal_encoder_dispatch_threadgroups(ggml_metal_encoder_t encoder, int tg0, int tg1, int tg2, int tptg0,
                                              int tptg1, int tptg2) {
    encoder->next.groups = {(unsigned) tg0, (unsigned) tg1, (unsigned) tg2};
    encoder->next.threads = {(unsigned) tptg0, (unsigned) tptg1, (unsigned) tptg2};
    encoder->pending.push_back([pipeline = encoder->pipeline, launch = encoder->next] {
        host_metal::run(pipeline->kernel, pipeline->constants, launch);
    });
}

void ggml_metal_encoder_memory_barrier(ggml_metal_encoder_t encoder) {
    encoder->finish();
}

void ggml_metal_encoder_end_encoding(ggml_metal_encoder_t encoder) {
    encoder->finish();
}

// --- device ---

ggml_metal_device_t ggml_metal_device_init(int, int) {
    ggml_metal_device_t dev = new ggml_metal_device {};
    snprintf(dev->props.name, sizeof(dev->props.name), "MTL0");
    snprintf(dev->props.desc, sizeof(dev->props.desc), "emulation");
    dev->props.max_buffer_size = dev->props.max_working_set_size = (size_t) 1 << 32;
    dev->props.max_theadgroup_memory_size = host_metal::most_shared;
    dev->props.has_simdgroup_reduction = dev->props.has_simdgroup_mm = !getenv("HOST_METAL_NO_MATRICES");
    dev->props.has_bfloat = true;
    dev->props.has_unified_memory = dev->props.use_shared_buffers = true;
    dev->finfo = ggml_metal_fusion_info_init(false, 0);
    return dev;
}

void ggml_metal_device_free(ggml_metal_device_t dev) {
    ggml_metal_fusion_info_free(dev->finfo);
    delete dev;
}

const struct ggml_metal_device_props * ggml_metal_device_get_props(ggml_metal_device_t dev) {
    return &dev->props;
}

const char * ggml_metal_device_id_token(enum ggml_metal_device_id) {
    return "emulation";
}

ggml_metal_library_t ggml_metal_device_get_library(ggml_metal_device_t) {
    return nullptr; // upstream's kernels are not here
}

struct ggml_metal_fusion_info * ggml_metal_device_get_fusion_info(ggml_metal_device_t dev) {
    return dev->finfo;
}

void ggml_metal_device_get_memory(ggml_metal_device_t dev, size_t * free, size_t * total) {
    *free = *total = dev->props.max_working_set_size;
}

ggml_metal_event_t ggml_metal_device_event_init(ggml_metal_device_t) {
    return nullptr;
}

void ggml_metal_device_event_free(ggml_metal_device_t, ggml_metal_event_t) {}

void ggml_metal_device_event_synchronize(ggml_metal_device_t, ggml_metal_event_t) {}

// --- buffers ---

ggml_metal_buffer_t ggml_metal_buffer_init(ggml_metal_device_t, size_t size, bool) {
    ggml_metal_buffer_t buf = new ggml_metal_buffer {std::vector<char>(size + 4096), nullptr, size};
    buf->base = (char *) (((uintptr_t) buf->bytes.data() + 4095) / 4096 * 4096);
    return buf;
}

ggml_metal_buffer_t ggml_metal_buffer_map(ggml_metal_device_t, void * ptr, size_t size, size_t) {
    return new ggml_metal_buffer {{}, (char *) ptr, size};
}

void ggml_metal_buffer_free(ggml_metal_buffer_t buf) {
    delete buf;
}

void * ggml_metal_buffer_get_base(ggml_metal_buffer_t buf) {
    return buf->base;
}

bool ggml_metal_buffer_is_shared(ggml_metal_buffer_t) {
    return true;
}

void ggml_metal_buffer_memset_tensor(ggml_metal_buffer_t, struct ggml_tensor * t, uint8_t value, size_t offset,
                                     size_t size) {
    memset((char *) t->data + offset, value, size);
}

void ggml_metal_buffer_set_tensor(ggml_metal_buffer_t, struct ggml_tensor * t, const void * data, size_t offset,
                                  size_t size) {
    memcpy((char *) t->data + offset, data, size);
}

void ggml_metal_buffer_get_tensor(ggml_metal_buffer_t, const struct ggml_tensor * t, void * data, size_t offset,
                                  size_t size) {
    memcpy(data, (const char *) t->data + offset, size);
}

bool ggml_metal_buffer_cpy_tensor(ggml_metal_buffer_t, const struct ggml_tensor *, struct ggml_tensor *) {
    return false;
}

void ggml_metal_buffer_clear(ggml_metal_buffer_t buf, uint8_t value) {
    memset(buf->base, value, buf->size);
}

struct ggml_metal_buffer_id ggml_metal_buffer_get_id(ggml_metal_buffer_t buf, const struct ggml_tensor * t) {
    const size_t offset = (size_t) ((char *) t->data - buf->base);
    if (offset + ggml_nbytes(t) > buf->size) {
        host_metal::fail("a tensor is not in its buffer");
    }
    return {buf->base, offset};
}

// --- backend ---

ggml_metal_t ggml_metal_init(ggml_metal_device_t dev) {
    return new ggml_metal {dev};
}

void ggml_metal_free(ggml_metal_t ctx) {
    delete ctx;
}

const char * ggml_metal_get_name(ggml_metal_t ctx) {
    return ctx->dev->props.name;
}

void ggml_metal_synchronize(ggml_metal_t) {}

void ggml_metal_set_tensor_async(ggml_metal_t, struct ggml_tensor * t, const void * data, size_t offset, size_t size) {
    memcpy((char *) t->data + offset, data, size);
}

void ggml_metal_get_tensor_async(ggml_metal_t, const struct ggml_tensor * t, void * data, size_t offset, size_t size) {
    memcpy(data, (const char *) t->data + offset, size);
}

bool ggml_metal_cpy_tensor_async(ggml_metal_t, ggml_metal_t, const struct ggml_tensor *, struct ggml_tensor *) {
    return false;
}

// What is not about the types is left to the CPU, in place: upstream's kernels are not here.
enum ggml_status ggml_metal_graph_compute(ggml_metal_t ctx, struct ggml_cgraph * gf) {
    static const ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    for (int begin = 0, end = 0; begin < gf->n_nodes; begin = end) {
        const bool is_ours = ggml_tq_in(gf->nodes[begin]);
        while (end < gf->n_nodes && ggml_tq_in(gf->nodes[end]) == is_ours) {
            end++;
        }
        if (!is_ours) {
            ggml_cgraph part = ggml_graph_view(gf, begin, end);
            ggml_backend_graph_compute(cpu, &part);
            continue;
        }
        ggml_metal_op_t op = ggml_metal_op_init(ctx->dev, nullptr, gf, ctx->dev->finfo, begin, end, true, false, 0);
        for (int i = 0; i < ggml_metal_op_n_nodes(op);) {
            i += ggml_metal_op_encode(op, i);
        }
        ggml_metal_op_free(op);
    }
    return GGML_STATUS_SUCCESS;
}

void ggml_metal_graph_optimize(ggml_metal_t, struct ggml_cgraph * gf) {
    ggml_graph_optimize(gf);
}

void ggml_metal_event_record(ggml_metal_t, ggml_metal_event_t) {}

void ggml_metal_event_wait(ggml_metal_t, ggml_metal_event_t) {}

void ggml_metal_set_n_cb(ggml_metal_t, int) {}

void ggml_metal_set_abort_callback(ggml_metal_t, ggml_abort_callback, void *) {}

bool ggml_metal_supports_family(ggml_metal_t, int) {
    return true;
}

void ggml_metal_capture_next_compute(ggml_metal_t) {}

} // extern "C"
