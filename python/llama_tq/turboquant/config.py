"""What a TurboQuant compressor is, and what it refuses."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np

from .packing import row_bytes

NORM = np.dtype(np.float32)  # norms are kept in it, and counted with the bytes
MAX_BITS = 8
ROTATIONS = ("haar", "hadamard")


@dataclass(frozen=True)
class TurboQuantConfig:
    """Everything that a compressor depends on; two of the same configuration write the same bytes.

    Raises ValueError for a value out of range.
    """

    dimension: int
    """Of the vectors, at least 2."""
    bits: int = 3
    """Per coordinate, 1 to 8: all for the levels, or with `qjl_enabled` one less, and one for the signs."""
    qjl_enabled: bool = True
    """TurboQuant_prod, whose inner products are unbiased, rather than TurboQuant_mse, which is closest."""
    qjl_dim: int = 0
    """Signs per vector; 0 is as many as `dimension`, as in the paper."""
    seed: int = 42
    """Of the rotation and of the projection."""
    rotation: str = "haar"
    """`haar`: uniform over all rotations, as the paper has it. `hadamard`: random signs, then the Hadamard
    matrix, for powers of two; what is exact for `haar` then holds nearly, and not for every vector.
    """

    def __post_init__(self) -> None:
        check_dimension(self.dimension)
        check_bits(self.bits)
        check_int("qjl_dim", self.qjl_dim, 0)
        check_int("seed", self.seed, 0)
        if not isinstance(self.qjl_enabled, bool):
            raise ValueError(f"qjl_enabled is {self.qjl_enabled!r}; allowed are True and False")
        if self.qjl_dim and not self.qjl_enabled:
            raise ValueError(f"qjl_dim is {self.qjl_dim}, but qjl_enabled is False; allowed is 0")
        if self.rotation not in ROTATIONS:
            raise ValueError(f"rotation is {self.rotation!r}; allowed are {', '.join(ROTATIONS)}")
        if self.rotation == "hadamard" and self.dimension & (self.dimension - 1):
            raise ValueError(
                f"dimension is {self.dimension}; rotation 'hadamard' needs a power of two, 'haar' takes any"
            )

    @property
    def level_bits(self) -> int:
        """Bits of a coordinate's index; 0 with one bit and QJL, where the signs are all there is."""
        return self.bits - self.qjl_enabled

    @property
    def signs(self) -> int:
        """Signs that a vector keeps."""
        return (self.qjl_dim or self.dimension) if self.qjl_enabled else 0

    @property
    def vector_bytes(self) -> int:
        """Bytes that a vector takes: its indices, its signs, its norm and that of its residual."""
        norms = (1 + self.qjl_enabled) * NORM.itemsize
        return row_bytes(self.dimension, self.level_bits) + row_bytes(self.signs, 1) + norms

    @property
    def bits_per_value(self) -> float:
        """The same, shared out among the coordinates."""
        return 8 * self.vector_bytes / self.dimension

    @property
    def name(self) -> str:
        """The algorithm of the paper and its bits: `mse 3` or `prod 3`."""
        return f"{'prod' if self.qjl_enabled else 'mse'} {self.bits}"


def check_dimension(dimension: int) -> int:
    """A number of coordinates; a single one has no direction to turn."""
    return check_int("dimension", dimension, 2)


def check_bits(bits: int, least: int = 1) -> int:
    """A number of bits per coordinate."""
    return check_int("bits", bits, least, MAX_BITS)


def check_int(name: str, value: int, least: int, most: int | None = None) -> int:
    """`value`, if it is an integer from `least` to `most`; ValueError otherwise."""
    allowed = f"integers from {least} to {most}" if most is not None else f"integers from {least} on"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least or (most is not None and number > most):
        raise ValueError(f"{name} is {value!r}; allowed are {allowed}")
    return number
