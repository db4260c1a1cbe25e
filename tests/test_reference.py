"""The NumPy definition of the formats: pinned bytes, quality, and what no input may cause."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kernel_checks
from llama_tq import reference
from llama_tq.reference import TypeSpec

GOLDEN = Path(__file__).parent / "golden"
SNR_FLOORS = {"tq4_0": 23.5, "tq3_0": 17.25, "tq2_1": 10.9}  # dB, on a normal distribution

TYPES = pytest.mark.parametrize("spec", reference.TYPES.values(), ids=lambda spec: spec.name)


def normal(blocks: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((blocks, 32), dtype=np.float32)


def snr(signal: np.ndarray, error: float) -> float:
    return 10 * np.log10(np.square(signal, dtype=float).sum() / error)


# --- golden files ---


def test_golden_files_of_every_version_are_kept():
    version = (reference.TYPES["tq4_0"].id - 1024) // 16
    assert sorted(path.name for path in GOLDEN.glob("v*")) == [f"v{v}" for v in range(1, version + 1)]


@TYPES
def test_golden(spec: TypeSpec):
    folder = GOLDEN / f"v{(spec.id - 1024) // 16}"
    x = np.fromfile(folder / "input.f32", "<f4")
    b = np.fromfile(folder / f"{spec.name}.bin", np.uint8)
    y = np.fromfile(folder / f"{spec.name}.f32", "<u4")
    np.testing.assert_array_equal(reference.quantize(x, spec.name), b)
    np.testing.assert_array_equal(reference.dequantize(b, spec.name).view(np.uint32), y)


# --- quality ---


@TYPES
def test_snr_on_a_normal_distribution(spec: TypeSpec):
    x = normal(1 << 14)
    y = reference.dequantize(reference.quantize(x, spec.name), spec.name)
    assert snr(x, np.square(x - y, dtype=float).sum()) > SNR_FLOORS[spec.name]


@TYPES
def test_search_is_near_the_best_of_all_scales(spec: TypeSpec):
    """Within 0.1 dB of trying every pair of scales that can be written, with real-valued distances."""
    blocks = 512
    x = normal(blocks).reshape(blocks, 2, 16).astype(float)
    codes = np.arange(8 * 15, 8 * 25)  # scales from 2^-8 to 2^2; no other is best, as checked below
    errors = np.full((blocks, 2, 2, len(codes)), np.inf)  # [block][sub-block][codebook][code]
    for c, book in enumerate(spec.codebook):
        midpoints = (book[1:] + book[:-1]) / 2
        for u, code in enumerate(codes):
            scale = (8 + code % 8) * 2.0 ** (code // 8 - 26)
            for sign in (1, -1):
                v = sign * x / scale
                distance = scale * (v - book[np.searchsorted(midpoints, v)])
                errors[:, :, c, u] = np.minimum(errors[:, :, c, u], np.square(distance).sum(axis=2))
    choice = errors.argmin(axis=3)
    assert choice.min() > 0 and choice.max() < len(codes) - 1
    # a pair shares its exponent: both codes lie in the same 16
    pairs = [
        errors[..., first : first + 16].min(axis=3).sum(axis=1) for first in range(0, len(codes) - 15, 8)
    ]
    best = np.min(pairs, axis=(0, 2)).sum()

    y = reference.dequantize(
        reference.quantize(x.astype(np.float32).reshape(blocks, 32), spec.name), spec.name
    )
    assert snr(x, best) - snr(x, np.square(x.reshape(blocks, 32) - y).sum()) < 0.1


# --- what no input may cause ---


@TYPES
def test_zeros(spec: TypeSpec):
    zero = np.zeros(spec.block_bytes, np.uint8)
    assert not reference.dequantize(zero, spec.name).any()
    for x in (0, -0.0, np.nan, 1e-45, 2**-22, -(2**-22)):
        np.testing.assert_array_equal(reference.quantize(np.full(32, x, np.float32), spec.name), zero)


@TYPES
def test_every_block_decodes_to_a_finite_number(spec: TypeSpec):
    y = reference.dequantize(kernel_checks.blocks(spec), spec.name)
    assert np.isfinite(y).all()
    assert np.abs(y).max() <= 121920


@TYPES
def test_hostile_input_decodes_to_finite_numbers_near_it(spec: TypeSpec):
    """NaN is 0, infinity the largest value; no error exceeds the largest magnitude in its block."""
    x = kernel_checks.values(spec)
    y = reference.dequantize(reference.quantize(x, spec.name), spec.name)
    assert np.isfinite(y).all()
    x = np.clip(np.where(np.isnan(x), 0, x), -121920, 121920)
    largest = np.abs(x).max(axis=1, keepdims=True)
    assert np.all(np.abs(y - x) <= np.maximum(largest, 32 * 2.0**-22))  # 2^-22 is the smallest scale


@TYPES
def test_samples_of_the_kernel_tests_reach_the_second_search(spec: TypeSpec):
    """FORMAT.md 4.3: scales two octaves apart cannot be written together."""
    amax = np.nan_to_num(np.abs(kernel_checks.values(spec)), nan=0, posinf=0).reshape(-1, 2, 16).max(axis=2)
    low, high = amax.min(axis=1), amax.max(axis=1)
    apart = (low > 1e-5) & (low < high / 8) & (high < 1e5)
    assert np.count_nonzero(apart) > 500


# --- purity ---


def test_reference_imports_nothing_compiled():
    code = """
import sys
sys.modules["llama_tq._core"] = None
import numpy as np
before = set(sys.modules)
from llama_tq import reference
reference.dequantize(reference.quantize(np.ones(32, np.float32), "tq4_0"), "tq4_0")
loaded = [sys.modules[name] for name in sys.modules if name not in before]
print([m.__name__ for m in loaded if m and not (getattr(m, "__file__", None) or ".py").endswith(".py")])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
