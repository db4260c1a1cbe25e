"""Attention on packed rows: which kernel, and how the work is divided into programs."""

from __future__ import annotations

import functools

import torch
import triton

from ...heads import KEY, VALUE, rotation_size
from ...reference import TYPES
from .decode import BOOL_MASK, FLOAT_MASK, NO_MASK, decode_kernel
from .join import join_kernel
from .prefill import prefill_kernel
from .words import books

# Measured on an H100 with Triton 3.6, replayed from CUDA graphs (scripts/bench_hf.py): 8 KV heads and 32
# query heads of 128, tq4_0, one token. us of 256, 2048, 8192, 32768 and four times 32768 rows, where
# PyTorch's sdpa on f16 takes 6.5, 8, 12.5, 52 and 181:
#     9, 11, 16, 37, 114    tiles of 16 rows, 168 registers, so that three programs fit a multiprocessor
#     10, 10, 15, 36, 117   tiles of 32 rows, 255 registers, two programs
#     14, 15, 20, 56, 160   the same with 128 registers, four programs
#     12, 13, 16, 39, 116   tiles of 16 rows, 128 registers, four programs
#     12, 13, 16, 45, 122   96 registers, five programs
#     15, 15, 23, 43, 122   eight warps, 128 registers, two programs
#     16, 16, 17, 38, 113   two warps, 128 registers, eight programs
#     9, 11, 18, 37, 111    as the first, the next tile loaded while one is unpacked: not worth its code
# (the lines of 12 us and more for 256 rows have parts of 256 rows at least, not 64). Levels from a table in
# memory, units by row and keys as the right side of a product, which all passed through shared memory, took
# 88 us and 299.
COLUMNS, TILE, WARPS = 8, 16, 4  # query rows of a program; rows of the cache of each of its warps at a time
FEW = ((128, 168, 3), (256, None, 2))  # values of a head, registers of a thread, programs of a multiprocessor
# Many query rows: of a program, values of a tile of keys or values (64 rows of heads of 128 are 8192), and
# warps; the first that has all of a KV head's query rows, or the last. Prefill of 8192 tokens, ms, where sdpa
# takes 0.95: the last 3.2, tiles of 16384 values 3.2, of 4096 10.8; the second 3.9. Masking only the tiles at
# the edge, with the longest programs first and sums kept in one accumulator: 3.6, where sdpa took 1.04.
MANY = ((16, 4096, 4), (64, 4096, 4), (128, 8192, 8))
PROGRAMS = 4  # of a multiprocessor, that are wanted then
SPLIT_MIN = 128  # rows of a part of the cache, at least
JOINED = 64  # parts at a time

# Triton chooses which lane has what. Where tensors are to lie as tensor cores read them, a kernel must know:
# lanes go along the first dimensions of what is loaded, or along the last; and of a row of an operand a lane
# has two pairs of numbers together, or one. Where a version differs results are the same, but slower.
_VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
LAST, PAIRS = _VERSION >= (3, 7), 1 if _VERSION >= (3, 8) else 2


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def plan(programs: int, rows: int, most: int, tile: int) -> int:
    """Rows of a part of the cache, whole tiles, where `programs` would go through all of it, and `most` are
    wanted.
    """
    parts = max(1, min(most // programs, rows // SPLIT_MIN))
    return triton.cdiv(triton.cdiv(rows, parts), tile) * tile


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
    multiprocessors: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the operator. `multiprocessors` says for how many the work is split; those of the device if None."""
    k_spec, v_spec = TYPES[k_type], TYPES[v_type]
    batch, heads, tokens, k_values = q.shape
    kv_heads, rows = k.shape[1], k.shape[2]
    k_blocks, v_blocks = k.shape[-1] // k_spec.block_bytes, v.shape[-1] // v_spec.block_bytes
    k_width, v_width = triton.next_power_of_2(k_blocks), triton.next_power_of_2(v_blocks)
    v_values = 32 * v_blocks
    if q.stride(-1) != 1:
        q = q.contiguous()
    k, v = k.view(torch.int16), v.view(torch.int16)

    group = heads // kv_heads
    widest = 32 * max(k_width, v_width)
    few = tokens * group <= COLUMNS and widest <= FEW[-1][0]
    if few:
        block, tile = COLUMNS, WARPS * TILE
        registers, programs = next(shape[1:] for shape in FEW if shape[0] >= widest)
    else:
        block, values, warps = next((shape for shape in MANY if shape[0] >= tokens * group), MANY[-1])
        tile, programs = max(16, values // widest), PROGRAMS
    across = triton.cdiv(tokens * group, block) * batch * kv_heads
    split = plan(across, rows, programs * (multiprocessors or _multiprocessors(q.device)), tile)
    parts = triton.cdiv(rows, split)

    shape = (batch, tokens, heads)
    out, lse = q.new_empty((*shape, v_values)), q.new_empty(shape, dtype=torch.float32)
    part_out, part_lse = out, lse
    if few or parts > 1:
        part_out = q.new_empty((*shape, parts, v_values), dtype=torch.float32)
        part_lse = q.new_empty((*shape, parts), dtype=torch.float32)
    kind, mask_strides = NO_MASK, (0, 0, 0)
    if mask is not None:
        kind = BOOL_MASK if mask.dtype == torch.bool else FLOAT_MASK
        mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        mask_strides = tuple(0 if mask.shape[i] == 1 and i < 2 else mask.stride(i) for i in range(3))
    ends = (q if mask is None else mask, part_out, part_lse)
    sizes = (heads, kv_heads, tokens, group, rows, 0 if past is None else past, split, scale, softcap)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *mask_strides)
    constants = {
        "K_BITS": k_spec.bits,
        "K_BYTES": k_spec.block_bytes,
        "K_BOOKS": books(k_type),
        "K_BLOCKS": k_blocks,
        "K_WIDTH": k_width,
        "K_SIZE": rotation_size(KEY, k_values),
        "V_BITS": v_spec.bits,
        "V_BYTES": v_spec.block_bytes,
        "V_BOOKS": books(v_type),
        "V_BLOCKS": v_blocks,
        "V_WIDTH": v_width,
        "MASK": kind,
        "CAUSAL": past is not None,
        "CAPPED": softcap != 0,
        "ASM": q.is_cuda and torch.version.cuda is not None,
        "LAST": LAST,
    }
    v_size = rotation_size(VALUE, v_values)
    grid = (triton.cdiv(tokens * group, block), batch * kv_heads, parts)
    with torch.cuda.device_of(q):
        if few:
            decode_kernel[grid](
                q,
                k,
                v,
                *ends,
                *sizes,
                *strides,
                **constants,
                COLUMNS=COLUMNS,
                TILE=TILE,
                WARPS=WARPS,
                PAIRS=PAIRS,
                num_warps=WARPS,
                num_stages=1,
                maxnreg=registers,
            )
        else:
            prefill_kernel[grid](
                q,
                k,
                v,
                *ends,
                *sizes,
                *strides,
                **constants,
                V_SIZE=v_size,
                WHOLE=parts == 1,
                ROWS=block,
                TILE=tile,
                num_warps=warps,
                num_stages=1,
            )
        if few or parts > 1:
            join_kernel[(batch * tokens * heads, v_values // v_size)](
                part_out, part_lse, out, lse, parts, VALUES=v_values, SIZE=v_size, JOINED=JOINED, num_warps=4
            )
    return out, lse
