"""One attention head whose keys and values are kept compressed."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import softmax

from .config import TurboQuantConfig
from .quantizer import TurboQuant, check_vectors
from .vectors import CompressedVector


class TurboQuantKVCache:
    """Keys by `config`; values by TurboQuant_mse of the same bits.

    Values are summed, not multiplied with a query, so that there is no bias to take out of them, and QJL
    would only add noise.
    """

    def __init__(self, config: TurboQuantConfig) -> None:
        self._keys = TurboQuant(config)
        self._values = TurboQuant(dataclasses.replace(config, qjl_enabled=False, qjl_dim=0))
        self._parts: list[tuple[CompressedVector, CompressedVector]] = []  # joined when they are read

    def append(self, k: np.ndarray, v: np.ndarray) -> None:
        """Add the key and value of one token ``(d,)``, or of several ``(n, d)``.

        :raises ValueError: different shapes, or as :meth:`TurboQuant.compress`; then nothing is added
        """
        if np.shape(k) != np.shape(v):
            raise ValueError(f"k has shape {np.shape(k)}, v {np.shape(v)}; allowed are equal ones")
        self._parts.append((self._keys.compress(k), self._values.compress(v)))

    def attention_scores(self, q: np.ndarray) -> np.ndarray:
        """Inner products with all keys over sqrt(d): what softmax takes.

        :param q: real numbers, ``(d,)`` or ``(m, d)``
        :returns: float64 ``(tokens,)`` or ``(m, tokens)``
        :raises ValueError: the cache is empty, or as :meth:`TurboQuant.inner_product`
        """
        keys, _ = self._joined(q)
        return self._keys.inner_product(q, keys) / np.sqrt(self._keys.config.dimension)

    def attend(self, q: np.ndarray) -> np.ndarray:
        """Softmax attention over all tokens: float64 in the shape of `q`.

        :raises ValueError: as :meth:`attention_scores`
        """
        weights = softmax(self.attention_scores(q), axis=-1)
        _, values = self._joined(q)
        return weights @ self._values.decompress(values)

    def __len__(self) -> int:
        """Tokens."""
        return sum(len(keys) for keys, _ in self._parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(part.nbytes for pair in self._parts for part in pair)

    def _joined(self, q: np.ndarray) -> tuple[CompressedVector, CompressedVector]:
        check_vectors("q", q, self._keys.config.dimension)
        if not len(self):
            raise ValueError("the cache is empty; append keys and values first")
        if len(self._parts) > 1:
            self._parts = [tuple(map(CompressedVector.join, zip(*self._parts, strict=True)))]
        return self._parts[0]
