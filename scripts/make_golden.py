#!/usr/bin/env python3
"""Write tests/golden/v<version of the format>: numbers, their blocks in every type, and what these decode to.

usage: make_golden.py

What a release has written stays. Where the files exist they are compared, and a difference is an error: the
meaning of the bytes changed, and FORMAT.md and the ids in types.def need a new version.

The files are little-endian data without a header; input.f32 and <type>.f32 are float32, 32 to a block.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))

from llama_tq.reference import TYPES, dequantize, quantize  # noqa: E402

BLOCKS = 64


def version() -> int:
    """The format's version, as the ids of types.def carry it."""
    (number,) = {(spec.id - 1024) // 16 for spec in TYPES.values()}
    return number


def make_input() -> np.ndarray:
    """64 blocks: normal at three scales, sub-blocks that differ, a heavy tail, ties, and special values."""
    rng = np.random.RandomState(1)  # its stream is frozen
    x = rng.standard_normal((BLOCKS, 32))
    x[16:24] *= 2.0**-12
    x[24:32] *= 2.0**12
    x[32:40, :16] *= 2.0 ** rng.uniform(-8, 8, (8, 1))
    x[40:46] **= 3
    x[46:52] = rng.randint(-127 * 2, 127 * 2, (6, 32)) / 2 * 2.0**-7
    special = [0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3e38, 2**-21, -(2**-22), 121920, 1, -1]
    x[52:58] = rng.choice(special, (6, 32))
    x[58:62] = 0
    x[58:62, ::9] = rng.choice(special, (4, 4))
    x[62:] = 0
    x[63, 5] = -3
    with np.errstate(over="ignore"):
        return x.astype("<f4")


def make_files() -> dict[str, bytes]:
    x = make_input()
    files = {"input.f32": x.tobytes()}
    for name in TYPES:
        b = quantize(x, name)
        files[f"{name}.bin"] = b.tobytes()
        files[f"{name}.f32"] = dequantize(b, name).astype("<f4").tobytes()
    return files


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    folder = ROOT / f"tests/golden/v{version()}"
    folder.mkdir(parents=True, exist_ok=True)
    wrong = []
    for name, data in make_files().items():
        path = folder / name
        if not path.exists():
            path.write_bytes(data)
        elif path.read_bytes() != data:
            wrong.append(name)
    if wrong:
        print(
            f"{folder.relative_to(ROOT)} has other bytes: {', '.join(wrong)}; the format changed",
            file=sys.stderr,
        )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
