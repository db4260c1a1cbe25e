"""The devices that tests of llama.cpp run on: the CPU, and an NVIDIA GPU where there is one."""

from __future__ import annotations

import ctypes

import llama_cpp.llama_cpp as api
import pytest

CPU, GPU = "CPU", "CUDA0"  # ggml's names
DEVICES = [CPU, pytest.param(GPU, marks=pytest.mark.cuda)]


def handle(name: str) -> int:
    """The ggml_backend_dev_t."""
    function = api._lib.ggml_backend_dev_by_name
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    found = function(name.encode())
    assert found, f'llama.cpp has no device {name}; CMAKE_ARGS="-DGGML_CUDA=ON" pip install .'
    return found
