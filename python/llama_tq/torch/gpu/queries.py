"""Query rows as the attention kernels take them: turned, in parts of the largest value, reordered."""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import rotate


@triton.jit
def load_queries(
    q,
    batch,
    head,
    token,
    used,
    q_batch,
    q_head,
    q_token,
    N: tl.constexpr,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
):
    """The rows of heads [N] and tokens [N], rotated, float32 [N, 32 WIDTH], in parts of their largest value;
    and that, [N].
    """
    d = tl.arange(0, 32 * WIDTH)
    x = tl.load(
        q + batch * q_batch + head[:, None] * q_head + token.to(tl.int64)[:, None] * q_token + d[None, :],
        used[:, None] & (d < 32 * BLOCKS)[None, :],
        0.0,
    ).to(tl.float32)
    parts: tl.constexpr = N * 32 * WIDTH // SIZE
    x = tl.reshape(rotate(tl.reshape(x, [parts, SIZE]), parts, SIZE), [N, 32 * WIDTH])
    top = tl.max(tl.abs(x), 1)
    return x / tl.where(top == 0, 1.0, top)[:, None], top


@triton.jit
def to_quarters(x, N: tl.constexpr, BLOCKS: tl.constexpr, BITS: tl.constexpr):
    """Values [N, 32 BLOCKS] to [N, block, quarter, word, low, sub-block], flat: where words.py has them."""
    if BITS == 4:  # block, sub-block, quarter and word, low
        x = tl.permute(tl.reshape(x, [N, BLOCKS, 2, 8, 2]), [0, 1, 3, 4, 2])
    else:  # block, sub-block, low bit of the quarter, high bit, word and low
        x = tl.permute(tl.reshape(x, [N, BLOCKS, 2, 2, 2, 4]), [0, 1, 4, 3, 5, 2])
    return tl.reshape(x, [N, 32 * BLOCKS])


@triton.jit
def from_quarters(x, N: tl.constexpr, BLOCKS: tl.constexpr, BITS: tl.constexpr):
    """The inverse of to_quarters."""
    if BITS == 4:
        x = tl.permute(tl.reshape(x, [N, BLOCKS, 8, 2, 2]), [0, 1, 4, 2, 3])
    else:
        x = tl.permute(tl.reshape(x, [N, BLOCKS, 2, 2, 4, 2]), [0, 1, 5, 3, 2, 4])
    return tl.reshape(x, [N, 32 * BLOCKS])
