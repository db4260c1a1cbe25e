"""The TQ types in ggml's own operations on the CPU, against the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import llama_cpp.llama_cpp as api
import numpy as np
import pytest

import llama_tq

TYPES = llama_tq.types()
F32, F16, I32, I64 = 0, 1, 26, 27
COLUMNS, ROWS = 96, 13

pytestmark = pytest.mark.parametrize("t", TYPES, ids=lambda t: t.name)


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


GGML = api._lib  # its symbols include those of the libraries that it is linked with


class Graph:
    """Tensors that own their data, and the operations on them."""

    def __init__(self) -> None:
        self.context = self.call("ggml_init", _InitParams(16 << 20, None, False))

    @staticmethod
    def call(name: str, *arguments: object) -> int:
        function = getattr(GGML, name)
        function.restype = ctypes.c_void_p
        return function(*(ctypes.c_void_p(a) if isinstance(a, int) and a > 1 << 31 else a for a in arguments))

    def new(self, kind: int, *shape: int) -> int:
        sizes = [ctypes.c_int64(n) for n in shape]
        return self.call(f"ggml_new_tensor_{len(shape)}d", self.context, kind, *sizes)

    def of(self, kind: int, array: np.ndarray, *shape: int) -> int:
        tensor = self.new(kind, *shape)
        ctypes.memmove(self.data(tensor), np.ascontiguousarray(array).ctypes.data, array.nbytes)
        return tensor

    def data(self, tensor: int) -> int:
        return self.call("ggml_get_data", tensor)

    def read(self, tensor: int, dtype: type, count: int) -> np.ndarray:
        pointer = ctypes.cast(self.data(tensor), ctypes.POINTER(np.ctypeslib.as_ctypes_type(dtype)))
        return np.ctypeslib.as_array(pointer, (count,)).copy()

    def __call__(self, name: str, *tensors: int) -> int:
        """Computes the operation `name` on two threads and returns its result."""
        result = self.call(f"ggml_{name}", self.context, *tensors)
        graph = self.call("ggml_new_graph", self.context)
        self.call("ggml_build_forward_expand", graph, result)
        status = GGML.ggml_graph_compute_with_ctx(ctypes.c_void_p(self.context), ctypes.c_void_p(graph), 2)
        assert status == 0
        return result


@pytest.fixture
def graph():
    graph = Graph()
    yield graph
    graph.call("ggml_free", graph.context)


@pytest.fixture
def values():
    return np.random.default_rng(5).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def row_bytes(t) -> int:
    return COLUMNS // t.block_size * t.block_bytes


@pytest.mark.parametrize("kind", [F32, F16], ids=["f32", "f16"])
@pytest.mark.parametrize("index", [I32, I64], ids=["i32", "i64"])
def test_set_rows(graph, values, t, kind, index):
    values = values.astype({F32: np.float32, F16: np.float16}[kind])
    places = np.random.default_rng(6).permutation(2 * ROWS)[:ROWS]
    cache = graph.of(t.id, np.zeros(2 * ROWS * row_bytes(t), np.uint8), COLUMNS, 2 * ROWS)
    indices = graph.of(index, places.astype({I32: np.int32, I64: np.int64}[index]), ROWS)
    graph("set_rows", cache, graph.of(kind, values, COLUMNS, ROWS), indices)
    expected = np.zeros((2 * ROWS, row_bytes(t)), np.uint8)
    expected[places] = llama_tq.reference.quantize(values, t.name)
    np.testing.assert_array_equal(graph.read(cache, np.uint8, expected.size), expected.ravel())


def test_get_rows(graph, values, t):
    quantized = llama_tq.reference.quantize(values, t.name)
    places = np.array([3, 0, 12, 3], np.int32)
    result = graph("get_rows", graph.of(t.id, quantized, COLUMNS, ROWS), graph.of(I32, places, len(places)))
    expected = llama_tq.reference.dequantize(quantized, t.name)[places]
    np.testing.assert_array_equal(graph.read(result, np.float32, expected.size), expected.ravel())


@pytest.mark.parametrize("kind", [F32, F16], ids=["f32", "f16"])
def test_copy_to_the_type(graph, values, t, kind):
    values = values.astype({F32: np.float32, F16: np.float16}[kind])
    result = graph("cpy", graph.of(kind, values, COLUMNS, ROWS), graph.new(t.id, COLUMNS, ROWS))
    expected = llama_tq.reference.quantize(values, t.name)
    np.testing.assert_array_equal(graph.read(result, np.uint8, expected.size), expected.ravel())


def test_copy_from_the_type(graph, values, t):
    quantized = llama_tq.reference.quantize(values, t.name)
    result = graph("cpy", graph.of(t.id, quantized, COLUMNS, ROWS), graph.new(F32, COLUMNS, ROWS))
    expected = llama_tq.reference.dequantize(quantized, t.name)
    np.testing.assert_array_equal(graph.read(result, np.float32, expected.size), expected.ravel())


def test_copy_within_the_type(graph, values, t):
    quantized = llama_tq.reference.quantize(values, t.name)
    result = graph("cpy", graph.of(t.id, quantized, COLUMNS, ROWS), graph.new(t.id, COLUMNS, ROWS))
    np.testing.assert_array_equal(graph.read(result, np.uint8, quantized.size), quantized.ravel())


def test_mul_mat(graph, values, t):
    quantized = llama_tq.reference.quantize(values, t.name)
    y = np.random.default_rng(7).normal(size=(5, COLUMNS)).astype(np.float32)
    result = graph("mul_mat", graph.of(t.id, quantized, COLUMNS, ROWS), graph.of(F32, y, COLUMNS, 5))
    x = llama_tq.reference.dequantize(quantized, t.name).astype(np.float64)
    # y becomes q8_0: a value is off by at most half a step of amax / 127, and the step by half a unit of fp16
    blocks = np.abs(y).reshape(5, -1, 32).max(-1, keepdims=True).repeat(32, -1).reshape(5, COLUMNS)
    bound = blocks * (0.5 / 127 + 2**-10) @ np.abs(x).T
    actual = graph.read(result, np.float32, 5 * ROWS).reshape(5, ROWS)
    assert (np.abs(actual - y.astype(np.float64) @ x.T) <= bound).all()


def test_quantize_chunk(values, t):
    """What llama.cpp's own tests and tools call; from row 4 on."""
    function: Callable[..., int] = GGML.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    result = np.zeros((ROWS, row_bytes(t)), np.uint8)
    size = function(
        t.id,
        ctypes.c_void_p(values.ctypes.data),
        ctypes.c_void_p(result.ctypes.data),
        ctypes.c_int64(4 * COLUMNS),
        ctypes.c_int64(ROWS - 4),
        ctypes.c_int64(COLUMNS),
        None,
    )
    expected = llama_tq.reference.quantize(values, t.name)
    expected[:4] = 0
    assert size == (ROWS - 4) * row_bytes(t)
    np.testing.assert_array_equal(result, expected)


def test_name_and_sizes(t):
    GGML.ggml_type_name.restype = ctypes.c_char_p
    GGML.ggml_type_size.restype = ctypes.c_size_t
    GGML.ggml_blck_size.restype = ctypes.c_int64
    assert GGML.ggml_type_name(t.id) == t.name.encode()
    assert (GGML.ggml_blck_size(t.id), GGML.ggml_type_size(t.id)) == (t.block_size, t.block_bytes)
    assert GGML.ggml_is_quantized(t.id) & 1
