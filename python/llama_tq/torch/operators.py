"""Definitions of ``torch.ops.llama_tq``: schemas, checks, shapes, and which code runs where."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..reference import TypeSpec, check_type
from .cpu import KERNELS

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
HEAD_MIN, HEAD_MAX = 64, 1024  # of attention, as in csrc/cpu/attention/attention.h

_library = torch.library.Library("llama_tq", "DEF")
_library.define("quantize(Tensor x, str type) -> Tensor")
_library.define("dequantize(Tensor b, str type) -> Tensor")
_library.define("store(Tensor x, Tensor(a!) rows, int start, str type, int rotation) -> ()")
_library.define(
    "attention(Tensor q, Tensor k, Tensor v, str k_type, str v_type, Tensor? mask, int? past, float scale,"
    " float softcap) -> (Tensor, Tensor)"
)


def quantize(x: torch.Tensor, type: str) -> torch.Tensor:
    """Encode rows of numbers, in the bytes of :func:`llama_tq.reference.quantize`.

    :param x: float32, float16 or bfloat16, shape ``(..., n)`` with n a multiple of 32, on the CPU or a GPU
    :param type: name of a type
    :returns: uint8, shape ``(..., n / 32 * block bytes)``
    :raises ValueError: unknown type, or n not a multiple of 32
    :raises TypeError: another dtype
    """
    _check_values(x, type)
    return torch.ops.llama_tq.quantize(x, type)


def dequantize(b: torch.Tensor, type: str) -> torch.Tensor:
    """Decode rows of blocks, to the floats of :func:`llama_tq.reference.dequantize`.

    :param b: uint8, shape ``(..., m)`` with m a multiple of the type's block bytes, on the CPU or a GPU
    :param type: name of a type
    :returns: float32, shape ``(..., m / block bytes * 32)``
    :raises ValueError: unknown type, or m not a whole number of blocks
    :raises TypeError: dtype other than uint8
    """
    _check_blocks("b", b, type)
    return torch.ops.llama_tq.dequantize(b, type)


def store(x: torch.Tensor, rows: torch.Tensor, start: int, type: str, rotation: int) -> None:
    """Rotate and encode heads, into rows `start` and on of a packed cache.

    :param x: float32, float16 or bfloat16, shape ``(batch, heads, tokens, head)``
    :param rows: uint8, shape ``(batch, heads, capacity, head / 32 * block bytes)``; written to
    :param start: row of the first token
    :param type: name of a type
    :param rotation: values that are rotated together, see :func:`llama_tq.heads.rotation_size`
    :raises ValueError: unknown type, shapes that do not fit, or not so many rows
    :raises TypeError: another dtype
    """
    spec = _check_values(x, type)
    _check_blocks("rows", rows, type)
    expected = (*x.shape[:2], rows.shape[2], spec.row_bytes(x.shape[-1]))
    if x.dim() != 4 or rows.shape != expected:
        raise ValueError(f"rows have shape {tuple(rows.shape)}; x of {tuple(x.shape)} goes into {expected}")
    if start < 0 or start + x.shape[2] > rows.shape[2]:
        raise ValueError(f"start is {start}; {x.shape[2]} tokens do not fit into {rows.shape[2]} rows there")
    if rotation <= 0 or x.shape[-1] % rotation or rotation & (rotation - 1):
        raise ValueError(f"rotation is {rotation}; allowed are powers of two that divide {x.shape[-1]}")
    torch.ops.llama_tq.store(x, rows, start, type, rotation)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_type: str,
    v_type: str,
    mask: torch.Tensor | None = None,
    past: int | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention over a packed cache that :func:`store` has filled, with no decompressed copy.

    Queries are rotated inside, and results are turned back.

    :param q: float32, float16 or bfloat16, shape ``(batch, heads, tokens, head)``
    :param k: keys, uint8, shape ``(batch, kv heads, rows, head / 32 * block bytes)``; its rows can
        lie apart
    :param v: values, likewise; their heads may have another size
    :param k_type: name of the keys' type
    :param v_type: name of the values' type
    :param mask: bool (true: is seen) or float (is added), shape ``(batch or 1, heads or 1, tokens, rows)``
    :param past: without a mask: token i sees the first ``past + i + 1`` rows; None: all rows
    :param scale: of the scores, 1 / sqrt(head) if None
    :param softcap: scores become ``softcap * tanh(score / softcap)``; 0 without
    :returns: the results, of q's dtype, shape ``(batch, tokens, heads, value head)``, and the logarithm of
        the sum of the exponentials of each token's scores, float32, shape ``(batch, tokens, heads)``; 0 and
        minus infinity where a token sees nothing
    :raises ValueError: unknown type, shapes that do not fit, heads of less than 64 or more than 1024 values,
        or both a mask and `past`
    :raises TypeError: another dtype
    """
    if q.dtype not in FLOATS:
        raise TypeError(f"q has dtype {q.dtype}; allowed are {_names(FLOATS)}")
    k_spec, v_spec = _check_blocks("k", k, k_type), _check_blocks("v", v, v_type)
    if not q.dim() == k.dim() == v.dim() == 4:
        raise ValueError(f"q, k and v have {q.dim()}, {k.dim()} and {v.dim()} dimensions; they must have 4")
    if k.shape[-1] != k_spec.row_bytes(q.shape[-1]):
        needed = k_spec.row_bytes(q.shape[-1])
        raise ValueError(f"k has rows of {k.shape[-1]} bytes; {k_type} heads of {q.shape[-1]} take {needed}")
    if k.shape[:3] != v.shape[:3] or k.shape[0] != q.shape[0] or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        raise ValueError(f"q, k and v have shapes {shapes}; batches, rows and groups of heads must agree")
    if 0 in q.shape or k.shape[2] == 0:
        raise ValueError(f"q of {tuple(q.shape)} over {k.shape[2]} rows: there is nothing to attend to")
    for what, head in (("keys", q.shape[-1]), ("values", v_spec.row_values(v.shape[-1]))):
        if not HEAD_MIN <= head <= HEAD_MAX:
            raise ValueError(f"{what} have heads of {head} values; allowed are {HEAD_MIN} to {HEAD_MAX}")
    if mask is not None:
        if past is not None:
            raise ValueError(f"past is {past}, and there is a mask; only one of them can say who sees what")
        fits = mask.dim() == 4 and mask.shape[0] in (1, q.shape[0]) and mask.shape[1] in (1, q.shape[1])
        if not fits or mask.shape[2:] != (q.shape[2], k.shape[2]):
            raise ValueError(f"mask has shape {tuple(mask.shape)}; it must end in {(q.shape[2], k.shape[2])}")
    elif past is not None and past < 0:
        raise ValueError(f"past is {past}; allowed are 0 and more")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return torch.ops.llama_tq.attention(q, k, v, k_type, v_type, mask, past, scale, softcap)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _check_values(x: torch.Tensor, type: str) -> TypeSpec:
    spec = check_type(type)
    if x.dtype not in FLOATS:
        raise TypeError(f"x has dtype {x.dtype}; allowed are {_names(FLOATS)}")
    if x.dim() == 0 or x.shape[-1] % spec.block_size:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; the last dimension must be a multiple of {spec.block_size}"
        )
    return spec


