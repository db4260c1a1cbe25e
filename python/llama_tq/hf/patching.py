"""The one line for ``generate()``."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..torch.operators import HEAD_MAX, HEAD_MIN
from ..widths import type_of
from .attention import NAME
from .cache import TurboQuantCache


def patch(
    model: PreTrainedModel,
    bits_k: int = 4,
    bits_v: int = 4,
    *,
    k: str | None = None,
    v: str | None = None,
    window: int = 0,
    attn_implementation: str | None = NAME,
) -> TurboQuantCache:
    """Make a packed cache for a model, and switch the model to attention that reads it as it is.

    The cache is for one batch of sequences; ``cache.reset()`` makes it ready for the next. Without it the
    model works as before: what is not packed, ``llama_tq`` attention hands to ``sdpa``.

    :param model: a decoder of transformers
    :param bits_k: bits of a key: 4, 3 or 2, for ``tq4_0``, ``tq3_0`` or ``tq2_1``
    :param bits_v: bits of a value
    :param k: type of the keys, in place of `bits_k`
    :param v: type of the values, in place of `bits_v`
    :param window: so many of the newest tokens stay in full precision
    :param attn_implementation: set on the model; with any other than ``llama_tq``, or None for that which it
        has, the cache is decoded for every step: correct, slower, and not small while attention runs
    :returns: the cache, for ``past_key_values=``
    :raises ValueError: what :class:`TurboQuantCache` does not cover, heads that ``llama_tq`` attention does
        not take (64 to 1024 values), or a model that has attention of its own
    """
    cache = TurboQuantCache(model.config, type_of(bits_k, k).name, type_of(bits_v, v).name, window)
    if attn_implementation is None:
        return cache
    config = model.config.get_text_config(decoder=True)
    if attn_implementation == NAME:
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if not HEAD_MIN <= head <= HEAD_MAX:
            raise ValueError(
                f"{config.model_type} has heads of {head} values; {NAME} attention takes {HEAD_MIN} to"
                f" {HEAD_MAX}: pass attn_implementation='sdpa'"
            )
    model.set_attn_implementation(attn_implementation)
    if config._attn_implementation != attn_implementation:
        raise ValueError(
            f"{type(model).__name__} has attention of its own and cannot use {attn_implementation}:"
            " pass attn_implementation=None"
        )
    return cache
