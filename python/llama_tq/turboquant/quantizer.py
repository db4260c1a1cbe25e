"""The two quantisers of TurboQuant (Zandieh, Daliri, Hadian, Mirrokni, 2025; arXiv 2504.19874).

A vector is split into its norm and its direction. A random rotation makes each coordinate of any direction
behave like a coordinate of a random one, so that one scalar codebook serves them all: that is TurboQuant_mse
(algorithm 1). Its inner products are too small by a known share. TurboQuant_prod (algorithm 2) spends one bit
less on the levels and one on the signs of a Gaussian projection of what they miss (QJL), which restores the
mean of every inner product, at the price of more variance.

All arithmetic is in float64.
"""

from __future__ import annotations

import numpy as np

from .codebook import codebook
from .config import NORM, TurboQuantConfig
from .packing import pack, unpack
from .rotation import rotation
from .vectors import CompressedVector

FLOAT_BITS = (16, 32)  # what sizes are compared with


class TurboQuant:
    """Compresses vectors of ``config.dimension`` coordinates and any norm that float32 can hold.

    The random matrices are drawn here, once, from ``config.seed``.
    """

    def __init__(self, config: TurboQuantConfig) -> None:
        if not isinstance(config, TurboQuantConfig):
            raise ValueError(f"config is {config!r}; allowed is a TurboQuantConfig")
        self.config = config
        seeds = np.random.SeedSequence(config.seed).spawn(2)
        rotating, projecting = map(np.random.default_rng, seeds)
        self._rotation = rotation(config.rotation, config.dimension, rotating)
        self._levels = codebook(config.dimension, config.level_bits)
        self._projection = projecting.standard_normal((config.signs, config.dimension))
        """Of a residual that is rotated already: a Gaussian matrix looks the same from every side."""

    def compress(self, x: np.ndarray) -> CompressedVector:
        """Quantise one vector or many.

        :param x: real numbers, ``(d,)`` or ``(n, d)``; norms up to float32's largest
        :raises ValueError: another shape or kind of number, NaN, infinity, or too large a norm
        """
        x = check_vectors("x", x, self.config.dimension)
        single, x = x.ndim == 1, np.atleast_2d(x)
        norm = _norms(x)
        rotated = x @ self._rotation.T
        direction = np.divide(rotated, norm[:, None], out=np.zeros_like(rotated), where=norm[:, None] > 0)
        midpoints = (self._levels[:-1] + self._levels[1:]) / 2
        numbers = np.searchsorted(midpoints, direction).astype(np.uint8)
        norm = norm.astype(NORM)
        residual_norm = signs = None
        if self.config.qjl_enabled:
            residual = rotated - norm[:, None] * self._levels[numbers]
            residual_norm = np.linalg.norm(residual, axis=1).astype(NORM)
            signs = pack((residual @ self._projection.T >= 0).astype(np.uint8), 1)
        indices = pack(numbers, self.config.level_bits)
        return CompressedVector(self.config, single, indices, norm, residual_norm, signs)

    def decompress(self, c: CompressedVector) -> np.ndarray:
        """The vectors, float64 ``(d,)`` or ``(n, d)`` as they came in; with QJL unbiased, and noisier for it.

        :raises ValueError: `c` is of another configuration
        """
        self._check(c)
        rotated = self._scaled_levels(c)
        if self.config.qjl_enabled:
            rotated += self._scaled_signs(c) @ self._projection
        return (rotated @ self._rotation).reshape(c.shape)

    def inner_product(self, q: np.ndarray, c: CompressedVector) -> np.ndarray:
        """Inner products with vectors that are not decompressed for it: the query is rotated instead.

        With QJL each is unbiased over seeds: right on average, for every pair of vectors.

        :param q: real numbers, ``(d,)`` or ``(m, d)``
        :returns: float64, with the batch dimensions of `q` and then of `c`: ``()``, ``(n,)``, ``(m,)`` or
            ``(m, n)``
        :raises ValueError: as :meth:`compress` and :meth:`decompress`
        """
        self._check(c)
        q = check_vectors("q", q, self.config.dimension)
        rotated = q @ self._rotation.T
        products = rotated @ self._scaled_levels(c).T
        if self.config.qjl_enabled:
            products += rotated @ self._projection.T @ self._scaled_signs(c).T
        return products.reshape(q.shape[:-1] + c.shape[:-1])[()]

    def compressed_size_bytes(self) -> int:
        """Bytes of one vector: indices, signs, and 4 for each norm; n vectors hold n times as many."""
        return self.config.vector_bytes

    def compression_ratio(self, bits_per_value: int = 16) -> float:
        """How many times smaller than coordinates of 16 or 32 bits.

        :raises ValueError: another number of bits
        """
        if bits_per_value not in FLOAT_BITS:
            raise ValueError(f"bits_per_value is {bits_per_value!r}; allowed are 16 and 32")
        return self.config.dimension * bits_per_value / (8 * self.compressed_size_bytes())

    def _scaled_levels(self, c: CompressedVector) -> np.ndarray:
        """What stage one makes of the rotated vectors."""
        numbers = unpack(c.indices, self.config.dimension, self.config.level_bits)
        return c.norm[:, None] * self._levels[numbers]

    def _scaled_signs(self, c: CompressedVector) -> np.ndarray:
        """The signs, times sqrt(pi / 2) / m * |residual|: by the projection they give the residual's mean."""
        m = self.config.signs
        scale = np.sqrt(np.pi / 2) / m * c.residual_norm.astype(np.float64)
        return np.where(unpack(c.signs, m, 1), scale[:, None], -scale[:, None])

    def _check(self, c: CompressedVector) -> None:
        if not isinstance(c, CompressedVector):
            raise ValueError(f"c is {type(c).__name__}; allowed is what compress returns")
        if c.config != self.config:
            raise ValueError(f"c was compressed with {c.config}; allowed is {self.config}")


def check_vectors(name: str, x: np.ndarray, dimension: int) -> np.ndarray:
    """`x` as float64, if it is finite vectors of so many coordinates; ValueError otherwise."""
    x = np.asarray(x)
    if x.dtype.kind not in "fiu":
        raise ValueError(f"{name} has dtype {x.dtype}; allowed are real numbers")
    if x.ndim not in (1, 2) or x.shape[-1] != dimension:
        raise ValueError(f"{name} has shape {x.shape}; allowed are ({dimension},) and (n, {dimension})")
    if not np.all(np.isfinite(x)):
        raise ValueError(f"{name} has NaN or infinite values; allowed are finite ones")
    return x.astype(np.float64)


def _norms(x: np.ndarray) -> np.ndarray:
    """Of the rows, float64; ValueError where float32 cannot hold one."""
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(x, axis=1)
    most = float(np.finfo(NORM).max)
    if np.any(norms > most):
        raise ValueError(f"x has a vector of norm {norms.max():.3g}; allowed are norms up to {most:.3g}")
    return norms
