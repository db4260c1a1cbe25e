"""The types without a model: error and speed on Gaussian values, by instruction set, next to ggml's types.

Values, blocks and floats go through the function pointers that llama.cpp's CPU backend itself calls, on one
thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from .._api import force_isa, kernels, types
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
    """`ggml` for llama.cpp's own types."""
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


def benchmark(
    *, values: int = VALUES, seed: int = 0, progress: Callable[[str, int, int], None] = lambda *_: None
) -> tuple[TypeBenchmark, ...]:
    """Every TQ type in every instruction set that this machine runs, then q8_0, q5_0, q4_0 and iq4_nl."""
    tiers = dict.fromkeys(k.isa for k in kernels() if k.supported)
    work = [(t.name, tier) for t in types() for tier in tiers] + [(name, "ggml") for name in YARDSTICKS]
    rng = np.random.default_rng(seed)
    x, query = rng.standard_normal((2, values // HEAD, HEAD), np.float32)
    rows = []
    for number, (name, tier) in enumerate(work):
        progress(f"{name}, {tier}", number, len(work))
        with nullcontext() if tier == "ggml" else force_isa(tier):
            rows.append(_measure(name, tier, x, query))
    progress("done", len(work), len(work))
    return tuple(rows)


def _measure(name: str, tier: str, x: np.ndarray, query: np.ndarray) -> TypeBenchmark:
    blocks, quantize_seconds = _timed(lambda: ggml.quantize(x, name))
    y, dequantize_seconds = _timed(lambda: ggml.dequantize(blocks, name))
    y = y.reshape(x.shape)
    exact, wide, query = x.astype(np.float64), y.astype(np.float64), query.astype(np.float64)
    nmse = float(((exact - wide) ** 2).sum() / (exact**2).sum())
    bits = bits_per_value(name)
    cosine = (exact * wide).sum(1) / np.sqrt((exact**2).sum(1) * (wide**2).sum(1))
    truth, found = (exact * query).sum(1), (wide * query).sum(1)
    snr = -10 * np.log10(nmse)
    return TypeBenchmark(
        name,
        tier,
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


def _timed(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - began)
    return result, min(times)
