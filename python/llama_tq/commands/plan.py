"""What a KV cache costs: asked of llama.cpp itself, which lays out a context without reading weights.

llama.cpp is given the model's metadata only (`no_alloc`) and sets up a context per pair. Its own rules for
grouped queries, sliding windows, recurrent layers, latent attention and padding decide; none of them is
repeated here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..runtime.memory import format_bytes
from ..runtime.models import CPU, STEP, DeviceMemory, Memory, Model, memory_of
from ..runtime.pairs import RECOMMENDED, REFERENCE, YARDSTICKS, Pair

_FAR = 1 << 18  # tokens: more than any sliding window, so that two contexts differ only in what really grows


@dataclass(frozen=True)
class PairPlan:
    """One pair of cache types; everything in bytes."""

    pair: Pair
    refused: str | None
    """llama.cpp's reason for not taking the pair; then all that follows is 0."""
    bytes_per_token: int
    """What one more token of context costs, far from the start."""
    fixed_bytes: int
    """What does not grow with the context: full sliding windows, recurrent states, means of centred keys."""
    cache_bytes: int
    """The cache for `Plan.n_ctx` tokens."""
    total_bytes: int
    """Weights, cache and compute buffers for `Plan.n_ctx` tokens."""
    devices: tuple[DeviceMemory, ...]
    """The same, device by device."""
    longest: int | None
    """Tokens of the longest context that fits `Plan.memory_bytes`, at most the model's; None without a limit.
    """


@dataclass(frozen=True)
class Plan:
    """The memory that a model needs for one context, by pair of cache types."""

    model: str
    description: str
    n_ctx: int
    n_ctx_train: int
    n_gpu_layers: int
    weights_bytes: int
    memory_bytes: int | None
    pairs: tuple[PairPlan, ...]


def plan(
    model: str | os.PathLike[str],
    *,
    n_ctx: int | None = None,
    memory: int | None = None,
    pairs: Sequence[Pair] | None = None,
    sequences: int = 1,
    swa_full: bool = False,
    n_gpu_layers: int = 0,
) -> Plan:
    """Memory of `model` with a context of `n_ctx` tokens (its own maximum by default), for every pair.

    By default for the recommended pairs, and f16, q8_0, q5_0 and q4_0. `memory` is a limit in bytes for
    weights, cache and compute buffers together; with `n_gpu_layers` (-1 for all), which are on the GPUs with
    their cache, for what each GPU holds of them. A GPU's driver takes some memory besides. `sequences` share
    the context, like the slots of llama-server. Layers with a sliding window keep only that, as in llama-cli
    and llama-server, or with `swa_full` everything, as in llama_cpp.Llama.

    Raises InputError for a bad model, a context above the model's, and a limit that the weights alone exceed.
    """
    how = {"sequences": sequences, "swa_full": swa_full}
    with Model(model, weights=False, n_gpu_layers=n_gpu_layers) as opened:
        n_ctx = opened.check_context(n_ctx if n_ctx is not None else opened.n_ctx_train)
        shortest = memory_of(opened, REFERENCE, STEP)
        there = max(device.weights for device in _limited(shortest))
        if memory is not None and there > memory:
            raise InputError(
                f"{opened.name} has {format_bytes(there)} of weights, more than the {format_bytes(memory)} "
                "given. Give more memory or a smaller model."
            )
        rows = tuple(
            _plan_pair(opened, pair, n_ctx, memory, how)
            for pair in pairs or (REFERENCE, *YARDSTICKS, *RECOMMENDED)
        )
        about = opened.name, opened.description, n_ctx, opened.n_ctx_train, n_gpu_layers
        return Plan(*about, shortest.weights, memory, rows)


def _limited(memory: Memory) -> list[DeviceMemory]:
    """The devices that a limit is for: all GPUs, or the CPU if it is alone."""
    return [device for device in memory.devices if device.device != CPU] or list(memory.devices)


def _fits(memory: Memory, limit: int) -> bool:
    return all(device.total <= limit for device in _limited(memory))


def _plan_pair(model: Model, pair: Pair, n_ctx: int, limit: int | None, how: dict[str, int]) -> PairPlan:
    try:
        here = memory_of(model, pair, n_ctx, **how)
        near, far = (memory_of(model, pair, n, **how).cache for n in (_FAR, 2 * _FAR))
    except InputError as error:
        return PairPlan(pair, str(error), 0, 0, 0, 0, (), 0 if limit is not None else None)
    per_token = (far - near) // _FAR
    longest = _longest(model, pair, limit, how) if limit is not None else None
    fixed = near - per_token * _FAR
    return PairPlan(pair, None, per_token, fixed, here.cache, here.total, here.devices, longest)


def _longest(model: Model, pair: Pair, limit: int, how: dict[str, int]) -> int:
    """By bisection: the largest multiple of STEP, or the model's maximum, that fits; 0 if none does."""
    if _fits(memory_of(model, pair, model.n_ctx_train, **how), limit):
        return model.n_ctx_train
    fits, too_long = 0, -(-model.n_ctx_train // STEP)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _fits(memory_of(model, pair, middle * STEP, **how), limit):
            fits = middle
        else:
            too_long = middle
    return fits * STEP
