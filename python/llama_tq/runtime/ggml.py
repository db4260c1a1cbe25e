"""The parts of ggml's C interface that llama_cpp does not wrap: type tables and backends."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from .. import _native
from ..errors import InputError
from .pairs import block, type_id

_DIRECTORY = Path(llama_cpp.__file__).parent / "lib"
_PATTERN = {"win32": "{}.dll", "darwin": "lib{}.dylib"}.get(sys.platform, "lib{}.so")
_CONVERT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_HEAD, _CELLS, _NODES = 128, 256, 8  # of the operations that backends are asked about
_GPU_TYPES = (1, 2)  # enum ggml_backend_dev_type: with memory of its own, or in the processor


class _TypeTraits(ctypes.Structure):  # struct ggml_type_traits
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _CONVERT),
        ("from_float_reference", _CONVERT),
    )


class _TypeTraitsCpu(ctypes.Structure):  # struct ggml_type_traits_cpu, its first member
    _fields_ = (("from_float", _CONVERT),)


class _InitParams(ctypes.Structure):  # struct ggml_init_params
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@dataclass(frozen=True)
class Backend:
    """A device that llama.cpp can run on, and the cache types that it can store and attend to."""

    name: str
    description: str
    types: tuple[str, ...]


@cache
def library(name: str) -> ctypes.CDLL:
    """One of llama_cpp's own libraries, such as `ggml-base`."""
    return ctypes.CDLL(str(_DIRECTORY / _PATTERN.format(name)))


@cache
def start() -> None:
    """Have llama.cpp load its backends. Where they are modules, it would say so on the terminal."""
    _native.begin_log()
    try:
        llama_cpp.llama_backend_init()
    finally:
        _native.end_log()


def version() -> str:
    """ggml's version."""
    return _function("ggml-base", "ggml_version", ctypes.c_char_p)().decode()


def quantize(x: np.ndarray, name: str) -> np.ndarray:
    """float32 (values,) to the uint8 blocks that the CPU backend stores in a cache of this type."""
    values, size = block(name)
    out = np.empty(x.size // values * size, np.uint8)
    _cpu_type_traits()(type_id(name)).contents.from_float(x.ctypes.data, out.ctypes.data, x.size)
    return out


def dequantize(blocks: np.ndarray, name: str) -> np.ndarray:
    """uint8 blocks to the float32 values that attention sees."""
    get = _function("ggml-base", "ggml_get_type_traits", ctypes.POINTER(_TypeTraits), ctypes.c_int)
    values, size = block(name)
    out = np.empty(blocks.size // size * values, np.float32)
    get(type_id(name)).contents.to_float(blocks.ctypes.data, out.ctypes.data, out.size)
    return out


def _cpu_type_traits():
    """ggml_get_type_traits_cpu of the CPU backend that is loaded: a wheel has several."""
    start()
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    cpu = _function("ggml", "ggml_backend_reg_by_name", pointer, text)(b"CPU")
    address = _function("ggml-base", "ggml_backend_reg_get_proc_address", pointer, pointer, text)
    get = address(cpu, b"ggml_get_type_traits_cpu")
    return ctypes.CFUNCTYPE(ctypes.POINTER(_TypeTraitsCpu), ctypes.c_int)(get)


def _devices() -> list[int]:
    start()
    count = _function("ggml", "ggml_backend_dev_count", ctypes.c_size_t)()
    return list(
        map(_function("ggml", "ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t), range(count))
    )


def backends(types: tuple[str, ...]) -> tuple[Backend, ...]:
    """The devices compiled in or added, with those of `types` that each supports."""
    name = _function("ggml-base", "ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    description = _function("ggml-base", "ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    found = []
    for handle in _devices():
        able = tuple(t for t in types if _supports(handle, type_id(t)))
        found.append(Backend(name(handle).decode(), description(handle).decode(), able))
    return tuple(found)


def require_gpu() -> None:
    """InputError if llama.cpp finds no GPU, or if an RPC server that was added does not answer any more."""
    by_type = _function("ggml", "ggml_backend_dev_by_type", ctypes.c_void_p, ctypes.c_int)
    if not any(map(by_type, _GPU_TYPES)):
        found = ", ".join(backend.name for backend in backends(()))
        raise InputError(
            f"No layer can be on a GPU: llama.cpp finds none here, only {found}. Leave out -ngl "
            '(n_gpu_layers), or build it for a GPU: CMAKE_ARGS="-DGGML_CUDA=ON" pip install .'
        )
    name = _function("ggml-base", "ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    description = _function("ggml-base", "ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    sizes = (ctypes.POINTER(ctypes.c_size_t),) * 2
    memory = _function("ggml-base", "ggml_backend_dev_memory", None, ctypes.c_void_p, *sizes)
    for device in _devices():
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        if name(device).startswith(b"RPC"):
            memory(device, free, total)
            if not total.value:
                raise InputError(f"The RPC server at {description(device).decode()} does not answer.")


def add_rpc_server(endpoint: str) -> bool:
    """Have the devices of the server at host:port among llama.cpp's; False where none answers."""
    start()
    add = _function("ggml-rpc", "ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
    register = _function("ggml", "ggml_backend_register", None, ctypes.c_void_p)
    added = add(endpoint.encode())
    if added:
        register(added)
    return bool(added)


def _supports(device: int, type_: int) -> bool:
    """Whether a device can write rows of the type and attend to them."""
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    tensor = _function("ggml-base", "ggml_new_tensor_4d", pointer, pointer, ctypes.c_int, i64, i64, i64, i64)
    set_rows = _function("ggml-base", "ggml_set_rows", pointer, pointer, pointer, pointer, pointer)
    numbers = (ctypes.c_float,) * 3
    attention = _function("ggml-base", "ggml_flash_attn_ext", pointer, *(pointer,) * 5, *numbers)
    supports = _function("ggml-base", "ggml_backend_dev_supports_op", ctypes.c_bool, pointer, pointer)
    size = _function("ggml-base", "ggml_tensor_overhead", ctypes.c_size_t)() * _NODES
    context = _function("ggml-base", "ggml_init", pointer, _InitParams)(_InitParams(size, None, True))
    f32, f16, i64_type = 0, 1, int(gguf.GGMLQuantizationType.I64)
    try:
        cache_ = tensor(context, type_, _HEAD, _CELLS, 1, 1)
        rows = tensor(context, f32, _HEAD, 1, 1, 1)
        query = tensor(context, f32, _HEAD, 1, 1, 1)
        mask = tensor(context, f16, _CELLS, 1, 1, 1)
        write = set_rows(context, cache_, rows, tensor(context, i64_type, 1, 1, 1, 1))
        attend = attention(context, query, cache_, cache_, mask, 1.0, 0.0, 0.0)
        return supports(device, write) and supports(device, attend)
    finally:
        _function("ggml-base", "ggml_free", None, pointer)(context)


def _function(library_name: str, name: str, result, *arguments):
    function = library(library_name)[name]  # a fresh object, so that its types are ours alone
    function.restype, function.argtypes = result, arguments
    return function
