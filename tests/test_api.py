"""llama_tq for NumPy arrays, and the types in gguf-py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import pytest

import llama_tq
from llama_tq import reference

TYPES = list(reference.TYPES)
SUPPORTED = list(dict.fromkeys(kernel.isa for kernel in llama_tq.kernels() if kernel.supported))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


# --- quantize, dequantize, dot ---


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("shape", [(32,), (5, 96), (2, 3, 64), (0, 32), (4, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_same_as_reference(type, shape, dtype):
    x = normal(*shape).astype(dtype)
    b = llama_tq.quantize(x, type)
    expected = reference.quantize(x, type)
    assert b.dtype == np.uint8 and b.shape == expected.shape
    np.testing.assert_array_equal(b, expected)
    y = llama_tq.dequantize(b, type)
    assert y.dtype == np.float32 and y.shape == shape
    np.testing.assert_array_equal(y, reference.dequantize(b, type))


@pytest.mark.parametrize("type", TYPES)
def test_large_input_in_threads_is_the_same(type):
    x = normal(3, 1 << 18)
    b = llama_tq.quantize(x, type)
    np.testing.assert_array_equal(b, reference.quantize(x, type))
    np.testing.assert_array_equal(llama_tq.dequantize(b, type), reference.dequantize(b, type))
    rows = b.reshape(3 << 10, -1)
    np.testing.assert_array_equal(
        llama_tq.dot(rows, x[0, :256], type), [llama_tq.dot(row, x[0, :256], type) for row in rows]
    )


@pytest.mark.parametrize("type", TYPES)
def test_memory_layout_does_not_matter(type):
    x = normal(64, 64)
    np.testing.assert_array_equal(llama_tq.quantize(x.T, type), reference.quantize(x.T.copy(), type))
    np.testing.assert_array_equal(llama_tq.quantize(x[::2], type), reference.quantize(x[::2].copy(), type))
    b = llama_tq.quantize(x, type)
    np.testing.assert_array_equal(
        llama_tq.dequantize(b[:, ::-1], type), reference.dequantize(b[:, ::-1], type)
    )
    np.testing.assert_array_equal(
        llama_tq.dot(b[::2], x[0, ::-1], type), llama_tq.dot(b[::2].copy(), x[0, ::-1].copy(), type)
    )


@pytest.mark.parametrize("type", TYPES)
def test_dot_rounds_the_vector_to_q8_0(type):
    b = llama_tq.quantize(normal(7, 4, 128), type)
    y = normal(128)
    q = gguf.quants.quantize(y, gguf.GGMLQuantizationType.Q8_0)
    terms = reference.dequantize(b, type) * gguf.quants.dequantize(q, gguf.GGMLQuantizationType.Q8_0).astype(
        float
    )
    result = llama_tq.dot(b, y, type)
    assert result.dtype == np.float32 and result.shape == (7, 4)
    k = (128 / 32 + 4) / 2**24  # the bound that kernel_checks.check_vec_dot derives
    assert np.all(np.abs(result - terms.sum(axis=-1)) <= k / (1 - k) * np.abs(terms).sum(axis=-1))


def test_dot_of_tiny_vectors():
    b = llama_tq.quantize(normal(32), "tq4_0")
    assert llama_tq.dot(b, np.zeros(32, np.float32), "tq4_0") == 0
    assert llama_tq.dot(b, np.full(32, 1e-44, np.float32), "tq4_0") == 0


@pytest.mark.parametrize("module", [llama_tq, reference])
def test_refusals(module):
    with pytest.raises(ValueError, match=r"unknown type 'q4_0'; allowed are tq4_0, tq3_0, tq2_1"):
        module.quantize(normal(32), "q4_0")
    with pytest.raises(TypeError, match=r"x has dtype float64; allowed are float32 and float16"):
        module.quantize(normal(32).astype(float), "tq4_0")
    with pytest.raises(
        ValueError, match=r"x has shape \(2, 33\); the last dimension must be a multiple of 32"
    ):
        module.quantize(normal(2, 33), "tq4_0")
    with pytest.raises(ValueError, match=r"x has shape \(\)"):
        module.quantize(np.float32(1), "tq4_0")
    with pytest.raises(TypeError, match=r"b has dtype int8; allowed is uint8"):
        module.dequantize(np.zeros(18, np.int8), "tq4_0")
    with pytest.raises(ValueError, match=r"b has shape \(17,\); the last dimension must be a multiple of 18"):
        module.dequantize(np.zeros(17, np.uint8), "tq4_0")


def test_dot_refusals():
    b = np.zeros((2, 36), np.uint8)
    with pytest.raises(
        ValueError, match=r"y has shape \(32,\); rows of b hold 64 values, so it must be \(64,\)"
    ):
        llama_tq.dot(b, normal(32), "tq4_0")
    with pytest.raises(TypeError, match=r"y has dtype float16; allowed is float32"):
        llama_tq.dot(b, normal(64).astype(np.float16), "tq4_0")
    for bad in (np.nan, np.inf, -np.inf, 1e7):
        with pytest.raises(ValueError, match=r"y must be finite, with magnitudes up to 8319008"):
            llama_tq.dot(b, np.full(64, bad, np.float32), "tq4_0")


def test_types():
    assert [spec.name for spec in llama_tq.types()] == TYPES
    assert [spec.id for spec in llama_tq.types()] == [1040, 1041, 1042]
    assert [spec.block_bytes for spec in llama_tq.types()] == [18, 14, 10]
    assert [spec.bits_per_value for spec in llama_tq.types()] == [4.5, 3.5, 2.5]


# --- instruction sets ---


def test_force_isa_nests_and_restores():
    best = llama_tq.active_isa()
    with pytest.raises(RuntimeError, match="stop"), llama_tq.force_isa("scalar"):
        assert llama_tq.active_isa() == "scalar"
        with llama_tq.force_isa(best):
            assert llama_tq.active_isa() == best
        assert llama_tq.active_isa() == "scalar"
        raise RuntimeError("stop")
    assert llama_tq.active_isa() == best


@pytest.mark.parametrize("isa", ["sse9", *{kernel.isa for kernel in llama_tq.kernels()} - set(SUPPORTED)])
def test_force_isa_refuses(isa):
    before = llama_tq.active_isa()
    expected = f"instruction set '{isa}' is .*; it runs {', '.join(SUPPORTED)}"
    with pytest.raises(ValueError, match=expected), llama_tq.force_isa(isa):
        pass
    assert llama_tq.active_isa() == before


@pytest.mark.parametrize("isa", SUPPORTED)
def test_environment_names_the_isa(isa):
    code = "with llama_tq.force_isa('scalar'): pass\nprint(llama_tq.active_isa())"
    assert python(f"import llama_tq\n{code}", LLAMA_TQ_ISA=isa).stdout.split() == [isa]


def test_environment_with_an_unknown_isa_is_refused():
    result = python("import llama_tq; llama_tq.active_isa()", LLAMA_TQ_ISA="sse9")
    assert result.returncode == 1
    assert f"ImportError: LLAMA_TQ_ISA is 'sse9'; this machine runs {' '.join(SUPPORTED)}" in result.stderr


def test_kernels_are_reported_once_and_honestly():
    kernels = llama_tq.kernels()
    assert len({(k.type, k.operation, k.isa) for k in kernels}) == len(kernels)
    for kernel in kernels:
        assert (kernel.code is not None) or not kernel.supported
        assert kernel.code in {None, kernel.isa, "scalar", "avx2", "neon"}


def test_the_gil_is_released():
    x = normal(1 << 21)
    counted = 0
    done = threading.Event()

    def work():
        with llama_tq.force_isa("scalar"):
            llama_tq.quantize(x, "tq4_0")
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.wait(0.001):
        counted += 1
    thread.join()
    assert counted > 1


# --- import ---


EXTRAS = {"scipy", "torch", "mlx", "mlx_lm", "transformers"}


def test_import_is_light():
    modules = {"numpy", "gguf", "llama_cpp", "llama_tq._core", *EXTRAS}
    assert python(f"import sys, llama_tq; print({modules} & sys.modules.keys())").stdout.strip() == "set()"


def test_extras_are_imported_only_when_asked_for():
    """Not by anything that the package offers without them."""
    code = (
        "import sys, llama_tq\n"
        "for name in llama_tq.__all__: getattr(llama_tq, name)\n"
        "import llama_tq.cli, llama_tq.views.render, llama_tq.views.plots\n"
        f"print({EXTRAS} & sys.modules.keys())"
    )
    done = python(code)
    assert done.stdout.strip() == "set()", done.stderr


def test_packages_need_no_import_of_their_own():
    assert python("import llama_tq; print(llama_tq.turboquant.codebook(3, 1))").stdout == "[-0.5  0.5]\n"


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'dequantise'"):
        _ = llama_tq.dequantise


# --- gguf ---


@pytest.mark.parametrize("spec", llama_tq.types(), ids=lambda spec: spec.name)
def test_gguf_knows_the_type(spec):
    member = gguf.GGMLQuantizationType(spec.id)
    assert member is getattr(gguf.GGMLQuantizationType, spec.name.upper())
    assert member is gguf.GGMLQuantizationType[spec.name.upper()]
    assert member in list(gguf.GGMLQuantizationType)
    assert gguf.GGML_QUANT_SIZES[member] == (spec.block_size, spec.block_bytes)
    x = normal(40, 64)
    b = gguf.quants.quantize(x, member)
    np.testing.assert_array_equal(b, reference.quantize(x, spec.name))
    np.testing.assert_array_equal(gguf.quants.dequantize(b, member), reference.dequantize(b, spec.name))


def test_gguf_file_round_trip(tmp_path: Path):
    path = tmp_path / "tq.gguf"
    writer = gguf.GGUFWriter(path, "test")
    expected = {}
    for spec in llama_tq.types():
        member = gguf.GGMLQuantizationType(spec.id)
        expected[spec.name] = llama_tq.quantize(normal(6, 64), spec.name)
        writer.add_tensor(spec.name, expected[spec.name], raw_dtype=member)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = gguf.GGUFReader(path).tensors
    assert {tensor.name for tensor in tensors} == set(TYPES)
    for tensor in tensors:
        assert tensor.tensor_type.name == tensor.name.upper()
        assert tensor.shape.tolist() == [64, 6]
        np.testing.assert_array_equal(tensor.data, expected[tensor.name])


@pytest.mark.parametrize("order", ["llama_tq, gguf", "gguf, llama_tq", "gguf.constants, llama_tq, gguf"])
def test_import_order_does_not_matter(order):
    result = python(
        f"import {order}; print(gguf.GGMLQuantizationType(1040).name, gguf.GGMLQuantizationType.TQ2_1)"
    )
    assert result.stdout.split() == ["TQ4_0", "1042"], result.stderr
