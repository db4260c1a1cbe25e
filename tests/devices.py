"""The devices that tests of llama.cpp run on: the CPU, and the GPUs where there are any."""

from __future__ import annotations

import ctypes

import llama_cpp.llama_cpp as api
import pytest

CPU, GPU, METAL = "CPU", "CUDA0", "MTL0"  # ggml's names
GPUS = [pytest.param(GPU, marks=pytest.mark.cuda), pytest.param(METAL, marks=pytest.mark.metal)]
DEVICES = [CPU, *GPUS]


def handle(name: str) -> int:
    """The ggml_backend_dev_t."""
    api.llama_backend_init()  # backends may be modules
    function = api._lib.ggml_backend_dev_by_name
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    found = function(name.encode())
    option = "METAL" if name == METAL else "CUDA"
    assert found, f'llama.cpp has no device {name}; CMAKE_ARGS="-DGGML_{option}=ON" pip install .'
    return found
