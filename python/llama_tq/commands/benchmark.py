"""The types without a model: error and speed on Gaussian values, by instruction set, next to ggml's types.

Values, blocks and floats go through the function pointers that llama.cpp's CPU backend itself calls, on one
thread. TurboQuant as in its paper goes through NumPy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._api import force_isa, kernels, types
from ..errors import InputError
from ..runtime import ggml
from ..runtime.pairs import bits_per_value

YARDSTICKS = ("q8_0", "q5_0", "q4_0", "iq4_nl")
HEAD = 128  # values that a cosine and an inner product are taken over
VALUES = 1 << 18
_REPEATS = 5  # the fastest counts


@dataclass(frozen=True)
class TypeBenchmark:
    """One type, in one instruction set, on N(0, 1) values."""

    type: str
    tier: str
    """`ggml` for llama.cpp's own types, `numpy` for the codes of the paper."""
    bits_per_value: float
    nmse: float
    """Squared error over squared values."""
    limit: float
    """The least that any code with so many bits can reach on Gaussian values: 4 ** -bits."""
    snr_db: float
    limit_db: float
    """Decibels that are missing to the limit."""
    cosine: float
    """Mean between a head and its decoded self."""
    inner_product_bias: float
    """How much the inner product with a random query grows or shrinks on average: 0 is unbiased."""
    inner_product_correlation: float
    quantize_per_second: float
    """Values."""
    dequantize_per_second: float


@dataclass(frozen=True)
class _Code:
    name: str
    tier: str
    bits_per_value: float
    encode: Callable[[np.ndarray], Any]
    """float32 (heads, HEAD) to whatever `decode` takes."""
    decode: Callable[[Any], np.ndarray]


def benchmark(
    *,
    values: int = VALUES,
    seed: int = 0,
    turboquant: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    on_type: Callable[[TypeBenchmark], object] = lambda _: None,
) -> tuple[TypeBenchmark, ...]:
    """Every TQ type in every instruction set that this machine runs, then q8_0, q5_0, q4_0 and iq4_nl.

    With `turboquant` also TurboQuant_mse (`mse 3`) and TurboQuant_prod (`prod 3`) of 2, 3 and 4 bits: see
    `llama_tq.turboquant`. `on_type` is told each row at once.

    Raises InputError where SciPy is missing for that.
    """
    tiers = dict.fromkeys(k.isa for k in kernels() if k.supported)
    work = [_by_ggml(t.name, tier) for t in types() for tier in tiers]
    work += [_by_ggml(name, "ggml") for name in YARDSTICKS]
    work += _by_paper() if turboquant else ()
    rng = np.random.default_rng(seed)
    x, query = rng.standard_normal((2, values // HEAD, HEAD), np.float32)
    rows = []
    for number, code in enumerate(work):
        progress(f"{code.name}, {code.tier}", number, len(work))
        with force_isa(code.tier) if code.tier in tiers else nullcontext():
            rows.append(_measure(code, x, query))
        on_type(rows[-1])
    progress("done", len(work), len(work))
    return tuple(rows)


def _by_ggml(name: str, tier: str) -> _Code:
    def decode(blocks: np.ndarray) -> np.ndarray:
        return ggml.dequantize(blocks, name).reshape(-1, HEAD)

    return _Code(name, tier, bits_per_value(name), lambda x: ggml.quantize(x, name), decode)


def _by_paper() -> list[_Code]:
    try:
        from ..turboquant import TurboQuant
        from ..turboquant.selftest import configurations
    except ImportError as error:
        raise InputError(str(error)) from None
    compressors = map(TurboQuant, configurations(HEAD))
    return [
        _Code(tq.config.name, "numpy", tq.config.bits_per_value, tq.compress, tq.decompress)
        for tq in compressors
    ]


def _measure(code: _Code, x: np.ndarray, query: np.ndarray) -> TypeBenchmark:
    encoded, quantize_seconds = _timed(lambda: code.encode(x))
    y, dequantize_seconds = _timed(lambda: code.decode(encoded))
    exact, wide, query = x.astype(np.float64), y.astype(np.float64), query.astype(np.float64)
    nmse = float(((exact - wide) ** 2).sum() / (exact**2).sum())
    bits = code.bits_per_value
    cosine = (exact * wide).sum(1) / np.sqrt((exact**2).sum(1) * (wide**2).sum(1))
    truth, found = (exact * query).sum(1), (wide * query).sum(1)
    snr = -10 * np.log10(nmse)
    return TypeBenchmark(
        code.name,
        code.tier,
        bits,
        nmse,
        4.0**-bits,
        float(snr),
        float(20 * np.log10(2) * bits - snr),
        float(cosine.mean()),
        float((truth * found).sum() / (truth**2).sum() - 1),
        float(np.corrcoef(truth, found)[0, 1]),
        x.size / quantize_seconds,
        x.size / dequantize_seconds,
    )


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - began)
    return result, min(times)