def _check_blocks(what: str, b: torch.Tensor, type: str) -> TypeSpec:
    spec = check_type(type)
    if b.dtype != torch.uint8:
        raise TypeError(f"{what} has dtype {b.dtype}; allowed is uint8")
    if b.dim() == 0 or b.shape[-1] % spec.block_bytes:
        needed = f"the last dimension must be a multiple of {spec.block_bytes}"
        raise ValueError(f"{what} has shape {tuple(b.shape)}; {needed}")
    return spec


# --- shapes, for torch.compile ---


@torch.library.register_fake("llama_tq::quantize", lib=_library)
def _(x: torch.Tensor, type: str) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], check_type(type).row_bytes(x.shape[-1])), dtype=torch.uint8)


@torch.library.register_fake("llama_tq::dequantize", lib=_library)
def _(b: torch.Tensor, type: str) -> torch.Tensor:
    return b.new_empty((*b.shape[:-1], check_type(type).row_values(b.shape[-1])), dtype=torch.float32)


@torch.library.register_fake("llama_tq::store", lib=_library)
def _(x, rows, start, type, rotation) -> None:
    return None


@torch.library.register_fake("llama_tq::attention", lib=_library)
def _(q, k, v, k_type, v_type, mask, past, scale, softcap) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, tokens, _ = q.shape
    head = check_type(v_type).row_values(v.shape[-1])
    return q.new_empty((batch, tokens, heads, head)), q.new_empty((batch, tokens, heads), dtype=torch.float32)


# --- the code ---


def _on_gpu(name: str) -> Callable[..., object]:
    def run(*arguments: object) -> object:
        from .gpu import attention, codec  # and with them Triton

        return getattr(attention if name == "attention" else codec, name)(*arguments)

    return run


for _name, _kernel in KERNELS.items():
    _library.impl(_name, _kernel, "CPU")
    _library.impl(_name, _on_gpu(_name), "CUDA")
