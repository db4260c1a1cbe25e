#!/usr/bin/env python3
"""Train the codebooks and write the tables that C and Python share.

usage: make_tables.py            retrain, write csrc/tq_tables.h, csrc/cpu/blocks/tq_bins.h and
                                 python/llama_tq/reference/tables.py
       make_tables.py --check    retrain, fail if the committed files differ

Training is Lloyd's algorithm (S. P. Lloyd, "Least squares quantization in PCM", 1982) around the encoder of
the reference: encode Gaussian samples, move every level to the mean of what chose it, repeat, round to int8.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))

TYPES_DEF = ROOT / "csrc/types.def"
C_TABLES = ROOT / "csrc/tq_tables.h"
C_BINS = ROOT / "csrc/cpu/blocks/tq_bins.h"
PYTHON_TABLES = ROOT / "python/llama_tq/reference/tables.py"

BLOCKS = 1 << 14
ROUNDS = 24
PEAK = 127  # the largest level of the two codebooks together
START_SHIFT = 14  # types.def gives search starts as numerators over 2^14


def read_types_def() -> list[dict]:
    rows = re.findall(r"^TQ_TYPE\((.*)\)$", TYPES_DEF.read_text(), re.M)
    keys = ("NAME", "name", "id", "bits", "bytes", "start", "count")
    return [dict(zip(keys, (f.strip() for f in row.split(",")), strict=True)) for row in rows]


def train(row: dict) -> np.ndarray:
    """Two codebooks, int8, shape ``(2, 2**bits)``, ascending, with an extreme at +-127."""
    from llama_tq.reference import _codec as codec

    bits = int(row["bits"])
    x = np.random.default_rng(bits).standard_normal((BLOCKS, 2, codec.SUB), dtype=np.float32)
    # Two companded grids, one denser in the middle than the other, shifted off zero so that the sign matters.
    # Of 16 such starts tried for each type the worst ended 0.05 dB below this one.
    grid = (np.arange(2**bits) + 0.15) / 2 ** (bits - 1) - 1
    books = np.stack([np.sign(grid) * np.abs(grid) ** p for p in (1.1, 1.5)])
    for _ in range(ROUNDS):
        books *= PEAK / np.abs(books).max()
        spec = Search(bits, int(row["start"]) / 2**START_SHIFT, int(row["count"]), books)
        words, indices = codec.encode(x, spec)
        scales, book = codec.decode_scale_words(words)
        slot = book[:, None, None] * 2**bits + indices
        weight = np.broadcast_to((scales**2)[:, :, None], x.shape)
        pull = scales[:, :, None] * x
        total = np.bincount(slot.ravel(), weight.ravel(), books.size)
        books = (np.bincount(slot.ravel(), pull.ravel(), books.size) / total).reshape(books.shape)
    return np.rint(books * (PEAK / np.abs(books).max())).astype(np.int8)


@dataclasses.dataclass
class Search:
    """The part of a TypeSpec that the encoder needs, with codebooks that are not rounded yet."""

    bits: int
    search_start: float
    search_count: int
    codebook: np.ndarray


def c_tables(rows: list[dict], books: dict[str, np.ndarray]) -> str:
    out = [
        "// Written by scripts/make_tables.py: do not edit. The codebooks of FORMAT.md, section 3; the first",
        "// index is bit 15 of the scale word. TQ_TABLE is the storage class that C, CUDA or Metal wants.",
        "#pragma once",
        "",
        "#ifndef TQ_TABLE",
        "#    define TQ_TABLE static const",
        "#endif",
        "",
    ]
    for row in rows:
        book = books[row["name"]]
        lines = ["    {" + ", ".join(f"{v:4d}" for v in b) + "}," for b in book]
        out += [f"TQ_TABLE signed char tq_codebook_{row['name']}[2][{book.shape[1]}] = {{", *lines, "};", ""]
    return "\n".join(out[:-1]) + "\n"


BINS_HEAD = """\
// Written by scripts/make_tables.py: do not edit. What the SIMD encoders look up instead of searching a book.
//
// The level nearest to +a or -a is one of two for all a in 8b..8b+7 (b = 15: in 120..255), because midpoints
// between levels are at least 8 apart: [codebook][+a, -a][nearest to the bin's first a, to its last][b].
// Levels for -a carry the opposite sign, so that every distance is |a - entry|. None is below -TQ_BIN_BIAS.
#pragma once

#define TQ_BIN_BIAS 32

"""


def bins(book: np.ndarray) -> np.ndarray:
    """The table of ``BINS_HEAD`` of one codebook, int ``(2, 2, 16)``; proves it gives every distance."""
    from llama_tq.reference import _codec as codec

    book = book.astype(int)
    a = np.arange(256)
    last = np.r_[np.arange(7, 127, 8), 255]
    table = np.empty((2, 2, 16), int)
    for side, sign in enumerate((1, -1)):
        level = sign * book[codec.nearest(sign * a, book)]
        table[side] = level[0:128:8], level[last]
        found = np.abs(a - table[side][:, np.minimum(a >> 3, 15)]).min(axis=0)
        if np.any(found != np.abs(a - level)) or table[side].min() < -32:
            sys.exit(
                f"codebook {book.tolist()} has midpoints closer than 8; the SIMD encoders cannot search it"
            )
    return table


def c_bins(rows: list[dict], books: dict[str, np.ndarray]) -> str:
    out = BINS_HEAD
    for row in rows:
        out += f"static const signed char tq_bins_{row['name']}[2][2][2][16] = {{\n"
        for book in books[row["name"]]:
            out += "    {\n"
            for pair in bins(book):
                lines = ["{" + ", ".join(f"{v:4d}" for v in entries) + "}" for entries in pair]
                out += "        {" + ",\n         ".join(lines) + "},\n"
            out += "    },\n"
        out += "};\n\n"
    return out[:-1]


PYTHON_HEAD = '''\
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
'''


def python_tables(rows: list[dict], books: dict[str, np.ndarray]) -> str:
    out = PYTHON_HEAD
    for r in rows:
        book = "".join(f"                [{', '.join(map(str, b))}],\n" for b in books[r["name"]])
        out += (
            f'    "{r["name"]}": TypeSpec(\n'
            f'        name="{r["name"]}",\n        id={r["id"]},\n        bits={r["bits"]},\n'
            f"        block_bytes={r['bytes']},\n        search_start={r['start']} / 2**{START_SHIFT},\n"
            f"        search_count={r['count']},\n"
            f"        codebook=np.array(\n            [\n{book}            ],\n"
            "            np.int32,\n        ),\n    ),\n"
        )
    return out + "}\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed files, write nothing"
    )
    check = parser.parse_args().check
    rows = read_types_def()
    books = {row["name"]: train(row) for row in rows}
    stale = False
    outputs = ((C_TABLES, c_tables), (C_BINS, c_bins), (PYTHON_TABLES, python_tables))
    for path, text in ((path, write(rows, books)) for path, write in outputs):
        if check and path.read_text() != text:
            print(
                f"{path.relative_to(ROOT)} is not what training writes; run scripts/make_tables.py",
                file=sys.stderr,
            )
            stale = True
        elif not check:
            path.write_text(text)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
