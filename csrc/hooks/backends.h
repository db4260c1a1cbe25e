// Where ggml looks for backends that are modules (GGML_BACKEND_DL). Part of ggml.
#pragma once

// The folder that ggml itself was loaded from: a package has its backends there, whatever program loads it, from
// whatever working folder. Null for the places that upstream knows: where backends are linked in, GGML_BACKEND_DIR
// names a folder, or the system is Windows.
const char * ggml_tq_backend_folder();
