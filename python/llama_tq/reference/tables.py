"""Written by scripts/make_tables.py from csrc/types.def and its training run: do not edit."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np


@dataclasses.dataclass(frozen=True)
class TypeSpec:
    """What the specification says of one type."""

    name: str
    id: int  #: ``enum ggml_type`` value
    bits: int  #: bits of an index
    block_bytes: int  #: bytes that hold 32 values
    search_start: float  #: first scale the encoder tries, as a share of the largest magnitude
    search_count: int  #: scales it tries, an eighth of an octave apart
    codebook: np.ndarray = dataclasses.field(repr=False)  #: int32, shape (2, 2**bits)

    block_size: ClassVar[int] = 32  #: values in a block

    @property
    def bits_per_value(self) -> float:
        """Bits that a stored value takes, its share of the scales included."""
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, values: int) -> int:
        """Bytes of a row of so many values, a multiple of 32."""
        return values // self.block_size * self.block_bytes

    def row_values(self, size: int) -> int:
        """Values in a row of so many bytes, whole blocks."""
        return size // self.block_bytes * self.block_size


TYPES: dict[str, TypeSpec] = {
    "tq4_0": TypeSpec(
        name="tq4_0",
        id=1040,
        bits=4,
        block_bytes=18,
        search_start=115 / 2**14,
        search_count=6,
        codebook=np.array(
            [
                [-127, -105, -85, -68, -52, -38, -24, -10, 3, 16, 28, 41, 56, 71, 88, 110],
                [-120, -99, -72, -55, -41, -29, -18, -7, 2, 12, 22, 33, 45, 59, 76, 102],
            ],
            np.int32,
        ),
    ),
    "tq3_0": TypeSpec(
        name="tq3_0",
        id=1041,
        bits=3,
        block_bytes=14,
        search_start=100 / 2**14,
        search_count=7,
        codebook=np.array(
            [
                [-124, -83, -50, -21, 7, 34, 66, 111],
                [-127, -76, -44, -19, 3, 25, 51, 86],
            ],
            np.int32,
        ),
    ),
    "tq2_1": TypeSpec(
        name="tq2_1",
        id=1042,
        bits=2,
        block_bytes=10,
        search_start=84 / 2**14,
        search_count=8,
        codebook=np.array(
            [
                [-125, -40, 22, 96],
                [-127, -50, 4, 64],
            ],
            np.int32,
        ),
    ),
}
