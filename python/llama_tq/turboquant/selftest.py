"""TurboQuant measured: against the bounds of its paper, and beside the types of this project."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import rel_entr, softmax

from .. import reference
from .config import TurboQuantConfig
from .quantizer import TurboQuant

DIMENSION = 128
BITS = (2, 3, 4)
SEEDS, VECTORS, PRODUCTS = 128, 32, 32  # rotations and projections, vectors of each, inner products of those
TOKENS, QUERIES = 2048, 256  # of the attention
SPREAD = 2.0  # standard deviation of its scores: a query attends to some 300 of the tokens


@dataclass(frozen=True)
class Code:
    """One way to compress vectors of DIMENSION coordinates."""

    name: str
    lower: float | None
    """No code of so many bits has a smaller error on every vector: theorem 3. None without a theorem."""
    upper: float | None
    """What the paper's own stay below: theorem 1; or d times theorem 2, which is of inner products."""
    bits_per_value: float
    """Held in fact, norms or scales included."""
    restore: Callable[[np.ndarray, int], np.ndarray]
    """``(n, d)`` and a seed to what is left of it after compression and decompression."""


@dataclass(frozen=True)
class Measurement:
    """One code, on normal vectors of different norms."""

    code: Code
    mse: float
    """Squared error over squared norm: the D_mse of the paper."""
    cosine: float
    """Mean, between a vector and what is left of it."""
    correlation: float
    """Of inner products with normal vectors, and their estimates."""
    bias: float
    """How much the estimates are too large on average."""
    bias_error: float
    """The standard error of that, over seeds."""
    attention_kld: float
    """Mean KL divergence, in nats, of softmax attention over compressed keys."""
    attention_error: float
    """Squared error of what is attended to, values being exact, over its square."""


def configurations(dimension: int) -> list[TurboQuantConfig]:
    """TurboQuant_mse and TurboQuant_prod of each of BITS."""
    return [TurboQuantConfig(dimension, bits, qjl) for bits in BITS for qjl in (False, True)]


def _by_paper(config: TurboQuantConfig) -> Code:
    def restore(x: np.ndarray, seed: int) -> np.ndarray:
        tq = TurboQuant(dataclasses.replace(config, seed=seed))
        return tq.decompress(tq.compress(x))

    lower = 4.0**-config.bits
    upper = np.sqrt(3) * np.pi / 2 * lower * (2 * np.pi if config.qjl_enabled else 1)
    return Code(config.name, lower, upper, config.bits_per_value, restore)


def _by_type(spec: reference.TypeSpec) -> Code:
    def restore(x: np.ndarray, seed: int) -> np.ndarray:
        return reference.dequantize(reference.quantize(x.astype(np.float32), spec.name), spec.name)

    return Code(spec.name, None, None, spec.bits_per_value, restore)


def selftest() -> tuple[Measurement, ...]:
    """Measure every code on the same vectors."""
    codes = [*map(_by_paper, configurations(DIMENSION)), *map(_by_type, reference.TYPES.values())]
    return tuple(_measure(code, np.random.default_rng(0)) for code in codes)


def _measure(code: Code, rng: np.random.Generator) -> Measurement:
    x = rng.standard_normal((SEEDS, VECTORS, DIMENSION)) * rng.lognormal(size=(SEEDS, VECTORS, 1))
    y = np.stack([code.restore(part, seed) for seed, part in enumerate(x)])
    square = (x**2).sum(-1)
    cosine = (x * y).sum(-1) / np.sqrt(square * (y**2).sum(-1))
    q = rng.standard_normal((DIMENSION, PRODUCTS))
    true, found = ((vectors @ q / np.sqrt(square)[..., None]).reshape(SEEDS, -1) for vectors in (x, y))
    bias = (true * found).sum(1) / (true**2).sum(1) - 1  # of each seed
    return Measurement(
        code,
        float((((x - y) ** 2).sum(-1) / square).mean()),
        float(cosine.mean()),
        float(np.corrcoef(true.ravel(), found.ravel())[0, 1]),
        float(bias.mean()),
        float(bias.std(ddof=1) / np.sqrt(SEEDS)),
        *_attention(code, rng),
    )


def _attention(code: Code, rng: np.random.Generator) -> tuple[float, float]:
    """The divergence of the weights, and the error of the result."""
    keys, values = rng.standard_normal((2, TOKENS, DIMENSION))
    queries = SPREAD * rng.standard_normal((QUERIES, DIMENSION)) / np.sqrt(DIMENSION)
    exact, found = (softmax(queries @ k.T, axis=1) for k in (keys, code.restore(keys, 0)))
    result = exact @ values
    error = ((found @ values - result) ** 2).sum() / (result**2).sum()
    return float(rel_entr(exact, found).sum(1).mean()), float(error)
