#include "backends.h"

#if defined(GGML_BACKEND_DL) && !defined(GGML_BACKEND_DIR) && !defined(_WIN32)

#    include <dlfcn.h>

#    include <filesystem>
#    include <string>

const char * ggml_tq_backend_folder() {
    static const std::string folder = [] {
        Dl_info info;
        dladdr(reinterpret_cast<const void *>(&ggml_tq_backend_folder), &info);
        return std::filesystem::absolute(info.dli_fname).lexically_normal().parent_path().string();
    }();
    return folder.c_str();
}

#else

const char * ggml_tq_backend_folder() {
    return nullptr;
}

#endif
