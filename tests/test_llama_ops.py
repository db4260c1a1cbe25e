"""The TQ types in ggml's own operations, on every device, against the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

import devices
import llama_tq
from ggml_graph import F16, F32, GGML, I32, I64, Graph, call

TYPES = llama_tq.types()
COLUMNS, ROWS = 96, 13
PLACES = np.random.default_rng(6).permutation(2 * ROWS)[:ROWS]
DTYPES = {F32: np.float32, F16: np.float16, I32: np.int32, I64: np.int64}

pytestmark = pytest.mark.parametrize("t", TYPES, ids=lambda t: t.name)
floats = pytest.mark.parametrize("kind", [F32, F16], ids=["f32", "f16"])
layouts = pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])

copies = pytest.mark.parametrize(  # the CPU aborts where the type is strided
    ("graph", "strided"),
    [
        (devices.CPU, False),
        *(
            pytest.param(*gpu.values, strided, marks=gpu.marks)
            for gpu in devices.GPUS
            for strided in (False, True)
        ),
    ],
    indirect=["graph"],
)


@pytest.fixture(params=devices.DEVICES)
def graph(request):
    with Graph(request.param) as graph:
        yield graph


@pytest.fixture
def values():
    return np.random.default_rng(5).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def row_bytes(t) -> int:
    return COLUMNS // t.block_size * t.block_bytes


def matrix(graph: Graph, kind: int, array: np.ndarray | None, rows: int, strided: bool) -> tuple[int, int]:
    """A tensor of COLUMNS, and its owner, which is twice as wide where the rows are strided, with POISON left
    of them.
    """
    if not strided:
        owner = graph.new(kind, COLUMNS, rows) if array is None else graph.of(kind, array, COLUMNS, rows)
        return owner, owner
    half = call("ggml_row_size", kind, COLUMNS)
    if array is None:
        owner = graph.new(kind, 2 * COLUMNS, rows)
    else:
        wide = np.full((rows, 2 * half), 0xFF, np.uint8)
        wide[:, half:] = array.reshape(rows, -1).view(np.uint8)
        owner = graph.of(kind, wide, 2 * COLUMNS, rows)
    return graph.op("view_2d", owner, COLUMNS, rows, 2 * half, half), owner


def right(graph: Graph, owner: int, rows: int, strided: bool) -> np.ndarray:
    """The bytes of a matrix by row; around a strided one nothing was written."""
    data = graph.read(owner, np.uint8).reshape(rows, -1)
    if not strided:
        return data
    half = data.shape[1] // 2
    assert (data[:, :half] == 0xFF).all()
    return data[:, half:]


@floats
@layouts
@pytest.mark.parametrize("index", [I32, I64], ids=["i32", "i64"])
def test_set_rows(graph, values, t, kind, index, strided):
    values = values.astype(DTYPES[kind])
    cache, owner = matrix(graph, t.id, None, 2 * ROWS, strided)
    source, _ = matrix(graph, kind, values, ROWS, strided)
    graph.compute(graph.op("set_rows", cache, source, graph.of(index, PLACES.astype(DTYPES[index]), ROWS)))
    expected = np.full((2 * ROWS, row_bytes(t)), 0xFF, np.uint8)
    expected[PLACES] = llama_tq.reference.quantize(values, t.name)
    np.testing.assert_array_equal(right(graph, owner, 2 * ROWS, strided), expected)


@layouts
def test_get_rows(graph, values, t, strided):
    quantized = llama_tq.reference.quantize(values, t.name)
    places = np.array([3, 0, 12, 3], np.int32)
    cache, _ = matrix(graph, t.id, quantized, ROWS, strided)
    result = graph.compute(graph.op("get_rows", cache, graph.of(I32, places, len(places))))
    expected = llama_tq.reference.dequantize(quantized, t.name)[places]
    np.testing.assert_array_equal(graph.read(result, np.float32), expected.ravel())


@floats
@copies
def test_copy_to_the_type(graph, values, t, kind, strided):
    values = values.astype(DTYPES[kind])
    source, _ = matrix(graph, kind, values, ROWS, strided)
    target, owner = matrix(graph, t.id, None, ROWS, strided)
    graph.compute(graph.op("cpy", source, target))
    expected = llama_tq.reference.quantize(values, t.name)
    np.testing.assert_array_equal(right(graph, owner, ROWS, strided), expected)


@copies
def test_copy_from_the_type(graph, values, t, strided):
    quantized = llama_tq.reference.quantize(values, t.name)
    source, _ = matrix(graph, t.id, quantized, ROWS, strided)
    target, owner = matrix(graph, F32, None, ROWS, strided)
    graph.compute(graph.op("cpy", source, target))
    expected = llama_tq.reference.dequantize(quantized, t.name)
    np.testing.assert_array_equal(right(graph, owner, ROWS, strided).view(np.float32), expected)


@copies
def test_copy_within_the_type(graph, values, t, strided):
    quantized = llama_tq.reference.quantize(values, t.name)
    source, _ = matrix(graph, t.id, quantized, ROWS, strided)
    target, owner = matrix(graph, t.id, None, ROWS, strided)
    graph.compute(graph.op("cpy", source, target))
    np.testing.assert_array_equal(right(graph, owner, ROWS, strided), quantized)


@pytest.mark.parametrize("graph", [devices.CPU], indirect=True)
def test_mul_mat(graph, values, t):
    quantized = llama_tq.reference.quantize(values, t.name)
    y = np.random.default_rng(7).normal(size=(5, COLUMNS)).astype(np.float32)
    product = graph.op("mul_mat", graph.of(t.id, quantized, COLUMNS, ROWS), graph.of(F32, y, COLUMNS, 5))
    actual = graph.read(graph.compute(product), np.float32).reshape(5, ROWS)
    x = llama_tq.reference.dequantize(quantized, t.name).astype(np.float64)
    # y becomes q8_0: a value is off by at most half a step of amax / 127, and the step by half a unit of fp16
    blocks = np.abs(y).reshape(5, -1, 32).max(-1, keepdims=True).repeat(32, -1).reshape(5, COLUMNS)
    bound = blocks * (0.5 / 127 + 2**-10) @ np.abs(x).T
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
