"""Vectors in their compressed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .config import TurboQuantConfig


@dataclass(frozen=True, eq=False)
class CompressedVector:
    """What :meth:`TurboQuant.compress` makes of n vectors, or of one: then `n` in the shapes is 1."""

    config: TurboQuantConfig
    """Of the compressor, the only one that can read it."""
    single: bool
    """One vector without a batch dimension."""
    indices: np.ndarray
    """uint8 ``(n, dimension * level_bits / 8)``, rounded up: the number of each coordinate's level."""
    norm: np.ndarray
    """float32 ``(n,)``."""
    residual_norm: np.ndarray | None
    """float32 ``(n,)``: the norm of what the levels miss; None without QJL."""
    signs: np.ndarray | None
    """uint8 ``(n, signs / 8)``, rounded up: 1 where the projected residual is not negative; None likewise."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the vectors, coordinates last."""
        n, d = len(self.norm), self.config.dimension
        return (d,) if self.single else (n, d)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self._arrays() if array is not None)

    def __len__(self) -> int:
        """Vectors."""
        return len(self.norm)

    @staticmethod
    def join(parts: Sequence[CompressedVector]) -> CompressedVector:
        """The vectors of several parts of one configuration, as one batch."""
        columns = zip(*(part._arrays() for part in parts), strict=True)
        arrays = (None if column[0] is None else np.concatenate(column) for column in columns)
        return CompressedVector(parts[0].config, False, *arrays)

    def _arrays(self) -> tuple[np.ndarray | None, ...]:
        return self.indices, self.norm, self.residual_norm, self.signs
