"""The best levels for one coordinate of a random direction.

A coordinate of a uniformly random unit vector in d dimensions has the density

    f(x) = (1 - x^2)^((d - 3) / 2) / B(1/2, (d - 1) / 2),    -1 <= x <= 1

(TurboQuant, arXiv 2504.19874, Lemma 1). Its integrals over an interval are known: the mass is a regularised
incomplete beta function, which SciPy evaluates to full precision, and the first moment is elementary. So
nothing is sampled and nothing cut off, from d = 2, where f is infinite at the ends, to millions, where it is
a needle.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy.optimize import root
from scipy.special import betaincc, betaincinv, betaln

from .config import check_bits, check_dimension


def codebook(dimension: int, bits: int) -> np.ndarray:
    """The levels of least squared error (Lloyd 1957; Max 1960) for a coordinate of a random unit vector.

    :param dimension: of the vector, at least 2
    :param bits: 0 to 8; with 0 the one level is 0
    :returns: float64 ``(2**bits,)``, ascending, symmetric about 0, read-only; computed once
    :raises ValueError: one of the two is out of range
    """
    return _codebook(check_dimension(dimension), check_bits(bits, least=0))


def distortion(dimension: int, bits: int) -> float:
    """The expected squared error of a unit vector whose coordinates are rounded to :func:`codebook`.

    :raises ValueError: as :func:`codebook`
    """
    levels = codebook(dimension, bits)
    # The mean of a cell is its level, so the error is what the levels lack of the variance.
    upper = levels[levels.size // 2 :]
    return float(1 - 2 * dimension * (_masses(_edges(upper), dimension) * upper**2).sum())


@functools.cache
def _codebook(dimension: int, bits: int) -> np.ndarray:
    levels = np.zeros(1)
    if bits:
        count = 1 << (bits - 1)  # f is symmetric: the positive half will do
        # For many levels the best density of levels is f^(1/3) (Panter and Dite, 1951), again of this family.
        quantiles = (np.arange(count) + 0.5) / count
        start = np.sqrt(betaincinv(0.5, (dimension - 3) / 6 + 1, quantiles))
        sigma = dimension**-0.5  # unit of the search
        found = root(lambda z: _centroids(z * sigma, dimension) / sigma - z, start / sigma, tol=1e-13)
        levels = np.concatenate([-found.x[::-1], found.x]) * sigma
    levels.flags.writeable = False
    return levels


def _edges(upper: np.ndarray) -> np.ndarray:
    """Of the cells of positive levels."""
    return np.concatenate([[0], (upper[:-1] + upper[1:]) / 2, [1]])


def _masses(edges: np.ndarray, dimension: int) -> np.ndarray:
    return -np.diff(betaincc(0.5, (dimension - 1) / 2, edges**2) / 2)


def _centroids(upper: np.ndarray, dimension: int) -> np.ndarray:
    """The means of the cells of positive levels."""
    edges, power = _edges(upper), (dimension - 1) / 2
    with np.errstate(divide="ignore"):  # log of 0 at the end
        moments = np.exp(power * np.log1p(-(edges**2)) - betaln(0.5, power)) / (2 * power)
    return -np.diff(moments) / _masses(edges, dimension)
