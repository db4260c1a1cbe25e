"""The parts of a split cache, joined."""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import rotate
from .decode import LOG2E


@triton.jit(do_not_specialize=["parts"])
def join_kernel(
    part_out,
    part_lse,
    out,
    lse,
    parts,
    VALUES: tl.constexpr,
    SIZE: tl.constexpr,  # values that are rotated together: a program has so many
    JOINED: tl.constexpr,
):
    """A query row's parts [part, value] to its result, turned back."""
    at = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    best = float("-inf")
    total = 0.0
    acc = tl.zeros([SIZE], tl.float32)
    for first in range(0, parts, JOINED):
        part = first + tl.arange(0, JOINED)
        sums = tl.load(part_lse + at * parts + part, part < parts, float("-inf"))
        values = tl.load(
            part_out + (at * parts + part)[:, None] * VALUES + c[None, :], (part < parts)[:, None], 0.0
        )
        new = tl.maximum(best, tl.max(sums, 0))
        base = tl.where(new == float("-inf"), 0.0, new)
        weight = tl.exp2(sums - base)
        keep = tl.exp2(best - base)
        best = new
        total = total * keep + tl.sum(weight, 0)
        acc = acc * keep + tl.sum(weight[:, None] * values, 0)
    acc = acc / tl.where(total == 0, 1.0, total)
    acc = tl.reshape(rotate(tl.reshape(acc, [1, SIZE]), 1, SIZE), [SIZE])
    tl.store(out + at * VALUES + c, acc.to(out.dtype.element_ty))
    if tl.program_id(1) == 0:
        sums = tl.where(total == 0, float("-inf"), (best + tl.log2(tl.where(total == 0, 1.0, total))) / LOG2E)
        tl.store(lse + at, sums)
