"""Random rotations, as matrices: at the size of a head nothing in NumPy is faster than a product with one."""

from __future__ import annotations

import numpy as np
from scipy.linalg import hadamard


def rotation(kind: str, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """An orthonormal matrix, float64 ``(dimension, dimension)``; for `kind` see :class:`TurboQuantConfig`."""
    return {"haar": _haar, "hadamard": _hadamard}[kind](dimension, rng)


def _haar(dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Q of a Gaussian matrix, uniform once the diagonal of R is positive (Mezzadri, 2007).

    That makes it unique as well: a seed means one matrix, whatever the LAPACK. No library's sampler promises
    so much.
    """
    q, r = np.linalg.qr(rng.standard_normal((dimension, dimension)))
    return q * np.copysign(1, np.diag(r))


def _hadamard(dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Random signs, then the Hadamard matrix."""
    signs = rng.choice([-1.0, 1.0], dimension)
    return hadamard(dimension) * (signs / np.sqrt(dimension))
