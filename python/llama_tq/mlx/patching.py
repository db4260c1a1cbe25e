"""The one line for mlx-lm's ``generate``."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn
from mlx_lm.models.cache import KVCache, make_prompt_cache

from ..widths import type_of
from .cache import TurboQuantCache


def patch(
    model: nn.Module, bits_k: int = 4, bits_v: int = 4, *, k: str | None = None, v: str | None = None
) -> list[Any]:
    """A prompt cache whose growing layers are held in TQ types; the model itself is left as it is.

    Layers that keep a sliding window or a recurrent state have mlx-lm's own caches, which do not grow.

    :param model: of mlx-lm
    :param bits_k: bits of a key: 4, 3 or 2, for ``tq4_0``, ``tq3_0`` or ``tq2_1``
    :param bits_v: bits of a value
    :param k: type of the keys, in place of `bits_k`
    :param v: type of the values, in place of `bits_v`
    :returns: one cache a layer, for ``prompt_cache=``
    :raises ValueError: no such type, or a model without a layer that it could be for
    """
    types = type_of(bits_k, k).name, type_of(bits_v, v).name
    caches = make_prompt_cache(model)
    if not any(type(cache) is KVCache for cache in caches):
        found = ", ".join(sorted({type(cache).__name__ for cache in caches})) or "none"
        raise ValueError(f"no layer of the model has a KVCache to replace; its caches are {found}")
    return [TurboQuantCache(*types) if type(cache) is KVCache else cache for cache in caches]
