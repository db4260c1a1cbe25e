"""The operators on the CPU: the C kernels, on the tensors' own memory."""

from __future__ import annotations

import numpy as np
import torch

from .. import _core
from ..heads import KEY, VALUE, rotation_size
from ..reference import TYPES
from .rotation import rotate

NUMBERS = {name: number for number, name in enumerate(_core.types())}
MASK_TOKENS = 256  # queries of one call where a mask must be made: it never is larger than that by all rows


def quantize(x: torch.Tensor, type: str) -> torch.Tensor:
    spec = TYPES[type]
    b = x.new_empty((*x.shape[:-1], spec.row_bytes(x.shape[-1])), dtype=torch.uint8)
    _core.quantize(NUMBERS[type], _array(x), b.numpy(), torch.get_num_threads())
    return b


def dequantize(b: torch.Tensor, type: str) -> torch.Tensor:
    spec = TYPES[type]
    x = b.new_empty((*b.shape[:-1], spec.row_values(b.shape[-1])), dtype=torch.float32)
    _core.dequantize(NUMBERS[type], b.detach().contiguous().numpy(), x.numpy(), torch.get_num_threads())
    return x


def store(x: torch.Tensor, rows: torch.Tensor, start: int, type: str, rotation: int) -> None:
    rows[:, :, start : start + x.shape[2]] = quantize(rotate(x, rotation), type)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_type: str,
    v_type: str,
    mask: torch.Tensor | None,
    past: int | None,
    scale: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, tokens, k_head = q.shape
    v_head = TYPES[v_type].row_values(v.shape[-1])
    rotated = _array(rotate(q, rotation_size(KEY, k_head)))
    shape = (batch, tokens, heads)
    out, lse = np.empty((*shape, v_head), np.float32), np.empty(shape, np.float32)
    keys, values = k.numpy(), v.numpy()
    step = tokens if mask is None and past is None else MASK_TOKENS
    for first in range(0, tokens, step):
        part = slice(first, min(first + step, tokens))
        rows = k.shape[2] if past is None else min(k.shape[2], past + part.stop)
        # In `out`, a part of the tokens lies together only where there is one sequence.
        results = [np.empty((batch, part.stop - first, *x.shape[2:]), np.float32) for x in (out, lse)]
        _core.attention(
            rotated[:, :, part],
            NUMBERS[k_type],
            keys[:, :, :rows],
            NUMBERS[v_type],
            values[:, :, :rows],
            _mask(mask, past, part, rows),
            scale,
            softcap,
            *results,
            torch.get_num_threads(),
        )
        out[:, part], lse[:, part] = results
    turned = rotate(torch.from_numpy(out), rotation_size(VALUE, v_head))
    return turned.to(q.dtype), torch.from_numpy(lse)


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().to(torch.float32).contiguous().numpy()


def _mask(mask: torch.Tensor | None, past: int | None, part: slice, rows: int) -> np.ndarray | None:
    """float16, added to the scores of the tokens in `part`; None where they all see all rows."""
    if mask is not None:
        mask = mask[:, :, part, :rows]
    elif past is not None and past + part.start + 1 < rows:
        token = torch.arange(part.start, part.stop)
        mask = torch.arange(rows) <= past + token[None, None, :, None]
    else:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=torch.float16).masked_fill_(~mask, -torch.inf)
    return mask.to(torch.float16).contiguous().numpy()


KERNELS = {"quantize": quantize, "dequantize": dequantize, "store": store, "attention": attention}
