"""Kernels that encode and decode: the operators quantize, dequantize and store."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...reference import TYPES
from .blocks import encode, from_slots, load_levels, rotate, scales, spread, tables, write

ENCODED = 4  # blocks of a program, by one warp; at least those that are rotated together
DECODED = 32


@triton.jit
def encode_kernel(
    x,
    out,
    errors,
    midpoints,
    parts,  # in all
    heads,
    tokens,
    x_batch,
    x_head,
    x_token,
    out_batch,
    out_head,
    out_token,
    START: tl.constexpr,
    COUNT: tl.constexpr,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,  # of a block
    SIZE: tl.constexpr,  # values that are rotated together; a row has ROW such parts
    ROW: tl.constexpr,
    ROTATE: tl.constexpr,
    N: tl.constexpr,  # blocks of a program, a multiple of a part's
):
    """Rows [batch, head, token] of ROW parts of SIZE values to rows of blocks. Strides are in elements."""
    PARTS: tl.constexpr = N * 32 // SIZE
    part = tl.program_id(0).to(tl.int64) * PARTS + tl.arange(0, PARTS)
    mask = part < parts
    row, column = part // ROW, part % ROW
    token, head, batch = row % tokens, row // tokens % heads, row // tokens // heads
    start = x + batch * x_batch + head * x_head + token * x_token + column * SIZE
    values = tl.load(start[:, None] + tl.arange(0, SIZE)[None, :], mask[:, None], 0.0).to(tl.float32)
    if ROTATE:
        values = rotate(values, PARTS, SIZE)
    word, index = encode(tl.reshape(values, [N, 2, 16]), errors, midpoints, START, COUNT, BITS)
    each: tl.constexpr = SIZE // 32
    to = out + batch * out_batch + head * out_head + token * out_token + column * each * BYTES
    block = tl.reshape(to[:, None] + (tl.arange(0, each) * BYTES)[None, :], [N])
    used = tl.reshape(tl.broadcast_to(mask[:, None], [PARTS, each]), [N])
    write(block, word, index, used, N, BITS)


def _encode(x: torch.Tensor, out: torch.Tensor, type: str, size: int, rotate: bool) -> object:
    """x ``(batch, heads, tokens, values)`` to `out`, whose last dimension is bytes; returns what was run."""
    spec = TYPES[type]
    batch, heads, tokens, values = x.shape
    parts = batch * heads * tokens * (values // size)
    if parts == 0:
        return None
    blocks = max(ENCODED, size // spec.block_size)
    errors, midpoints, _ = tables(type, x.device)
    with torch.cuda.device_of(x):
        return encode_kernel[(triton.cdiv(parts * size // spec.block_size, blocks),)](
            x,
            out,
            errors,
            midpoints,
            parts,
            heads,
            tokens,
            *x.stride()[:3],
            *out.stride()[:3],
            START=spec.search_start,
            COUNT=spec.search_count,
            BITS=spec.bits,
            BYTES=spec.block_bytes,
            SIZE=size,
            ROW=values // size,
            ROTATE=rotate,
            N=blocks,
            num_warps=1,
            enable_fp_fusion=False,
        )


def quantize(x: torch.Tensor, type: str) -> torch.Tensor:
    spec = TYPES[type]
    x = x.contiguous()
    b = x.new_empty((*x.shape[:-1], spec.row_bytes(x.shape[-1])), dtype=torch.uint8)
    blocks = x.numel() // spec.block_size
    _encode(x.view(1, 1, blocks, -1), b.view(1, 1, blocks, -1), type, spec.block_size, rotate=False)
    return b


def store(x: torch.Tensor, rows: torch.Tensor, start: int, type: str, rotation: int) -> None:
    if x.stride(-1) != 1:
        x = x.contiguous()
    _encode(x, rows[:, :, start : start + x.shape[2]], type, rotation, rotate=True)


@triton.jit
def decode_kernel(b, out, books, blocks, BITS: tl.constexpr, BYTES: tl.constexpr, N: tl.constexpr):
    """Blocks, one after the other, to float32."""
    number = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    mask = number < blocks
    word, level = load_levels((b + number * (BYTES // 2))[:, None], books, mask[:, None], BITS)
    values = level * spread(scales(word, 0), scales(word, 1), BITS)
    values = from_slots(tl.reshape(values, [N, 32]), N, 1, BITS)
    tl.store(out + number[:, None] * 32 + tl.arange(0, 32)[None, :], values, mask[:, None])


def dequantize(b: torch.Tensor, type: str) -> torch.Tensor:
    spec = TYPES[type]
    words = b.contiguous().view(torch.int16)
    x = b.new_empty((*b.shape[:-1], spec.row_values(b.shape[-1])), dtype=torch.float32)
    blocks = x.numel() // spec.block_size
    if blocks:
        with torch.cuda.device_of(b):
            decode_kernel[(triton.cdiv(blocks, DECODED),)](
                words,
                x,
                tables(type, b.device)[2],
                blocks,
                BITS=spec.bits,
                BYTES=spec.block_bytes,
                N=DECODED,
                num_warps=4,
            )
    return x
