"""Speed against depth: how fast a model reads and writes when so many tokens are in the cache already."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .._api import threads
from ..errors import InputError
from ..runtime import memory
from ..runtime.models import BATCH, Context, Model, memory_of
from ..runtime.pairs import REFERENCE, Pair
from .defaults import DEPTHS

PAIRS = (REFERENCE, *map(Pair.parse, ("q8_0", "q4_0", "tq4_0", "q8_0/tq3_0", "tq3_0")))
WRITTEN = 16  # tokens decoded one by one for one sample
READ = BATCH  # tokens decoded at once for one sample
SAMPLES = 3  # the median counts


@dataclass(frozen=True)
class Speed:
    """Tokens per second with `depth` tokens in the cache."""

    pair: Pair
    depth: int
    read: float
    """Prompt processing, READ tokens at a time."""
    write: float
    """Generation, one token at a time."""


@dataclass(frozen=True)
class Bench:
    """Speeds by pair and depth."""

    model: str
    description: str
    threads: int
    n_gpu_layers: int
    n_ctx: int
    speeds: tuple[Speed, ...]


def bench(
    model: str | os.PathLike[str],
    pairs: Sequence[Pair] | None = None,
    depths: Sequence[int] | None = None,
    *,
    n_gpu_layers: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    on_speed: Callable[[Speed], object] = lambda _: None,
) -> Bench:
    """Time `model` at every depth (by default those of DEPTHS that it takes) with every pair (PAIRS).

    On random tokens and all processors that the process may use, with `n_gpu_layers` and their cache on the
    GPU; -1 for all. `on_speed` is told each speed at once.

    Raises InputError for a depth that the model's context does not hold, and when there is too little memory.
    """
    pairs = pairs or PAIRS
    with Model(model, weights=False, n_gpu_layers=n_gpu_layers) as metadata:
        room = metadata.n_ctx_train - READ
        depths = sorted(set(depths)) if depths is not None else [d for d in DEPTHS if d <= room]
        if not depths or depths[0] < 0 or depths[-1] > room:
            raise InputError(
                f"Depths {', '.join(map(str, depths)) or '(none)'} are not possible: "
                f"{metadata.name} takes 0 to {room}."
            )
        n_ctx = depths[-1] + READ
        needed = max(memory_of(metadata, pair, n_ctx).main for pair in pairs)
        memory.require(needed, f"A depth of {depths[-1]} tokens", "Use smaller depths.")
    with Model(model, n_gpu_layers=n_gpu_layers) as opened:
        tokens = np.random.default_rng(0).integers(0, opened.n_vocab, n_ctx, np.int32)
        speeds, total = [], len(pairs) * len(depths)
        for pair in pairs:
            with opened.context(pair, n_ctx) as context:
                context.decode(tokens[:1], 0)  # the first call sets up threads and graphs
                filled = 0
                for depth in depths:
                    progress(f"{pair} at {depth}", len(speeds), total)
                    context.truncate(filled) or _refill(context, tokens[:filled])
                    if depth > filled:
                        context.prefill(tokens[filled:depth], filled)
                    filled = depth
                    speeds.append(_time(context, tokens, depth))
                    on_speed(speeds[-1])
        progress("done", total, total)
        return Bench(opened.name, opened.description, threads(), n_gpu_layers, n_ctx, tuple(speeds))


def _time(context: Context, tokens: np.ndarray, depth: int) -> Speed:
    written, read = [], []
    for _ in range(SAMPLES):
        for samples, size, step in ((written, WRITTEN, 1), (read, READ, READ)):
            context.truncate(depth) or _refill(context, tokens[:depth])
            began = time.perf_counter()
            for start in range(depth, depth + size, step):
                context.decode(tokens[start : start + step], start)
            samples.append(size / (time.perf_counter() - began))
    return Speed(context.pair, depth, statistics.median(read), statistics.median(written))


def _refill(context: Context, tokens: np.ndarray) -> None:
    """For models that cannot forget a part."""
    context.clear()
    if len(tokens):
        context.prefill(tokens)
