"""Operations of ggml on any device: tensors from NumPy arrays, and what a backend makes of them."""

from __future__ import annotations

import ctypes

import llama_cpp.llama_cpp as api
import numpy as np

import devices

F32, F16, I32, I64 = 0, 1, 26, 27
POISON = 0xFF  # NaN, in every type of floats


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


GGML = api._lib  # its symbols include those of the libraries that it is linked with
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS = {  # what they return, what they take
    "ggml_backend_alloc_ctx_tensors": (_POINTER, _POINTER, _POINTER),
    "ggml_backend_buffer_clear": (None, _POINTER, ctypes.c_uint8),
    "ggml_backend_buffer_free": (None, _POINTER),
    "ggml_backend_dev_init": (_POINTER, _POINTER, ctypes.c_char_p),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, _POINTER, _POINTER),
    "ggml_backend_free": (None, _POINTER),
    "ggml_backend_graph_compute": (ctypes.c_int, _POINTER, _POINTER),
    "ggml_backend_tensor_get": (None, _POINTER, _POINTER, ctypes.c_size_t, ctypes.c_size_t),
    "ggml_backend_tensor_set": (None, _POINTER, _POINTER, ctypes.c_size_t, ctypes.c_size_t),
    "ggml_build_forward_expand": (None, _POINTER, _POINTER),
    "ggml_cast": (_POINTER, _POINTER, _POINTER, ctypes.c_int),
    "ggml_concat": (_POINTER, _POINTER, _POINTER, _POINTER, ctypes.c_int),
    "ggml_cpy": (_POINTER, _POINTER, _POINTER, _POINTER),
    "ggml_flash_attn_ext": (_POINTER, _POINTER, *[_POINTER] * 4, *[ctypes.c_float] * 3),
    "ggml_flash_attn_ext_add_sinks": (None, _POINTER, _POINTER),
    "ggml_free": (None, _POINTER),
    "ggml_get_rows": (_POINTER, _POINTER, _POINTER, _POINTER),
    "ggml_init": (_POINTER, _InitParams),
    "ggml_mul_mat": (_POINTER, _POINTER, _POINTER, _POINTER),
    "ggml_nbytes": (ctypes.c_size_t, _POINTER),
    "ggml_new_graph": (_POINTER, _POINTER),
    "ggml_new_tensor_4d": (_POINTER, _POINTER, ctypes.c_int, *[_LONG] * 4),
    "ggml_permute": (_POINTER, _POINTER, _POINTER, *[ctypes.c_int] * 4),
    "ggml_row_size": (ctypes.c_size_t, ctypes.c_int, _LONG),
    "ggml_set_rows": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    "ggml_tq_set_centre": (None, _POINTER, *[_POINTER] * 4, ctypes.c_int, ctypes.c_bool),
    "ggml_view_2d": (_POINTER, _POINTER, _POINTER, _LONG, _LONG, ctypes.c_size_t, ctypes.c_size_t),
}


def call(name: str, *arguments: object):
    function = GGML[name]  # a fresh object, so that its types are ours alone
    function.restype, function.argtypes = _FUNCTIONS[name][0], _FUNCTIONS[name][1:]
    return function(*arguments)


class Graph:
    """Tensors of one device, and the operations on them.

    All tensors are made before the first operation is computed; what nothing wrote holds POISON.
    """

    def __init__(self, device: str = devices.CPU) -> None:
        self.device = devices.handle(device)
        self.context = call("ggml_init", _InitParams(1 << 20, None, True))
        self.backend = call("ggml_backend_dev_init", self.device, None)
        self._buffer = None
        self._contents: list[tuple[int, np.ndarray]] = []

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        if self._buffer:
            call("ggml_backend_buffer_free", self._buffer)
        call("ggml_backend_free", self.backend)
        call("ggml_free", self.context)

    def new(self, kind: int, *shape: int) -> int:
        return call("ggml_new_tensor_4d", self.context, kind, *shape, *[1] * (4 - len(shape)))

    def of(self, kind: int, array: np.ndarray, *shape: int) -> int:
        tensor = self.new(kind, *shape)
        self._contents.append((tensor, np.ascontiguousarray(array)))
        return tensor

    def op(self, name: str, *arguments: object) -> int:
        return call(f"ggml_{name}", self.context, *arguments)

    def supports(self, op: int) -> bool:
        return call("ggml_backend_dev_supports_op", self.device, op)

    def compute(self, result: int) -> int:
        assert self.supports(result)
        graph = call("ggml_new_graph", self.context)
        call("ggml_build_forward_expand", graph, result)
        self._buffer = call("ggml_backend_alloc_ctx_tensors", self.context, self.backend)
        call("ggml_backend_buffer_clear", self._buffer, POISON)
        for tensor, array in self._contents:
            call("ggml_backend_tensor_set", tensor, array.ctypes.data, 0, array.nbytes)
        assert call("ggml_backend_graph_compute", self.backend, graph) == 0
        return result

    def read(self, tensor: int, dtype: type) -> np.ndarray:
        """All of a contiguous tensor, flat."""
        data = np.empty(call("ggml_nbytes", tensor), np.uint8)
        call("ggml_backend_tensor_get", tensor, data.ctypes.data, 0, data.nbytes)
        return data.view(dtype)
