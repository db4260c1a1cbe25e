"""The compiled kernels for NumPy arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from . import _core
from .reference import TYPES, TypeSpec, check_blocks, check_values

Q8_0_MAX = np.float32(127 * 65504)  # what a q8_0 block with the largest half as its scale holds

_NUMBERS = {name: number for number, name in enumerate(_core.types())}


def types() -> tuple[TypeSpec, ...]:
    """The TQ types: name, id (of ``enum ggml_type``), block size and bytes, bits per value, codebooks."""
    return tuple(TYPES.values())


def quantize(x: np.ndarray, type: str) -> np.ndarray:
    """Encode rows of numbers, in the bytes of :func:`llama_tq.reference.quantize`.

    Large inputs use all cores. The GIL is released.

    :param x: float32 or float16, shape ``(..., n)`` with n a multiple of 32
    :param type: name of a type
    :returns: uint8, shape ``(..., n / 32 * block bytes)``
    :raises ValueError: unknown type, or n not a multiple of 32
    :raises TypeError: dtype other than float32 or float16
    """
    x, spec = check_values(x, type)
    b = np.empty((*x.shape[:-1], spec.row_bytes(x.shape[-1])), np.uint8)
    _core.quantize(_NUMBERS[type], np.ascontiguousarray(x, np.float32), b, threads())
    return b


def dequantize(b: np.ndarray, type: str) -> np.ndarray:
    """Decode rows of blocks, to the floats of :func:`llama_tq.reference.dequantize`.

    Large inputs use all cores. The GIL is released.

    :param b: uint8, shape ``(..., m)`` with m a multiple of the type's block bytes
    :param type: name of a type
    :returns: float32, shape ``(..., m / block bytes * 32)``
    :raises ValueError: unknown type, or m not a whole number of blocks
    :raises TypeError: dtype other than uint8
    """
    b, spec = check_blocks(b, type)
    x = np.empty((*b.shape[:-1], spec.row_values(b.shape[-1])), np.float32)
    _core.dequantize(_NUMBERS[type], np.ascontiguousarray(b), x, threads())
    return x


def dot(b: np.ndarray, y: np.ndarray, type: str) -> np.ndarray:
    """Multiply rows of blocks with a vector, as llama.cpp does: the vector is rounded to q8_0 first.

    Large inputs use all cores. The GIL is released.

    :param b: uint8, shape ``(..., n / 32 * block bytes)``
    :param y: float32, shape ``(n,)``, finite, magnitudes at most 127 * 65504
    :param type: name of a type
    :returns: float32, shape ``(...)``
    :raises ValueError: unknown type, shapes that do not fit each other, or y out of range
    :raises TypeError: b is not uint8, or y is not float32
    """
    b, spec = check_blocks(b, type)
    y = np.asarray(y)
    n = spec.row_values(b.shape[-1])
    if y.dtype != np.float32:
        raise TypeError(f"y has dtype {y.dtype}; allowed is float32")
    if y.shape != (n,):
        raise ValueError(f"y has shape {y.shape}; rows of b hold {n} values, so it must be ({n},)")
    if not np.all(np.abs(y) <= Q8_0_MAX):  # false for NaN
        raise ValueError(f"y must be finite, with magnitudes up to {Q8_0_MAX:.0f}")
    result = np.empty(b.shape[:-1], np.float32)
    _core.dot(_NUMBERS[type], np.ascontiguousarray(b), np.ascontiguousarray(y), result, threads())
    return result


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One row of :func:`kernels`."""

    type: str
    operation: str
    isa: str  #: instruction set, if that is the active one
    code: (
        str | None
    )  #: whose code then runs: `isa`'s, or that of one it builds on; None if this build lacks `isa`
    supported: bool  #: this machine runs `isa`


def kernels() -> tuple[Kernel, ...]:
    """Every type, operation and instruction set, and whether this machine runs it."""
    supported = _core.supported_isas()
    return tuple(Kernel(*row, supported=row[2] in supported) for row in _core.kernels())


def active_isa() -> str:
    """The instruction set in use: the best one, or what ``LLAMA_TQ_ISA`` or :func:`force_isa` names."""
    return _core.active_isa()


@contextlib.contextmanager
def force_isa(name: str) -> Iterator[None]:
    """Use one instruction set inside a ``with`` block, in the whole process, llama.cpp included.

    :param name: a name of :func:`kernels`, for example ``"scalar"`` or ``"avx2"``
    :raises ValueError: no such instruction set, or this machine does not run it
    """
    before = active_isa()
    if not _core.force_isa(name):
        problem = "is not supported by this machine" if name in _core.isas() else "is unknown"
        raise ValueError(f"instruction set {name!r} {problem}; it runs {', '.join(_core.supported_isas())}")
    try:
        yield
    finally:
        _core.force_isa(before)


def threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
