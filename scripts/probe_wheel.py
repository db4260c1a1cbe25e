#!/usr/bin/env python3
"""What the installed llama_tq does on the processor that runs this, as JSON: for scripts/check_wheels.py.

Which CPU backend ggml has loaded, which tier of csrc is used, and how far predictions with every cache
type are from those with f16 in the file that the argument names, by mean KL divergence in nats. Where
there is no such file, the predictions with f16 are written there.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from pathlib import Path

import llama_cpp
import numpy as np

import llama_tq
from llama_tq.evaluation.scoring import cut, score
from llama_tq.runtime import embedded, sources
from llama_tq.runtime.models import Model
from llama_tq.runtime.pairs import REFERENCE, Pair

TOKENS = 256  # read; the second half is scored


def backend() -> str:
    """The file of the CPU backend in use. ggml looks at several, and not all of them leave the process."""
    by_name = llama_cpp.llama_cpp._lib.ggml_backend_reg_by_name
    by_name.restype, by_name.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    registration = by_name(b"CPU")
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last, path = re.match(r"(\w+)-(\w+) \S+ \S+ \S+ \S+\s*(.*)", line).groups()
        if int(first, 16) <= registration < int(last, 16):
            return Path(path).name
    raise RuntimeError("the CPU backend is in no file")


def divergences(path: Path) -> dict[str, float]:
    """By cache type."""
    found = {}
    with Model(sources.DEMO) as model:
        chunk = cut(model, embedded.held_out_text(), TOKENS)[0]
        if path.exists():
            chunk.reference = np.load(path)
        for pair in (REFERENCE, *(Pair.parse(spec.name) for spec in llama_tq.types())):
            with model.context(pair, TOKENS) as context:
                found[pair.k] = float(score(context, chunk).kld.mean())
        np.save(path, chunk.reference)
    return found


path = Path(sys.argv[1])
print(json.dumps({"divergences": divergences(path), "backend": backend(), "tier": llama_tq.active_isa()}))
