// The attention of cpu/attention for llama_tq._core.
#pragma once

#include <pybind11/pybind11.h>

void bind_attention(pybind11::module_ & m);
